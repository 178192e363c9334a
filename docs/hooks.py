"""Pages of the site that are not Markdown in docs/: README, CHANGELOG, the results in benchmarks/, and the notebook.

In the repository they are linked as `../README.md`; on the site they are pages next to the others.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CHANGELOG.md", "benchmarks/LOG.md", "benchmarks/SCALE.md")


def on_files(files, config):
    for name in (*PAGES, *(path.relative_to(ROOT).as_posix() for path in ROOT.glob("benchmarks/data/*.csv"))):
        files.append(File.generated(config, name, content=(ROOT / name).read_text(encoding="utf-8")))
    text, pictures = notebook_page((ROOT / "docs" / "quickstart.ipynb").read_text(encoding="utf-8"))
    files.append(File.generated(config, "quickstart.md", content=text))
    for name, png in pictures.items():
        files.append(File.generated(config, name, content=png))
    return files


def notebook_page(notebook: str) -> tuple[str, dict[str, bytes]]:
    """A notebook with outputs, as JSON -> Markdown, and {name: PNG} of the pictures that it shows."""
    parts, pictures = [], {}
    for cell in json.loads(notebook)["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"quickstart-{len(pictures)}.png"
                pictures[name] = base64.b64decode(data["image/png"])
                parts.append(f"![Output of the cell above]({name})")
            else:
                text = "".join(output.get("text") or data["text/plain"])
                parts.append(f"```text\n{text.rstrip()}\n```")
    parts.append("[This page as a notebook](quickstart.ipynb)")
    return "\n\n".join(parts), pictures


def on_page_markdown(markdown: str, page, **_) -> str:
    """Links as the site has them; those to other files of the repository become plain text."""
    if page.file.src_uri != "quickstart.md":
        markdown = markdown.replace("quickstart.ipynb)", "quickstart.md)")
    markdown = re.sub(r"\]\((?:\.\./)+", "](" + "../" * page.file.src_uri.count("/"), markdown)
    if page.file.src_uri in PAGES:
        markdown = re.sub(r"\]\(((?:\.\./)*)docs/", r"](\1", markdown)
    return re.sub(r"\[([^\]]+)\]\((?!https?:)[^)#]*(?:LICENSE|\.py|\.toml|/)\)", r"\1", markdown)
