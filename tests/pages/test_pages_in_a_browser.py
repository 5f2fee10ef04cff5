"""The pages as people see them: in Chromium, with the keyboard, on a phone, in the dark, and without a script."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import requests
import steered
from browser import DESKTOP, PHONE, Browser
from in_process import service
from modelyard.blueprints.pages import live
from modelyard.blueprints.request.guard import Guard
from modelyard.server.runtime import Runtime
from pages_service import SECRETS, TOKENS
from running import free_port, wait_until
from selenium.webdriver.common.keys import Keys
from steered import Steered

HOSTILE = "<img src=x onerror=document.title=1>"
LONG = "organisation/" + "n" * 100
"""A name without a place to break it; and the reason why a model is not there is as long."""
TABLES = (
    {"name": "s", "worker_class": steered.PATH},
    {"name": "echo"},
    {"name": HOSTILE, "engine": "echo"},
    {"name": LONG, "engine": "echo"},
    {"name": "absent", "engine": "llama.cpp", "model_path": f"{'w' * 200}.gguf"},
)


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """A service that requires a token, and looks at its models all the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live, "TICK", 0.05)
        patch.setattr("modelyard.blueprints.pages.watch.LOOK_INTERVAL", 0.02)
        Steered.reset()
        folder = tmp_path_factory.mktemp("pages")
        with service(folder, TABLES, role="standalone", tokens=TOKENS, key_store="memory:", pages_bodies=True) as made:
            yield made


QUICK_TIMERS = "const set = setInterval; window.setInterval = (call, ms) => set(call, ms / 50);"
"""A script that lets the timers of a page run fifty times as fast."""


def address(runtime: Runtime, page: str = "", **query: str) -> str:
    return f"http://127.0.0.1:{runtime.settings.port}/ui/{page}{'?' if query else ''}{urlencode(query)}"


def sign_in(browser: Browser, runtime: Runtime, scope: str = "admin") -> None:
    browser.open(address(runtime))
    browser.one("#key").send_keys(SECRETS[scope], Keys.ENTER)
    browser.wait(".who", f"t-{scope}")


def ask(runtime: Runtime, text: str, model: str = "s") -> None:
    url = f"http://127.0.0.1:{runtime.settings.port}/v1/chat/completions"
    body = {"model": model, "messages": [{"role": "user", "content": text}], "stream": True}
    requests.post(url, json=body, headers={"Authorization": f"Bearer {SECRETS['infer']}"}, timeout=30)


def test_a_visitor_signs_in_and_out_with_the_keyboard_alone(browser: Browser, closed: Runtime):
    browser.open(address(closed, "model", name="s", type="llm"))
    browser.one("#key:focus").send_keys("modelyard_wrong", Keys.ENTER)
    browser.wait(".notice.bad", "not known here")
    browser.one("#key").send_keys(SECRETS["infer"], Keys.ENTER)
    browser.wait("h1", "s")
    browser.wait(".who", "t-infer")
    assert not browser.all("form[data-send] button"), "infer changes nothing"
    browser.one("body").send_keys(Keys.TAB)
    assert browser.script("return document.activeElement.className") == "skip"
    browser.one(".visitor button").send_keys(Keys.ENTER)
    browser.wait("h1", "Sign in")
    assert browser.driver.get_cookies() == []
    assert [text for text in browser.complaints() if "401" not in text] == []


def test_the_cluster_page_follows_what_happens_and_keeps_the_focus(browser: Browser, closed: Runtime):
    sign_in(browser, closed)
    browser.wait("[data-live-state]", "Live")
    browser.script("document.querySelector('tbody a[href*=\"name=echo\"]').focus(); window.mark = 1")
    closed.manager.worker_apply("echo", "stop", None, {})
    browser.wait("tr", "stopped")
    closed.manager.worker_apply("echo", "start", None, {})
    browser.wait("tr:has(a[href*='name=echo'])", "ready")
    assert browser.script("return document.activeElement.textContent + window.mark") == "echo1"
    assert browser.complaints() == []


def test_without_a_stream_the_page_reads_itself_again(browser: Browser, closed: Runtime):
    sign_in(browser, closed)
    browser.wait("[data-live-state]", "Live")
    browser.open("about:blank")
    headers = {"Authorization": f"Bearer {SECRETS['infer']}"}
    held: list[requests.Response] = []
    script = browser.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": QUICK_TIMERS})

    def hold() -> bool:
        held.append(requests.get(address(closed, "events"), headers=headers, stream=True, timeout=30))
        return sum(response.status_code == 200 for response in held) == live.MOST

    try:
        wait_until(hold, "every stream is held")
        browser.open(address(closed))
        browser.wait("[data-live-state]", "every five seconds")
        while held:
            held.pop().close()
        browser.wait("[data-live-state]", "Live")
    finally:
        browser.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)
        for response in held:
            response.close()


def test_a_parameter_is_changed_and_the_progress_of_the_start_is_seen(browser: Browser, closed: Runtime):
    sign_in(browser, closed)
    browser.open(address(closed, "model", name="s", type="llm"))
    browser.script("window.mark = 1")
    size = browser.one("#f-size")
    size.clear()
    size.send_keys("4", Keys.ENTER)
    browser.wait(".notice.good", "changed size and restarted")
    assert browser.one("#f-size").get_attribute("value") == "4"
    assert browser.script("return document.activeElement.dataset.outcome") == "good"
    browser.script("document.querySelector('#f-hold_start').value = 'true'")
    browser.one(".foot button").click()
    browser.one("[role=progressbar]")
    browser.wait(".status", "loading")
    assert not browser.one(".heading button").is_enabled()
    Steered.go.set()
    browser.wait(".notice.good", "changed hold_start and restarted")
    browser.wait(".status", "ready")
    assert browser.one(".heading button").is_enabled()
    browser.script("document.querySelector('#f-fail').value = 'library'")
    browser.one(".foot button").click()
    browser.wait(".notice.bad", "torch")
    assert browser.script("return document.querySelector('#f-fail').value") == "library", "to be corrected"
    browser.wait(".status", "ready")
    assert browser.script("return window.mark") == 1, "no page was loaded"
    assert browser.complaints() == []


def test_the_last_requests_come_up_by_themselves_and_an_open_one_stays_open(browser: Browser, closed: Runtime):
    sign_in(browser, closed)
    browser.open(address(closed, "model", name="s", type="llm"))
    browser.wait("[data-live-state]", "Live")
    ask(closed, "<b>good</b> morning")
    browser.wait(".requests", "/v1/chat/completions")
    browser.one(".requests summary").click()
    browser.wait(".requests pre", "<b>good</b> morning")
    ask(closed, "good night")
    browser.wait(".requests pre", "good night")
    assert browser.all(".requests b") == []
    assert browser.complaints() == []


def test_forms_work_without_a_script(browser: Browser, closed: Runtime):
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.open(address(closed, "model", name="echo", type="llm"))
        browser.one("#key").send_keys(SECRETS["admin"], Keys.ENTER)
        browser.one("button[value=stop]").click()
        browser.wait(".notice.good", "stopped")
        browser.wait(".status", "stopped")
        browser.one("button[value=start]").click()
        browser.wait(".notice.good", "started")
        browser.one(".brand").click()
        browser.wait("h1", "Cluster")
        assert browser.all(".outcome .notice") == []
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_every_page_fits_in_the_dark_and_in_the_light(browser: Browser, closed: Runtime, size: tuple[int, int]):
    sign_in(browser, closed)
    ask(closed, "a few words", "echo")
    grounds = {}
    pages: list[tuple[str, dict[str, str]]] = [("", {}), ("nowhere", {}), ("sign-in", {})]
    pages += [("model", {"name": name, "type": "llm"}) for name in ("echo", LONG, "absent")]
    for page, query in pages:
        browser.open(address(closed, page, **query))
        browser.resize(size)
        for scheme in "light", "dark":
            browser.prefer(scheme)
            grounds[scheme] = browser.script("return getComputedStyle(document.body).backgroundColor")
            assert browser.script("return document.documentElement.scrollWidth <= innerWidth"), page
            browser.picture(Path(f"{query.get('name', page or 'cluster')[:9]}-{size[0]}-{scheme}.png"))
        assert [text for text in browser.complaints() if "404" not in text] == []
    assert grounds["light"] != grounds["dark"]


def test_a_name_that_is_html_is_text_and_a_page_is_small(browser: Browser, closed: Runtime):
    sign_in(browser, closed)
    browser.wait("tbody th", HOSTILE)
    browser.wait("[data-live-state]", "Live")
    browser.open(address(closed, "model", name=HOSTILE, type="llm"))
    browser.wait("h1", HOSTILE)
    assert browser.all("main img") == []
    assert browser.driver.title != "1"
    assert browser.complaints() == []
    sizes = browser.script(
        "return performance.getEntriesByType('navigation')[0].decodedBodySize"
        " + performance.getEntriesByType('resource').filter(e => e.initiatorType !== 'other')"
        ".reduce((sum, e) => sum + e.decodedBodySize, 0)"
    )
    assert 10_000 < int(str(sizes)) < 100_000


def test_a_page_outlives_a_restart_of_its_service(browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(live, "TICK", 0.05)
    monkeypatch.setattr(live, "RECONNECT", 100)
    port = free_port()
    settings: Any = {"role": "standalone", "tokens": TOKENS, "key_store": "memory:", "port": port}
    with service(tmp_path, [{"name": "echo"}], **settings) as first:
        sign_in(browser, first)
        browser.wait("[data-live-state]", "Live")
        browser.script("window.mark = 1")
    browser.wait("[data-live-state]", "Connecting")
    with service(tmp_path, [{"name": "echo"}, {"name": "more", "engine": "echo"}], **settings) as second:
        browser.wait("tbody", "more")
        assert browser.script("return document.querySelector('[data-live-state]').textContent + window.mark") == "Live1"
        with monkeypatch.context() as patch:
            patch.setattr(Guard, "named", lambda *place: None)  # the sign-in has ended
            browser.wait("h1", "Sign in")
        assert second.settings.port == port
