"""All cells of docs/quickstart.ipynb run, without network; it is stored with outputs that are small and clean."""

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


def kinds_of(cell: nbformat.NotebookNode) -> list[tuple[str, ...]]:
    """The outputs of a cell: what each is, and its formats."""
    return [(output.output_type, *sorted(output.get("data", {}))) for output in cell.get("outputs", [])]


def test_all_cells_run_and_show_what_is_stored(again):
    for cell, stored in zip(again.cells, NOTEBOOK.cells, strict=True):
        assert kinds_of(cell) == kinds_of(stored), stored.source
    ran, kept = (re.findall(r"PSNR ([\d.]+) -> ([\d.]+) dB", text_of(notebook)) for notebook in (again, NOTEBOOK))
    assert [*map(float, ran[0])] == pytest.approx([*map(float, kept[0])], abs=0.3)


def test_the_stored_notebook_is_clean_and_small():
    """It has the outputs of one run in order, without times, versions and paths of the machine."""
    code = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    assert NOTEBOOK.metadata == runpy.run_path(str(DOCS / "notebook.py"))["METADATA"]
    assert not any(cell.metadata for cell in NOTEBOOK.cells)
    assert not re.search(r"(?<!\S)/\w+/", text_of(NOTEBOOK)) and "RANDOM encoder" in text_of(NOTEBOOK)
    assert (DOCS / "quickstart.ipynb").stat().st_size < 300_000
