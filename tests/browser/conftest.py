"""Headless Chromium, driven through its own driver: nothing is downloaded, and no name but this machine's resolves.

Everything under this folder is marked `browser`, and skipped in words where there is no Chromium.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("browser")


class Page:
    """What a test asks of the browser."""

    def __init__(self, driver) -> None:
        self.driver = driver

    def resize(self, width: int, height: int = 900) -> None:
        """The size a page sees, also below the least width of a window."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def open(self, url: str) -> None:
        """Forgets what earlier pages logged."""
        self.driver.get("about:blank")
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)
        self.driver.get(url)

    def run(self, script: str, *values: object):
        """`return ...` of JavaScript."""
        return self.driver.execute_script(script, *values)

    def wait(self, script: str, seconds: float = 20) -> object:
        """The first true value of a script, which may fail while the page is being rebuilt."""
        from selenium.common.exceptions import JavascriptException
        from selenium.webdriver.support.ui import WebDriverWait

        patient = WebDriverWait(self.driver, seconds, poll_frequency=0.1, ignored_exceptions=[JavascriptException])
        return patient.until(lambda _: self.run(script), script)

    def text(self) -> str:
        """All that is written in the page, in the shadow trees of components and in frames too."""
        return self.run(TEXT)

    def wait_for_text(self, words: str) -> None:
        """Until the page says so."""
        self.wait(TEXT.replace("return texts", f"const words = {json.dumps(words)}; return texts") + ".includes(words)")

    def errors(self) -> list[str]:
        """What the console holds against the page."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def requests(self) -> list[str]:
        """Addresses that were asked for since `open`, data and blob addresses left out."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith(("data:", "blob:"))]

    def screenshot(self, path: Path, whole: bool = False) -> bytes:
        """PNG; `whole` takes the page down to its end."""
        taken = self.driver.execute_cdp_cmd(
            "Page.captureScreenshot", {"captureBeyondViewport": whole, **self._clip(whole)}
        )
        path.write_bytes(base64.b64decode(taken["data"]))
        return path.read_bytes()

    def _clip(self, whole: bool) -> dict:
        if not whole:
            return {}
        width, height = self.run("const d = document.documentElement; return [d.clientWidth, d.scrollHeight]")
        return {"clip": {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}}


TEXT = """
const texts = [];
const walk = (node) => {
  if (node.nodeType === Node.TEXT_NODE) texts.push(node.textContent);
  if (["SCRIPT", "STYLE", "TEMPLATE"].includes(node.nodeName)) return;
  for (const child of (node.shadowRoot || node).childNodes) walk(child);
  if (node.shadowRoot) for (const child of node.childNodes) walk(child);
  if (node.nodeName === "IFRAME" && node.contentDocument) walk(node.contentDocument.body);
};
walk(document.body);
return texts.join(" ").replace(/\\s+/g, " ")"""


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    if not CHROMIUM or not DRIVER:
        pytest.skip("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--no-proxy-server",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=DRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture
def page(chromium) -> Page:
    """A page of the browser that all tests share, 1280 pixels wide."""
    page = Page(chromium)
    page.resize(1280)
    return page
