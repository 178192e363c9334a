"""docs/quickstart.ipynb runs from the first cell to the last, without network, and is stored with small, clean outputs."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import nbformat
import pytest

DOCS = Path(__file__).parents[1] / "docs"
NOTEBOOK = nbformat.read(DOCS / "quickstart.ipynb", as_version=4)


def text_of(notebook: nbformat.NotebookNode) -> str:
    """What its cells print, without pictures."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(output["text"] if "text" in output else output["data"]["text/plain"] for output in outputs)


@pytest.fixture(scope="module")
def again(tmp_path_factory) -> nbformat.NotebookNode:
    """The notebook after another run, on one core, with the outputs of that run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("JUPYTER_PLATFORM_DIRS", "1")  # jupyter_core warns where it is not set
        return runpy.run_path(str(DOCS / "notebook.py"))["executed"](tmp_path_factory.mktemp("notebook"))


def test_all_cells_run_and_show_what_is_stored(again):
    for cell, stored in zip(again.cells, NOTEBOOK.cells, strict=True):
        kinds = [[(output.output_type, *output.get("data", {})) for output in c.get("outputs", [])] for c in (cell, stored)]
        assert kinds[0] == kinds[1], stored.source
    before, after = (map(float, re.findall(r"PSNR ([\d.]+) -> ([\d.]+) dB", text_of(n))[0]) for n in (again, NOTEBOOK))
    assert [*before] == pytest.approx([*after], abs=0.3)
    assert "not CLIP" in text_of(again)


def test_the_stored_notebook_is_clean_and_small():
    """Outputs of one run in order, without times, versions and paths of the machine."""
    assert [c.execution_count for c in NOTEBOOK.cells if c.cell_type == "code"] == [
        *range(1, 1 + sum(c.cell_type == "code" for c in NOTEBOOK.cells))
    ]
    assert NOTEBOOK.metadata == runpy.run_path(str(DOCS / "notebook.py"))["METADATA"]
    assert not any(cell.metadata for cell in NOTEBOOK.cells)
    assert not re.search(r"(?<![\w.])/(?:\w+/)", text_of(NOTEBOOK)) and "error" not in text_of(NOTEBOOK).split()
    assert (DOCS / "quickstart.ipynb").stat().st_size < 300_000
