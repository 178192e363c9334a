"""No test needs the network, writes to the user's cache, or takes more than one core."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["HNERV_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    torch.set_num_threads(1)
