"""The playground, the similarity of texts and the keys in a real browser."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import DESKTOP, PHONE, Browser
from in_process import SCRIPTED, service
from modelyard.engines.scripted import Answers
from modelyard.server.runtime import Runtime
from running import wait_until
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from steered import Steered

STEERED = "steered:Steered"
TABLES = (
    {"name": "said", "worker_class": STEERED, "worker_type": "llm"},
    {"name": "embeds", "worker_class": STEERED, "worker_type": "text2vec", "limit_model_concurrency": 8},
)


@pytest.fixture(scope="module")
def answers() -> Answers:
    """The script of the model ``scripted``."""
    return Answers()


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory, answers: Answers) -> Iterator[Runtime]:
    scripted = {"name": "scripted", "worker_class": SCRIPTED, "script": answers.key, "limit_model_concurrency": 4}
    folder = tmp_path_factory.mktemp("pages")
    with service(folder, (*TABLES, scripted), role="standalone", registry="memory:", metrics="off") as runtime:
        yield runtime


class Page:
    """The pages of one service in the browser."""

    def __init__(self, browser: Browser, runtime: Runtime) -> None:
        self.browser = browser
        self.url = f"http://127.0.0.1:{runtime.settings.port}"

    def open(self, path: str) -> None:
        self.browser.open(self.url + path)

    def one(self, selector: str) -> WebElement:
        return self.browser.one(selector)

    def texts(self, selector: str) -> list[str]:
        return [element.text.strip() for element in self.browser.all(selector)]

    def text_of(self, name: str) -> str:
        """Return the text of an element that may be folded away."""
        return str(self.browser.script(f"return document.getElementById('{name}').textContent"))

    def send(self, words: str) -> None:
        self.one("#prompt").send_keys(words, Keys.ENTER)

    def wait_for_end(self, answers: int = 1) -> None:
        """Wait until so many answers have ended."""
        wait_until(lambda: len(self.browser.all(".assistant .facts")) == answers, f"{answers} answers")
        wait_until(lambda: self.one("#log").get_attribute("aria-busy") == "false", "the end of the answer")


@pytest.fixture
def page(browser: Browser, runtime: Runtime) -> Iterator[Page]:
    page = Page(browser, runtime)
    yield page
    # Refusals of the service are logged too.
    assert [line for line in browser.complaints() if "Failed to load resource" not in line] == []


def test_an_answer_is_streamed_timed_and_marked_up_and_its_html_is_text(page: Page):
    page.open("/ui/playground?model=said")
    html = "<img src=x onerror=window.hacked=1> <script>window.hacked=1</script>"
    page.send(f"**bold** {html} `c`")
    page.wait_for_end()
    assert (
        page.one(".assistant .formatted").text
        == "bold <img src=x onerror=window.hacked=1> <script>window.hacked=1</script> c"
    )
    assert page.texts(".assistant .formatted strong") == ["bold"]
    assert page.texts(".user .words")[0].startswith("**bold** <img")
    assert page.browser.all("#log img, #log script") == []
    assert page.browser.script("return window.hacked") is None
    facts = page.one(".facts").text
    for part in ("first token", "tokens/s", "6 + 6 tokens", "in all"):
        assert part in facts


def test_shift_and_enter_begin_a_line_and_nothing_is_not_sent(page: Page):
    page.open("/ui/playground?model=said")
    prompt = page.one("#prompt")
    prompt.send_keys("  ", Keys.ENTER)
    prompt.clear()
    prompt.send_keys("one", Keys.SHIFT, Keys.ENTER)
    assert prompt.get_attribute("value") == "one\n"
    assert page.browser.all(".message") == []


def test_escape_stops_the_model_and_what_it_said_stays(page: Page):
    page.open("/ui/playground?model=said")
    page.send("hold")
    page.browser.wait(".assistant .words", "hold")
    assert page.one("#stop").is_displayed()
    assert not page.one("#send").is_displayed()
    (engine,) = [engine for engine in Steered.running() if engine.generating]
    page.one("body").send_keys(Keys.ESCAPE)
    page.wait_for_end()
    assert "stopped by you" in page.one(".facts").text
    wait_until(lambda: engine.generating == 0, "the engine has ended")
    assert page.one("#send").is_displayed()
    page.send("one two")
    page.wait_for_end(2)
    assert page.texts(".assistant .words")[1].endswith("one two"), "the conversation goes on"


def test_an_error_within_an_answer_loses_neither_message_nor_words(page: Page):
    page.open("/ui/playground?model=said")
    page.send("break")
    page.wait_for_end()
    assert page.texts(".user .words") == ["break"]
    assert page.texts(".assistant .words") == ["break"]
    assert "failed: RuntimeError" in page.one(".assistant [role=alert]").text
    page.one("#again").click()
    page.wait_for_end()
    assert len(page.browser.all(".message")) == 2, "the answer is made again, the message stays"


def test_a_message_that_was_refused_stays_in_view_and_the_next_one_goes_without_it(page: Page):
    page.open("/ui/playground?model=said")
    page.send("refuse")
    page.wait_for_end()
    assert "the prompt is too long" in page.one(".assistant [role=alert]").text
    page.send("one")
    page.wait_for_end(2)
    assert page.texts(".user .words") == ["refuse", "one"]
    assert page.texts(".assistant .words")[1] == "one", "the model has not seen the other"
    page.one("#clear").click()
    assert page.browser.all(".message") == []
    assert page.one("#hint").is_displayed()


def test_what_a_model_thinks_is_folded_away(page: Page, answers: Answers):
    answers.say_deltas({"reasoning_content": "Hm. "}, {"reasoning_content": "Yes."}, {"content": "*Red*"})
    page.open("/ui/playground?model=scripted")
    page.send("Name a color.")
    page.wait_for_end()
    assert page.one(".assistant .formatted em").text == "Red"
    assert page.browser.script("return document.querySelector('.thoughts').lastChild.data") == "Hm. Yes."
    assert not page.browser.script("return document.querySelector('.thoughts').open")
    page.send("Sure?")
    page.wait_for_end(2)
    request = answers.asked[-1].request
    assert request is not None
    assert [message["content"] for message in request.messages] == ["Name a color.", "*Red*", "Sure?"]


def test_a_setting_that_is_not_valid_is_shown_where_it_was_folded_away(page: Page):
    page.browser.resize(PHONE)
    page.open("/ui/playground?model=said")
    assert not page.one("#max_tokens").is_displayed()
    page.browser.script("document.getElementById('max_tokens').value = 0")
    page.send("one")
    assert page.one("#max_tokens").is_displayed()
    assert page.browser.all(".message") == []


def test_the_code_sends_what_the_page_sends(page: Page, monkeypatch: pytest.MonkeyPatch):
    page.open("/ui/playground?model=said")
    for name, value in {
        "temperature": "0.5",
        "seed": "7",
        "max_tokens": "9",
        "system": "it's",
        "stops": "x\ny",
    }.items():
        page.one(f"#{name}").send_keys(value)
    page.one("#prompt").send_keys("a \"b\" 'c' $d")
    curl = page.text_of("curl")
    words = shlex.split(curl.replace("\\\n", ""))
    assert words[:3] == ["curl", "-N", f"{page.url}/v1/chat/completions"]
    assert json.loads(words[-1]) == {
        "model": "said",
        "messages": [{"role": "system", "content": "it's"}, {"role": "user", "content": "a \"b\" 'c' $d"}],
        "temperature": 0.5,
        "max_tokens": 9,
        "seed": 7,
        "stop": ["x", "y"],
        "stream": True,
    }
    python = page.text_of("python")
    monkeypatch.delenv("MODELYARD_TOKEN", raising=False)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(python, "<page>", "exec"), {})
    assert printed.getvalue() == " it's a \"b\" 'c' $d"


def block(browser: Browser, *patterns: str) -> None:
    """Let the browser load nothing whose address matches."""
    browser.driver.execute_cdp_cmd("Network.enable", {})
    browser.driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": [*patterns]})


def test_texts_are_compared_without_a_script(page: Page):
    block(page.browser, "*.js")
    page.open("/ui/similarity")
    page.one("form.lines button").click()
    page.one("table.heat")
    assert len(page.browser.all("table.heat td")) == 25
    tones = {cell.value_of_css_property("background-color") for cell in page.browser.all("td.tone-0, td.tone-10")}
    assert len(tones) == 2, "the colours are there"
    assert len(page.browser.all("table.ranking tbody tr")) == 5
    block(page.browser)


def test_pages_fit_a_phone_and_are_small(page: Page):
    for path in ("/ui/playground", "/ui/similarity", "/ui/keys", "/docs"):
        for size, scheme in ((PHONE, "dark"), (DESKTOP, "light")):
            page.browser.resize(size)
            page.browser.prefer(scheme)
            page.open(path)
            assert not page.browser.script("return document.documentElement.scrollWidth > innerWidth"), (path, size)
        entries = "performance.getEntriesByType('navigation').concat(performance.getEntriesByType('resource'))"
        sizes = page.browser.script(f"return {entries}.map((entry) => [entry.name, entry.decodedBodySize])")
        assert sum(size for _, size in sizes) < 100_000, sizes
        assert all(name.startswith(page.url) for name, _ in sizes)


def test_the_first_key_is_made_used_and_revoked(browser: Browser, tmp_path: Path):
    with service(tmp_path, [{"name": "echo"}], role="standalone", registry="memory:") as runtime:
        page = Page(browser, runtime)
        page.open("/ui/keys")
        page.one("#models").send_keys("echo " + "n" * 90)
        page.one("#name").send_keys("ann", Keys.ENTER)
        secret = page.one("#secret").text
        page.open("/ui/keys")
        page.one("#key").send_keys(secret, Keys.ENTER)
        assert page.one(".keys tbody th").text.startswith("ann")
        assert page.one(".confirm summary").size["height"] < 30, "a long name of a model leaves other words whole"
        page.open("/ui/playground?model=said")
        page.send("one")
        page.wait_for_end()
        assert "token token" in page.one(".assistant .words").text
        page.open("/ui/keys")
        page.one(".confirm summary").click()
        page.one(".confirm button").click()
        page.one("#key")
        assert "/sign-in" in browser.driver.current_url, "the key that has signed in is no longer valid"


def test_the_default_model_answers(browser: Browser, models_dir: Path, tmp_path: Path):
    models = {"models_dirs": [str(models_dir)], "models": ["smollm2-135m"], "placement": "inline"}
    with service(tmp_path, role="standalone", registry="memory:", **models) as runtime:
        page = Page(browser, runtime)
        page.open("/ui/playground?model=smollm2-135m")
        page.one("#temperature").send_keys("0")
        page.one("#max_tokens").send_keys("12")
        page.send("Name three colors.")
        page.wait_for_end()
        assert "Red" in page.one(".assistant .words").text
