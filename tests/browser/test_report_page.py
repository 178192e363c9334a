"""The report in Chromium, on a desktop and on a phone: it is self-contained, fits, and its slider works."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from hnerv.evaluation import cost
from hnerv.report.contents import ReportOptions, collect
from hnerv.report.page import write_report

WIDTHS = [1280, 390]


@pytest.fixture(scope="module")
def pages(tmp_path_factory, finished) -> dict[str, str]:
    """Addresses of the page of one run, of two side by side, and of one with long names and texts in markup."""
    folder = tmp_path_factory.mktemp("pages")
    one = Path(shutil.copytree(finished, folder / "kitchen"))
    two = Path(shutil.copytree(finished, folder / ("a_long_name_without_a_place_to_break_" * 4)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "decode_fps", lambda model: 100.0)
        reports = collect([one, two], ReportOptions(torch.device("cpu"), frames=6))
    name = "<script>document.title='broken'</script><img src=http://127.0.0.1:9/x.png>"
    evil = reports[0].run._replace(name=name, curves={}, frames=[], patches=[])
    injected = reports[0]._replace(run=evil, shown=[], missing=["<img src=http://127.0.0.1:9/y.png>"])
    paths = {name: folder / f"{name}.html" for name in ("one", "several", "evil")}
    for path, chosen in zip(paths.values(), (reports[:1], reports, [injected]), strict=True):
        write_report(path, chosen)
    return {name: path.as_uri() for name, path in paths.items()}


def shots(folder: Path) -> Path:
    """The folder for screenshots: HNERV_SCREENSHOTS if set."""
    kept = Path(os.environ.get("HNERV_SCREENSHOTS") or folder)
    kept.mkdir(parents=True, exist_ok=True)
    return kept


TOO_WIDE = """
const edge = document.documentElement.clientWidth + 0.5;
return [...document.querySelectorAll("body *")]
  .filter((e) => !e.closest(".wide table") && e.getBoundingClientRect().right > edge)
  .map((e) => `${e.tagName} ${e.className} ${e.textContent.slice(0, 40)}`);
"""
"""Elements wider than the page; tables with a column per run scroll in a box of their own."""


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["one", "several", "evil"])
def test_it_stands_alone_and_fits(page, pages, tmp_path, name, width):
    page.resize(width)
    page.open(pages[name])
    page.wait("return [...document.images].every((image) => image.complete)")
    assert page.run("return [...document.images].filter((i) => !i.hidden && i.naturalWidth === 0).length") == 0
    assert page.errors() == []
    assert page.requests() == [pages[name]]
    assert page.run(TOO_WIDE) == []
    assert page.run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert len(page.screenshot(shots(tmp_path) / f"report_{name}_{width}.png", whole=True)) > 20_000
    for words in ("Findings", "Training curves", "What the numbers mean", "targets.safetensors"):
        assert words in page.text()
    assert page.run("return document.title") != "broken"


@pytest.mark.parametrize("width", WIDTHS)
def test_the_slider_changes_the_frame(page, pages, width):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    page.resize(width)
    page.open(pages["one"])
    visible = "return [...document.querySelectorAll('.shot')].filter((s) => s.offsetHeight).map((s) => s.dataset.frame)"
    frames = page.run("return [...document.querySelectorAll('.shot')].map((shot) => shot.dataset.frame)")
    assert len(frames) == 6 and page.run(visible) == frames[:1]
    slider = page.driver.find_element(By.CSS_SELECTOR, "input[type=range]")
    slider.send_keys(Keys.ARROW_RIGHT)
    assert page.run(visible) == frames[1:2]
    slider.send_keys(Keys.END)
    assert page.run(visible) == frames[-1:]
    assert page.run("return document.querySelector('output').textContent") == frames[-1]
    seen = page.run("return [...document.querySelectorAll('.shot:not([hidden]) img')].map((i) => i.naturalWidth)")
    assert seen == [64, 64, 64] and page.errors() == []


def test_sliders_of_several_runs_move_together(page, pages):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    page.open(pages["several"])
    page.driver.find_elements(By.CSS_SELECTOR, "input[type=range]")[1].send_keys(Keys.END)
    visible = page.run(
        "return [...document.querySelectorAll('.shot')].filter((s) => s.offsetHeight).map((s) => s.dataset.frame)"
    )
    assert len(visible) == 2 and visible[0] == visible[1]
    assert page.run("return [...document.querySelectorAll('input')].map((input) => input.value)") == ["5", "5"]
