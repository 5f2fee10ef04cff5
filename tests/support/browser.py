"""Debian's Chromium without a window, driven by selenium: one for all tests of a session."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.common.exceptions import (
    JavascriptException,
    StaleElementReferenceException,
    TimeoutException,
    WebDriverException,
)
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

DESKTOP, PHONE = (1280, 900), (390, 844)
LIMIT = 10.0
_BINARIES = ("chromium", "chromedriver")
_OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-extensions", "--no-proxy-server"),
)


class Browser:
    """A browser with one page."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        """Drive ``driver``."""
        self.driver = driver

    def open(self, url: str) -> None:
        """Open a page, and forget what the last ones have logged."""
        self.driver.get_log("browser")
        self.driver.get(url)

    def resize(self, size: tuple[int, int]) -> None:
        """Give the page a size, in CSS pixels."""
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def prefer(self, scheme: str) -> None:
        """Let the page be ``dark`` or ``light``."""
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)

    def all(self, selector: str) -> list[WebElement]:
        """Return the elements of a CSS selector now."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        """Return the first element of a CSS selector, as soon as there is one."""
        wait = WebDriverWait(self.driver, LIMIT, 0.05)
        return wait.until(lambda driver: self.all(selector), f"{selector} never came")[0]

    def wait(self, selector: str, text: str) -> str:
        """Wait until an element of a CSS selector has ``text`` in it, and return all of its text."""
        ignored = (StaleElementReferenceException, JavascriptException)
        wait = WebDriverWait(self.driver, LIMIT, 0.05, ignored_exceptions=ignored)

        def texts(driver: webdriver.Chrome) -> str:
            return next((each.text for each in self.all(selector) if text in each.text), "")

        try:
            return str(wait.until(texts))
        except TimeoutException:
            seen = [each.text for each in self.all(selector)]
            raise AssertionError(f"{selector} never had {text!r}: {seen}") from None

    def script(self, text: str) -> object:
        """Return what a script returns."""
        return self.driver.execute_script(text)

    def complaints(self) -> list[str]:
        """Return what the page has logged as an error: refusals by its policy, failures of its script."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def picture(self, path: Path) -> None:
        """Write what is shown, all of its height, where PICTURES names a folder."""
        if folder := os.environ.get("PICTURES"):
            width = int(str(self.script("return innerWidth")))
            self.resize((width, int(str(self.script("return document.documentElement.scrollHeight")))))
            self.driver.save_screenshot(str(Path(folder) / path))


@contextmanager
def browser() -> Iterator[Browser]:
    """Run a browser; skip the test where none is installed."""
    missing = [name for name in _BINARIES if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed: apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in _OPTIONS:
        options.add_argument(argument)
    try:
        driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    except WebDriverException as error:
        pytest.fail(f"the browser did not start: {error.msg}")
    try:
        yield Browser(driver)
    finally:
        driver.quit()
