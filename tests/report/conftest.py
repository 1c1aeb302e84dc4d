"""Chromium for the tests of the page; they are left out where it is not installed."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.trials import ledger_of

from thrifty.report.document import study_json
from thrifty.report.page import page
from thrifty.studies.findings import Findings

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--window-size=1400,1000")


class Browser:
    """Chromium on one page, and what a reader does there."""

    def __init__(self, folder: Path) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
            options.add_argument(flag)
        options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.folder = folder
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))

    def open(self, trials, failures=(), *, store="study", **search):
        self.show(study_json(Findings.of(trials, ledger_of(trials), failures)) | search, store)

    def show(self, document, store="study", compared=None):
        path = self.folder / "page.html"
        path.write_text(page(document, store=store, requests_per_day=1000, compared=compared))
        self.driver.get_log("browser")
        self.driver.get_log("performance")
        self.driver.get(path.as_uri())
        self.until(lambda: self.js("return document.documentElement.dataset.ready") == "")  # drawn, which is after it is loaded

    def js(self, code, *values):
        return self.driver.execute_script(code, *values)

    def one(self, selector):
        return self.driver.find_element("css selector", selector)

    def texts(self, selector):
        return self.js("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector)

    def set(self, id, value, event="change"):
        """Give a control a value, as a reader would."""
        self.js("const e = document.getElementById(arguments[0]); if (e.type === 'checkbox') e.checked = arguments[1]; "
                "else e.value = arguments[1]; e.dispatchEvent(new Event(arguments[2]))", id, value, event)

    def points(self, chart="scatter"):
        """The trials drawn, by id: x, y and the symbol."""
        return {id: (x, y, symbol) for id, x, y, symbol in self.js(
            "return document.getElementById(arguments[0]).data.filter((t) => t.customdata).flatMap((t) => "
            "t.customdata.map((id, i) => [id, t.x[i], t.y[i], t.marker.symbol]))", chart)}

    def chosen(self):
        return self.js("return document.querySelector('tr.chosen').dataset.id")

    def listed(self):
        return self.js("return [...document.querySelectorAll('#table tbody tr')].map((row) => row.dataset.id)")

    def drag(self, chart, start, end):
        """From one place of the plot to another, as shares of its width and height."""
        from selenium.webdriver.common.action_chains import ActionChains

        plot = self.one(f"#{chart} .nsewdrag")
        self.js("arguments[0].scrollIntoView({block: 'center'})", plot)
        width, height = plot.size["width"], plot.size["height"]
        (x0, y0), (x1, y1) = [((x - 0.5) * width, (y - 0.5) * height) for x, y in (start, end)]
        half = int(x1 - x0) // 2, int(y1 - y0) // 2
        moves = ActionChains(self.driver, duration=50).move_to_element_with_offset(plot, int(x0), int(y0))
        moves.click_and_hold().move_by_offset(*half).move_by_offset(*half).release().perform()

    def until(self, condition):
        from selenium.webdriver.support.wait import WebDriverWait

        return WebDriverWait(self.driver, 20, poll_frequency=0.05).until(lambda _: condition())

    def complaints(self):
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self):
        """What the page asked for; Chromium's own first tab asks for its parts too."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [each["request"]["url"] for each in asked if not each["documentURL"].startswith(("chrome:", "chrome-untrusted:"))]


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    pytest.importorskip("selenium", reason="selenium is not installed")
    if not (CHROMIUM and DRIVER):
        pytest.skip("chromium and chromedriver are not both on PATH")
    made = Browser(tmp_path_factory.mktemp("browser"))
    yield made
    made.driver.quit()


@pytest.fixture
def quiet(browser) -> Iterator[Browser]:
    """A browser that must have nothing to complain of, and must not have asked for anything but the page."""
    yield browser
    assert browser.complaints() == []
    assert [url for url in browser.requests() if not url.startswith(("file:", "data:", "blob:"))] == []
