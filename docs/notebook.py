"""Run docs/quickstart.ipynb in an empty folder and store its outputs, without what changes from run to run.

    python docs/notebook.py

Run it after a change of the cells. `hooks.py` shows the stored notebook as a page of the site.
"""

from __future__ import annotations

import argparse
import base64
import io
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

PATH = Path(__file__).with_name("quickstart.ipynb")
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def executed(folder: str | Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a run of all its cells in this folder.

    Raises CellExecutionError where a cell fails. Cells keep no times, so that two runs differ in their outputs alone.
    """
    notebook = nbformat.read(PATH, as_version=4)
    notebook.metadata = METADATA
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number:02}", {}
    resources = {"metadata": {"path": str(folder)}}
    return NotebookClient(
        notebook, timeout=600, kernel_name="python3", record_timing=False, resources=resources
    ).execute()


def in_256_colours(png: str) -> str:
    """A picture in base64, as outputs hold it, with a palette: a third of the size in the history of the repository."""
    small = io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        notebook = executed(folder)
    notebook.metadata = METADATA  # the client has added the version of Python
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if "image/png" in output.get("data", {}):
            output.data["image/png"] = in_256_colours(output.data["image/png"])
    nbformat.write(notebook, PATH)


if __name__ == "__main__":
    main()
