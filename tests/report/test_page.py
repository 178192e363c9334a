"""The page: self-contained, every text escaped, what is not measured left out."""

from __future__ import annotations

import dataclasses
import html
import html.parser
import re

import pytest

from hnerv.errors import UserError
from hnerv.report.contents import RunReport, ShownFrame
from hnerv.report.page import changed_settings, render_report, summary_rows, write_report

pytestmark = pytest.mark.usefixtures("undrawn")
EVIL = '<script>alert("x")</script>&<img src=http://example.com/a.png>'
PIXEL = "data:image/webp;base64,UklGRg=="


@pytest.fixture
def page(rows):
    """page(run, ..., frames=True, missing=()) -> its text, after the checks that hold for every page."""

    def build(*runs, frames: bool = True, missing: tuple[str, ...] = ()) -> str:
        shown = [ShownFrame(row, "best" * (row.frame == 3), PIXEL, PIXEL, PIXEL) for row in rows() if frames]
        text = render_report([RunReport(run, shown, list(missing)) for run in runs])
        assert all(address.startswith(("data:", "#")) for address in addresses(text))
        return text

    return build


class Tags(html.parser.HTMLParser):
    """Start tags with their attributes, and whether all were closed."""

    VOID = {"meta", "link", "img", "input", "br"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag


def addresses(text: str) -> list[str]:
    """All that a browser might fetch."""
    tags = Tags(text)
    assert not tags.open
    return [value for _, attrs in tags.found for key, value in attrs.items() if key in ("src", "href", "srcset")]


def test_one_run(results, page):
    run = results()
    text = page(run)
    assert len(re.findall('class="shot"', text)) == 12 and text.count(" hidden>") == 11
    assert "unseen frame 5" in text and "<i>best</i>" in text and "Settings that differ" not in text
    parameters = f"{run.record.parameters:,}"
    for words in ("33.00", "32.00", parameters, "50.0", "/films/kitchen.mp4", "similarity of unseen frames"):
        assert words in text
    assert ["0.80 ± 0.10"] in [cells[0] for label, _, cells in summary_rows([run]) if label.startswith("gap")]
    figures = re.findall(r"<figure>.*?</figure>", page(run, frames=False), re.S)
    assert sum("imilarity" in figure for figure in figures) >= 6
    for figure in figures:
        assert ("targets: OpenCLIP of run" in figure) or not re.search("imilarity|CLIP", figure)


def test_texts_from_files_are_escaped(results, page):
    run = results(EVIL, settings={"data": EVIL}, environment={"command": [EVIL], "commit": EVIL})
    parts = {key: dataclasses.replace(getattr(run.record, key), source=EVIL) for key in ("targets", "video")}
    run = run._replace(record=dataclasses.replace(run.record, **parts))
    for text in (page(run, missing=(EVIL,)), page(run, results("other"))):
        assert "<img src=http" not in text and "<script>alert" not in text and "&lt;script&gt;alert" in text


def test_the_command_can_be_pasted_into_a_shell(results, page):
    run = results(environment={"command": ["train_patch_dual.py", "--exp-id", "a b", "--crop", ""]})
    assert "<td>python train_patch_dual.py --exp-id 'a b' --crop ''</td>" in html.unescape(page(run))


def test_several_runs_side_by_side(results, page):
    runs = [results("first"), results("second", settings={"lr": 0.5, "act": "gelu"}), results("third", kind="none")]
    text = page(*runs)
    assert changed_settings(runs) == {"act": ["sin", "gelu", "sin"], "lr": ["0.004", "0.5", "0.004"]}
    assert "Settings that differ" in text and text.count('class="slider"') == 3
    assert "OpenCLIP of second" in text and "none (RGB head alone)" in text
    assert "the runs have the same configuration" in page(results("a"), results("b"))


def test_the_baselines_of_the_head(results, baselines, page):
    text = page(results(**baselines()))
    (table,) = re.findall(r'aria-label="Baselines of run">(.*?)</table>', text, flags=re.DOTALL)
    assert re.findall(r'scope="col">(.*?)</th>', table) == ["bytes", "cosine", "centred", "recall@1", "text recall@1"]
    rows = [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", line) for line in re.findall(r"<tr><th .*?</tr>", table)]
    assert rows == [
        ["CLIP head", "1,234", "0.950 / 0.950", "0.900 / 0.900", "0.500 / 0.500", "0.250"],
        ["mean", "16", "0.700 / 0.700", "0.010 / 0.010", "– / –", "–"],
        ["neighbours", "–", "– / 0.950", "– / 0.990", "– / 0.500", "–"],
        ["PCA table", "1,200", "0.950 / 0.950", "0.800 / 0.800", "0.500 / 0.500", "0.125"],
    ]
    assert "at epoch 6. The size of the CLIP head is estimated. The text columns use 8 queries." in text
    assert "CLIP head compared with baselines</h3>" not in page(results())


def test_a_run_that_has_just_begun(results, page):
    empty = {"curves": {}, "values": {}, "values_epoch": 0, "summary": {}, "frames": [], "patches": []}
    run = results()._replace(**empty, environment={})
    text = page(run, frames=False, missing=("There is no checkpoint.",))
    assert "There is no checkpoint." in text and "No epoch has been logged." in text and "No frames to show" in text
    assert [label for label, *_ in summary_rows([run])] == ["coded parameters", "rate, bits per pixel", "epochs"]


def test_without_unseen_frames_the_page_does_not_mention_them(results, without_val, page):
    run = without_val(results())
    values = {tag: value for tag, value in run.values.items() if "/val_" not in tag and "Gap" not in tag}
    frames, patches = ([row for row in table if row.seen] for table in (run.frames, run.patches))
    run = run._replace(values=values, frames=frames, patches=patches)
    cells = {label: cells for label, _, cells in summary_rows([run])}
    assert cells["PSNR, mean of patches, dB"] == [["33.00", "–"]] and not [label for label in cells if "gap" in label]
    text = page(run, frames=False)
    assert "no unseen frames" in text and ", unseen frames" not in text


def test_the_page_is_written_completely_or_not_at_all(results, tmp_path):
    path, reports = tmp_path / "new" / "page.html", [RunReport(results(), [], [])]
    size = write_report(path, reports)
    assert path.stat().st_size == size and [p.name for p in path.parent.iterdir()] == ["page.html"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*: pass another file with --output"):
        write_report(tmp_path / "file" / "page.html", reports)
