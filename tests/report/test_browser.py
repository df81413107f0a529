"""The page in a real browser: it fits a phone and a desk, loads nothing and complains of nothing."""

import pytest
from report.browser import Browser, find_chromium
from report.runs import synthetic_run
from report.test_page import HOSTILE

from megatron_yuyuan.report.page import page
from megatron_yuyuan.report.record import read_run


@pytest.fixture(scope="module")
def browser():
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium is installed")
    with Browser(program) as browser:
        yield browser


@pytest.fixture(scope="module", params=["ordinary", "hostile"])
def path(request, tmp_path_factory, repository):
    directory = tmp_path_factory.mktemp("run")
    shard = str(repository / "tests" / "golden" / "text_text_document")
    text = HOSTILE if request.param == "hostile" else "the disease"
    run = synthetic_run(directory / "run", shard, text)
    (directory / "report.html").write_text(page(read_run(run)))
    return directory / "report.html"


COMPLAINTS = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_and_loads_nothing(browser, path, tmp_path, width):
    browser.open(path, width, dark=width == 390)
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert not [event["params"] for event in browser.heard if event["method"] in COMPLAINTS]
    asked = [e["params"]["request"]["url"] for e in browser.heard
             if e["method"] == "Network.requestWillBeSent"]  # fmt: skip
    assert asked == [path.absolute().as_uri()]
    assert browser.evaluate("document.querySelectorAll('script, img, link').length") == 0
    assert browser.evaluate("document.querySelectorAll('figure svg polyline').length") >= 6
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 50_000


MIDDLE = """(() => {
    const place = document.querySelector('.answers div');
    place.scrollIntoView({block: 'center', behavior: 'instant'});
    const {x, y, width, height} = place.getBoundingClientRect();
    return [x + width / 2, y + height / 2];
})()"""
"""Of the first place of a chart that answers to the pointer."""


def test_a_value_appears_under_the_pointer(browser, path):
    browser.open(path, 1280)
    shown = "getComputedStyle(document.querySelector('.answers span')).display"
    assert browser.evaluate(shown) == "none"
    place = browser.evaluate(MIDDLE)
    browser.ask("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])
    assert browser.evaluate(shown) == "block"


def test_a_page_that_asks_for_something_would_be_caught(browser, tmp_path):
    wide = (
        '<img src="other.png"><div style="width: 2000px">x</div><script>console.error(1)</script>'
    )
    (tmp_path / "bad.html").write_text(f"<!doctype html>{wide}")
    browser.open(tmp_path / "bad.html", 1280)
    methods = [event["method"] for event in browser.heard]
    assert methods.count("Network.requestWillBeSent") == 2
    assert "Runtime.consoleAPICalled" in methods
    assert browser.evaluate("document.documentElement.scrollWidth") > 1280
