"""The page of the example in a real Chromium, as a person uses it.

Skipped where there is no Chromium, no driver for it, or no Selenium: ``apt-get install chromium chromium-driver``,
``pip install -e '.[browser]'``. With ``IPC_SCREENSHOT`` set to the name of a file, the picture of the page in the
documents is made anew.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.example_child import ROOT, TIMEOUT, ExampleChild

if not (ROOT / "examples").is_dir():
    pytest.skip("a wheel has no examples: they are tested in the checkout", allow_module_level=True)
webdriver = pytest.importorskip("selenium.webdriver", reason="no Selenium: pip install -e '.[browser]'")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if CHROMIUM is None or DRIVER is None:
    pytest.skip("no browser: apt-get install chromium chromium-driver", allow_module_level=True)

from selenium.webdriver.common.keys import Keys  # noqa: E402  # only where there is one
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # as root it does not start with one; it is shown nothing but our page
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DESKTOP, PHONE = (1240, 900), (360, 740)
COMPLETE = "48 of 48"

CONTRAST = """
// Of every text, and of the edges of what can be operated: WCAG 2.2, 1.4.3 and 1.4.11.
const parse = (text) => {
  const [red, green, blue, alpha = 1] = text.match(/[\\d.]+/g).map(Number);
  return [red, green, blue, alpha];
};
const luminance = (colour) => {
  const [red, green, blue] = colour.slice(0, 3).map((value) => {
    value /= 255;
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
};
const contrast = (one, other) => {
  const [light, dark] = [luminance(one), luminance(other)].sort((a, b) => b - a);
  return (light + 0.05) / (dark + 0.05);
};
const backdrop = (element) => {
  for (let at = element; at !== null; at = at.parentElement) {
    const colour = parse(getComputedStyle(at).backgroundColor);
    if (colour[3] === 1) return colour;
  }
  return [255, 255, 255, 1];
};
const found = [];
let looked = 0;
for (const element of document.querySelectorAll("body *")) {
  if (!element.checkVisibility() || element.closest("option, svg")) continue;
  const style = getComputedStyle(element);
  const name = `${element.tagName.toLowerCase()}#${element.id}.${element.className}`;
  if ([...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) {
    looked += 1;
    const reached = contrast(parse(style.color), backdrop(element));
    if (reached < 4.5) found.push(`text of ${name}: ${reached.toFixed(2)}`);
  }
  if (element.matches("button, select")) {
    const outside = backdrop(element.parentElement);
    const edge = contrast(parse(style.borderTopColor), outside);
    if (edge < 3) found.push(`edge of ${name}: ${edge.toFixed(2)}`);
  }
}
return { looked, found };
"""


class Browser:
    """One window on the page of one example."""

    def __init__(self, driver: Any, example: ExampleChild) -> None:
        self.driver = driver
        self.example = example

    def open(self, size: tuple[int, int] = DESKTOP, *, dark: bool = False) -> None:
        self.resize(size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get(f"{self.example.origin}/")
        self.driver.execute_script("window.stillTheSame = true")
        self.wait(lambda: self.text("state") == "connected" and self.text("rendered") != "–")

    def resize(self, size: tuple[int, int]) -> None:
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def wait(self, holds: Callable[[], object]) -> None:
        WebDriverWait(self.driver, TIMEOUT, poll_frequency=0.05).until(lambda _: holds())

    def text(self, id_: str) -> str:
        return str(self.driver.execute_script("return document.getElementById(arguments[0]).innerText", id_))

    def click(self, id_: str) -> None:
        self.driver.find_element("id", id_).click()

    def attack(self, kind: str) -> None:
        """Let the hostile process loose, and wait until it is over."""
        self.click(kind)
        self.wait_for_the_end_of(kind)

    def wait_for_the_end_of(self, kind: str) -> None:
        """Of an attack. One that is under way when the execution process is killed ends in an error."""
        self.wait(lambda: not self.run("return document.getElementById(arguments[0]).matches('.busy')", kind))
        assert self.text("trouble-error") == ""

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def was_reloaded(self) -> bool:
        return not self.run("return window.stillTheSame === true")

    def render(self) -> None:
        self.click("render")
        self.wait(lambda: self.text("progress-text") != COMPLETE)  # the one before has gone

    def tiles(self) -> int:
        """Those that are really shown."""
        script = "return [...document.querySelectorAll('#picture img')].filter((i) => i.naturalWidth === 64).length"
        return int(self.run(script))

    def refusals(self) -> dict[str, int]:
        rows = self.run("return [...document.querySelectorAll('#refusals tr')].map((r) => r.innerText.split('\\t'))")
        return {category: int(count) for _, category, count in (row for row in rows if len(row) == 3)}

    def wait_for_refusals(self, category: str, count: int) -> None:
        self.wait(lambda: self.refusals().get(category) == count)

    def wait_until_down(self) -> None:
        """The process is shown to have ended first; until the link is, ``connected`` still means the old one."""
        self.wait(lambda: self.text("pid") == "not running" and self.text("state") != "connected")

    def wait_for_newest_line(self, word: str) -> None:
        self.wait(lambda: word in self.text("log").splitlines()[0])

    def console(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExampleChild]:
    with ExampleChild(tmp_path_factory.mktemp("example")) as child:
        yield child


@pytest.fixture
def browser(driver: Any, example: ExampleChild) -> Iterator[Browser]:
    """Fails the test if the browser has anything to complain of."""
    example.post("/execution/start")
    browser = Browser(driver, example)
    browser.console()
    yield browser
    complaints = browser.console()
    driver.get("about:blank")  # ends its stream of events
    assert complaints == []


def test_a_person_orders_a_picture_and_sees_it_grow(browser: Browser) -> None:
    browser.open()
    assert browser.run("return document.title").startswith("A picture over the link")
    browser.render()
    browser.wait(lambda: 0 < browser.tiles() < 48)
    assert browser.run("return document.getElementById('progress').value") > 0
    browser.wait(lambda: browser.text("progress-text") == COMPLETE and browser.tiles() == 48)
    label = browser.run("return document.getElementById('picture').getAttribute('aria-label')")
    assert label == "Valley of the seahorses, 48 of 48 tiles"


def test_the_panel_shows_how_the_link_is(browser: Browser) -> None:
    browser.open()
    assert browser.text("peer").startswith("127.0.0.1:")
    assert len(bytes.fromhex(browser.text("key-id"))) == 8
    assert int(browser.text("pid")) > 0
    accepted = int(browser.text("accepted"))
    browser.wait(lambda: int(browser.text("accepted")) > accepted)
    browser.wait(lambda: len(browser.run("return document.querySelector('polyline').points")) > 2)
    assert float(browser.text("round-trip").removesuffix(" ms")) > 0
    assert "Round trip of the last" in browser.run("return document.querySelector('svg').getAttribute('aria-label')")


def test_both_attacks_are_refused_and_shown(browser: Browser) -> None:
    browser.open()
    for button, category in [("replay", "authentication_failed"), ("forge", "signature_invalid")]:
        before = browser.refusals().get(category, 0)
        browser.attack(button)
        browser.wait_for_refusals(category, before + 1)
        browser.wait_for_newest_line(category)
    assert browser.text("state") == "connected"
    if name := os.environ.get("IPC_SCREENSHOT"):
        browser.render()
        browser.wait(lambda: browser.tiles() >= 31)
        browser.resize((DESKTOP[0], browser.run("return document.documentElement.scrollHeight")))
        assert browser.driver.save_screenshot(str(ROOT / name))
        browser.wait(lambda: browser.text("progress-text") == COMPLETE)


def test_the_execution_process_is_killed_and_back_without_a_reload(browser: Browser) -> None:
    browser.open()
    pid, key_id = browser.text("pid"), browser.text("key-id")
    browser.render()
    browser.wait(lambda: browser.tiles() > 0)
    browser.click("kill")
    browser.wait_until_down()
    shown = browser.tiles()
    assert shown < 48
    browser.click("start")
    browser.wait(lambda: browser.text("progress-text").startswith(COMPLETE) and browser.tiles() == 48)
    assert "asked for again" in browser.text("progress-text")
    browser.wait(lambda: browser.text("pid") not in (pid, "not running") and browser.text("key-id") != key_id)
    assert "connection_lost" in browser.text("lost")
    assert not browser.was_reloaded()


def test_what_is_ordered_while_it_is_down_waits_and_comes(browser: Browser) -> None:
    browser.open()
    browser.click("kill")
    browser.wait_until_down()
    browser.render()
    browser.wait(lambda: browser.text("waiting") == "48")
    browser.click("start")
    browser.wait(lambda: browser.text("progress-text") == COMPLETE)
    assert not browser.was_reloaded()


def test_what_cannot_be_done_is_said(browser: Browser) -> None:
    browser.open()
    browser.click("kill")
    browser.wait_until_down()
    browser.click("replay")
    browser.wait(lambda: browser.text("trouble-error").startswith("not possible now"))
    assert any("409" in complaint for complaint in browser.console())  # the browser's own line, and no other
    browser.click("start")
    browser.wait(lambda: browser.text("state") == "connected")


def test_the_keyboard_is_enough(browser: Browser) -> None:
    browser.open()

    def press(*keys: str) -> None:
        browser.driver.switch_to.active_element.send_keys(*keys)

    def tab_to(id_: str) -> None:
        for _ in range(12):
            press(Keys.TAB)
            if browser.run("return document.activeElement.id") == id_:
                outline = browser.run("return getComputedStyle(document.activeElement).outlineStyle")
                assert outline == "solid"
                return
        raise AssertionError(f"{id_} is not reached")

    browser.run("document.body.tabIndex = -1; document.body.focus()")
    order = ["scene", "render", "replay", "forge", "kill", "start", "log"]
    tab_to("scene")
    press("A")
    assert browser.run("return document.getElementById('scene').value") == "spiral"
    tab_to("render")
    press(Keys.ENTER)
    browser.wait(lambda: browser.text("progress-text") != COMPLETE)
    for id_ in order[2:4]:
        tab_to(id_)
    before = browser.refusals().get("signature_invalid", 0)
    press(Keys.SPACE)
    browser.wait_for_the_end_of("forge")
    browser.wait_for_refusals("signature_invalid", before + 1)
    tab_to("kill")
    press(Keys.ENTER)
    browser.wait_until_down()
    assert browser.run("return document.activeElement.id") == "kill"  # the focus is not lost
    tab_to("start")
    press(Keys.SPACE)
    browser.wait(lambda: browser.text("progress-text").startswith(COMPLETE) and browser.text("state") == "connected")
    tab_to("log")


def test_what_can_be_operated_has_a_name_and_what_is_shown_a_structure(browser: Browser) -> None:
    browser.open()
    for element in browser.driver.find_elements("css selector", "button, select, progress, output, [role=img], ol"):
        assert element.accessible_name, element.get_attribute("outerHTML")
    assert len(browser.driver.find_elements("css selector", "main")) == 1
    assert len(browser.driver.find_elements("css selector", "h1")) == 1
    assert browser.run("return document.documentElement.lang") == "en"
    ids = browser.run("return [...document.querySelectorAll('[id]')].map((element) => element.id)")
    assert len(ids) == len(set(ids))
    referred = browser.run(
        "return ['aria-labelledby', 'aria-describedby', 'for'].flatMap((name) => "
        "[...document.querySelectorAll(`[${name}]`)].map((element) => element.getAttribute(name)))"
    )
    assert set(referred) <= set(ids)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_contrast_holds(browser: Browser, dark: bool) -> None:
    browser.open(dark=dark)
    browser.attack("forge")  # lines of both tones, and rows
    browser.click("kill")
    browser.wait_until_down()
    browser.run("for (const id of ['order-error', 'trouble-error']) document.getElementById(id).textContent = 'x'")
    browser.run("document.getElementById('offline').hidden = false")
    background = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(13, 19, 28)") is dark
    result = browser.run(CONTRAST)
    assert result["looked"] > 40
    assert result["found"] == []
    browser.click("start")
    browser.wait(lambda: browser.text("state") == "connected")


def test_a_phone_shows_it_all_without_scrolling_sideways(browser: Browser) -> None:
    browser.open(PHONE)
    browser.attack("forge")
    browser.wait(lambda: "signature_invalid" in browser.text("log"))
    assert browser.run("return innerWidth") == PHONE[0]
    assert browser.run("return document.documentElement.scrollWidth") <= PHONE[0]
    beyond = browser.run(
        "return [...document.querySelectorAll('body *')].filter((element) => "
        "element.getBoundingClientRect().right > innerWidth).map((element) => element.outerHTML.slice(0, 80))"
    )
    assert beyond == []
    small = browser.run(
        "return [...document.querySelectorAll('button, select')].filter((element) => "
        "element.getBoundingClientRect().height < 44).map((element) => element.id)"
    )
    assert small == []


def test_what_a_message_says_is_shown_as_text(browser: Browser) -> None:
    browser.open()
    browser.run("addLine({ line: 1e9, text: '<img src=x onerror=document.title=1>', tone: 'plain' })")
    assert browser.text("log").startswith("<img src=x")
    assert browser.run("return document.querySelector('#log img')") is None


def test_a_page_that_was_left_holds_no_stream_and_goes_on_when_it_is_back(browser: Browser) -> None:
    """A browser keeps such pages for a while. With six streams open, it would open no further connection to us."""
    browser.open()
    browser.run("dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true }))")
    assert browser.run("return events.readyState === EventSource.CLOSED")
    accepted = browser.text("accepted")
    browser.run("dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))")
    browser.wait(lambda: browser.text("accepted") != accepted)


def test_the_page_says_when_the_web_process_is_gone(driver: Any, tmp_path: Path) -> None:
    with ExampleChild(tmp_path) as example:
        browser = Browser(driver, example)
        browser.open()
        notice = driver.find_element("id", "offline")
        assert not notice.is_displayed()
        example.end()
        browser.wait(notice.is_displayed)
    driver.get("about:blank")
    browser.console()
