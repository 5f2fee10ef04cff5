"""One browser for all tests of pages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser import DESKTOP, Browser
from browser import browser as running_browser


@pytest.fixture(scope="session")
def _running() -> Iterator[Browser]:
    with running_browser() as made:
        yield made


@pytest.fixture
def browser(_running: Browser) -> Browser:
    """The browser without cookies, with the size of a desktop."""
    _running.open("about:blank")
    _running.driver.execute_cdp_cmd("Network.clearBrowserCookies", {})
    _running.resize(DESKTOP)
    _running.prefer("light")
    return _running
