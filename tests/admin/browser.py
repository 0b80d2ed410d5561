"""Debian's Chromium, driven by Playwright, and what every page must be like in it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, ViewportSize, sync_playwright

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
# A directory to write screenshots to, for the docs.
SCREENSHOTS = os.environ.get("ADMIN_SCREENSHOTS", "")

DESKTOP: ViewportSize = {"width": 1280, "height": 900}
PHONE: ViewportSize = {"width": 390, "height": 844}

# The lowest contrast of any text on our part of the page with the colour behind it, and that text.
_LOWEST_CONTRAST = """
() => {
  const channel = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  let lowest = [21, ""];
  for (const element of document.querySelectorAll(".page *")) {
    const text = [...element.childNodes].filter(n => n.nodeType === 3).map(n => n.data.trim()).join("");
    if (!text || !element.checkVisibility() || element.closest("svg")) continue;
    const [one, other] = [parse(getComputedStyle(element).color), behind(element)].map(luminance);
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (contrast < lowest[0]) lowest = [contrast, text];
  }
  return lowest;
}
"""

_TOO_WIDE = """
() => [...document.querySelectorAll("body *")]
  .filter(e => e.getBoundingClientRect().right > innerWidth && !e.closest(".scroll"))
  .map(e => e.outerHTML.slice(0, 80))
"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the browser, and end it."""
    # Playwright has an event loop in this thread, which Django takes for asynchronous code.
    with pytest.MonkeyPatch.context() as patch, sync_playwright() as playwright:
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_sandbox())
        try:
            yield browser
        finally:
            browser.close()


def _sandbox() -> list[str]:
    # Chromium's own needs another user than root.
    return ["--no-sandbox"] if os.geteuid() == 0 else []


class Visitor:
    """Someone who is logged in, with one window; knows whatever went wrong in it."""

    def __init__(
        self, browser: Browser, url: str, session: str, size: ViewportSize, scheme: str
    ) -> None:
        self._url = url
        self.scheme = scheme
        self.size = size
        context = browser.new_context(
            viewport=size, color_scheme="dark" if scheme == "dark" else "light"
        )
        context.add_cookies([{"name": "sessionid", "value": session, "url": url}])
        self.page: Page = context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("response", lambda answer: self._look(answer.status, answer.url))

    def open(self, path: str) -> Page:
        self.page.goto(self._url + path)
        return self.page

    def assert_well(self) -> None:
        """Assert that the page fits the window, is readable, loads nothing from elsewhere, and has
        no errors.
        """
        assert self.complaints == [], self.complaints
        elsewhere = [url for url in self.requests if not url.startswith((self._url, "data:"))]
        assert elsewhere == [], elsewhere
        width = self.page.evaluate("document.documentElement.scrollWidth")
        assert width <= self.size["width"], (
            f"{width} wide because of {self.page.evaluate(_TOO_WIDE)}"
        )
        contrast, text = self.page.evaluate(_LOWEST_CONTRAST)
        assert contrast >= 4.5, f"{text!r} has a contrast of {contrast:.1f}, {self.scheme}"
        assert self.page.locator("h1").count() >= 1
        assert (
            self.page.locator("table:not(:has(caption)):visible")
            .filter(has=self.page.locator("th"))
            .count()
            == 0
        )

    def shoot(self, name: str) -> None:
        """Take a screenshot of the whole page for the docs, if that was asked for."""
        if SCREENSHOTS:
            directory = Path(SCREENSHOTS)
            directory.mkdir(parents=True, exist_ok=True)
            path = directory / f"{name}-{self.size['width']}-{self.scheme}.png"
            self.page.screenshot(path=path, full_page=True)

    def close(self) -> None:
        self.page.context.close()

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    def _look(self, status: int, url: str) -> None:
        if status >= 400:
            self.complaints.append(f"{status} {url}")
