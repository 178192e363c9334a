"""The page: whole in itself, every text escaped, what is not measured left out."""

from __future__ import annotations

import dataclasses
import html.parser
import re

import pytest

from hnerv.errors import UserError
from hnerv.report.page import Story, changed_settings, render, summary_rows, write_page
from hnerv.report.pictures import Shown

pytestmark = pytest.mark.usefixtures("undrawn")
EVIL = '<script>alert("x")</script>&<img src=http://example.com/a.png>'
PIXEL = "data:image/webp;base64,UklGRg=="


@pytest.fixture
def shown(rows):
    return [Shown(row, why, PIXEL, PIXEL, PIXEL) for row, why in zip(rows(), ["worst", *[""] * 11], strict=True)]


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


def test_one_run(numbers, shown):
    text = render([Story(numbers(), shown, [])])
    assert all(a.startswith(("data:", "#")) for a in addresses(text))
    assert len(re.findall('class="shot"', text)) == 12 and text.count(" hidden>") == 11
    assert "unseen frame 5" in text and "OpenCLIP of run" in text and "Settings that differ" not in text
    for words in ("33.00", "32.00", "1,024", "50.0", "/films/kitchen.mp4", "similarity of unseen frames"):
        assert words in text


def test_what_similarity_is_to_stands_beside_each_plot_of_it(numbers):
    text = render([Story(numbers(), [], [])])
    figures = re.findall(r"<figure>.*?</figure>", text, re.S)
    assert sum("imilarity" in figure for figure in figures) >= 6
    for figure in figures:
        assert ("targets: OpenCLIP of run" in figure) or not re.search("imilarity|CLIP", figure)


def test_texts_from_files_are_escaped(numbers, shown):
    run = numbers(EVIL, settings={"data": EVIL}, environment={"command": [EVIL], "commit": EVIL})
    parts = {key: dataclasses.replace(getattr(run.record, key), source=EVIL) for key in ("targets", "video")}
    run = run._replace(record=dataclasses.replace(run.record, **parts))
    stories = [Story(run, shown, [EVIL]), Story(numbers("other"), shown, [])]
    for text in (render(stories), render(stories[:1])):
        assert "<img src=http" not in text and "<script>alert" not in text and "&lt;script&gt;alert" in text
        assert all(a.startswith(("data:", "#")) for a in addresses(text))


def test_the_command_can_be_pasted_into_a_shell(numbers):
    run = numbers(environment={"command": ["train_patch_dual.py", "--exp-id", "a b", "--crop", ""]})
    text = html.unescape(render([Story(run, [], [])]))
    assert "<td>python train_patch_dual.py --exp-id 'a b' --crop ''</td>" in text


def test_several_runs_side_by_side(numbers, shown):
    runs = [numbers("first"), numbers("second", settings={"lr": 0.5, "act": "gelu"}), numbers("third", kind="none")]
    text = render([Story(run, shown, []) for run in runs])
    assert changed_settings(runs) == {"act": ["sin", "gelu", "sin"], "lr": ["0.004", "0.5", "0.004"]}
    assert "Settings that differ" in text and text.count('class="slider"') == 3
    assert "OpenCLIP of second" in text and "none (RGB head alone)" in text
    assert all(a.startswith(("data:", "#")) for a in addresses(text))


def test_the_baselines_stand_beside_the_head(numbers, beside):
    text = render([Story(numbers(**beside()), [], [])])
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
    assert "CLIP head compared with baselines</h3>" not in render([Story(numbers(), [], [])])


def test_equal_configurations(numbers):
    text = render([Story(numbers("a"), [], []), Story(numbers("b"), [], [])])
    assert "the runs have the same configuration" in text


def test_a_run_that_has_just_begun(numbers):
    run = numbers(curves={})._replace(
        curves={}, values={}, values_epoch=0, summary={}, frames=[], patches=[], environment={}
    )
    text = render([Story(run, [], ["There is no checkpoint."])])
    assert "There is no checkpoint." in text and "No epoch has been logged." in text and "No frames to show" in text
    assert {row.label for row in summary_rows([run])} == {"coded parameters", "rate, bits per pixel", "epochs"}
    assert not addresses(text)[0].startswith("http")


def test_without_unseen_frames_nothing_is_said_of_them(numbers, rows):
    run = numbers()
    run = run._replace(record=dataclasses.replace(run.record, scene=dataclasses.replace(run.record.scene, val=())))
    values = {tag: value for tag, value in run.values.items() if "/val_" not in tag and "Gap" not in tag}
    seen = [[row for row in table if row.seen] for table in (run.frames, run.patches)]
    run = run._replace(values=values, frames=seen[0], patches=seen[1])
    rows_ = {row.label: row.cells for row in summary_rows([run])}
    assert rows_["PSNR, mean of patches, dB"] == [["33.00", "–"]] and "generalisation gap, dB" not in rows_
    text = render([Story(run, [], [])])
    assert "no unseen frames" in text and ", unseen frames" not in text


def test_the_page_is_written_whole_or_not_at_all(numbers, tmp_path):
    path = tmp_path / "new" / "page.html"
    size = write_page(path, [Story(numbers(), [], [])])
    assert path.stat().st_size == size and [p.name for p in path.parent.iterdir()] == ["page.html"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*: pass another file with --output"):
        write_page(tmp_path / "file" / "page.html", [Story(numbers(), [], [])])
