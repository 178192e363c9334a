"""Pages of the site that are stored outside docs/: README, CHANGELOG, and the results in benchmarks/.

In the repository they are linked as `../README.md`; on the site they are pages next to the others.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CHANGELOG.md", "benchmarks/LOG.md", "benchmarks/SCALE.md")


def on_files(files, config):
    for name in (*PAGES, *(path.relative_to(ROOT).as_posix() for path in ROOT.glob("benchmarks/data/*.csv"))):
        files.append(File.generated(config, name, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page, **_) -> str:
    """Links as the site has them; those to other files of the repository become plain text."""
    markdown = re.sub(r"\]\((?:\.\./)+", "](" + "../" * page.file.src_uri.count("/"), markdown)
    if page.file.src_uri in PAGES:
        markdown = re.sub(r"\]\(((?:\.\./)*)docs/", r"](\1", markdown)
    return re.sub(r"\[([^\]]+)\]\((?!https?:)[^)#]*(?:LICENSE|\.py|\.toml|/)\)", r"\1", markdown)
