"""Chromium for the tests of pages. Screenshots go to build/screenshots."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

webdriver = pytest.importorskip("selenium.webdriver")
Select = pytest.importorskip("selenium.webdriver.support.select").Select
WebDriverWait = pytest.importorskip("selenium.webdriver.support.wait").WebDriverWait

SCREENSHOTS = Path(__file__).parents[1] / "build" / "screenshots"
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_chromium = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs Chromium: apt-get install chromium chromium-driver"
)
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_CONTRAST = """
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const rgba = (colours) => {
  canvas.clearRect(0, 0, 1, 1);
  for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
  return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
};
const luminance = (rgb) => {
  const [r, g, b] = rgb.map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const poor = [];
for (const e of document.querySelectorAll("body *")) {
  const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  if (!own || !e.checkVisibility() || e.closest("select") || e.classList.contains("skip")) continue;
  const style = getComputedStyle(e);
  const behind = [];
  for (let up = e; up; up = up.parentElement) behind.unshift(getComputedStyle(up).backgroundColor);
  const text = e.namespaceURI.endsWith("svg") ? style.fill : style.color;
  const [a, b] = [luminance(rgba([...behind, text])), luminance(rgba(behind))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) poor.push(`${ratio.toFixed(2)} ${e.className} ${e.textContent.slice(0, 40)}`);
}
return poor;
"""


class Page:
    """An open page, with what the tests ask of it."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def all(self, selector: str) -> list[Any]:
        """The elements that are displayed."""
        query = "return [...document.querySelectorAll(arguments[0])].filter((e) => e.checkVisibility())"
        return self.script(query, selector)

    def one(self, selector: str) -> Any:
        return self.all(selector)[0]

    def choose(self, control: str, text: str) -> None:
        Select(self.one(f"#{control}")).select_by_visible_text(text)

    def script(self, body: str, *arguments: Any) -> Any:
        return self.browser.execute_script(body, *arguments)

    def poor_contrasts(self) -> list[str]:
        """Displayed texts that stand out from what is behind them by less than 4.5 to 1."""
        return self.script(_CONTRAST)

    def wait_for(self, selector: str) -> Any:
        """The first displayed element, as soon as there is one."""
        return WebDriverWait(self.browser, 20).until(lambda _: self.all(selector))[0]

    def press(self, key: str) -> None:
        webdriver.ActionChains(self.browser).send_keys(key).perform()

    def colour(self, selector: str, name: str) -> tuple[int, ...]:
        value = self.one(selector).value_of_css_property(name)
        return tuple(int(float(part)) for part in value[value.index("(") + 1 : -1].split(",")[:3])


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in FLAGS:
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


@contextmanager
def opened(browser: Any, url: str, name: str, width: int = 1280, scheme: str = "light") -> Iterator[Page]:
    """The page at `url` on a screen so wide; afterwards a screenshot is kept and the page has logged no error."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    wishes = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
    features = [{"name": name, "value": value} for name, value in wishes.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(url)
    yield Page(browser)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    browser.save_screenshot(str(SCREENSHOTS / f"{name}.png"))
    assert browser.get_log("browser") == []
