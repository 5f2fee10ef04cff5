"""``modelyard top``: rates between two readings, and a real terminal that it leaves as it was."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector

import pytest
import responses
from commands import modelyard
from in_process import service, url_of
from modelyard.cli import top
from modelyard.cli.readings import Reading, Readings, read
from modelyard.client.client import Client
from modelyard.errors import ConfigError, ModelyardError
from modelyard.server.runtime import Runtime
from modelyard.types import JSONObject
from running import console_script, wait_until

KEY = ("echo", "llm")
TABLES = [{"name": "echo", "engine": "echo"}, {"name": "echo-embed"}]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    with service(tmp_path_factory.mktemp("top"), TABLES, role="standalone", registry="memory:", threads=128) as runtime:
        yield runtime


MODEL = {"model": "echo@llm", "state": "ready", "reason": "1 of 1 instances", "running": 2, "waiting": {"batch": 3}}


def reading(
    at: float,
    role: str = "worker",
    error: ModelyardError | None = None,
    models: tuple[JSONObject, ...] = (MODEL,),
    **sums: float,
) -> Reading:
    status = {"ready": True, "state": "ready", "reason": None, "models": models}
    samples = {f"modelyard_{name}": {KEY: value} for name, value in sums.items()}
    labels = {} if error else {"role": role, "version": "1"}
    return Reading(at, status, None, samples, labels, error)


def of_one(*readings: Reading):
    kept = Readings(10.0)
    for each in readings:
        kept.add(each)
    (load,) = kept.loads()
    return load


def counted(at: float, tokens: float, requests: float = 0.0, seconds: float = 0.0) -> Reading:
    first = {"time_to_first_token_seconds_sum": seconds, "time_to_first_token_seconds_count": requests}
    return reading(at, generation_tokens_total=tokens, **first)


def test_rates_are_those_between_the_oldest_and_the_newest_reading():
    load = of_one(counted(0, 100, 4, 1.0), counted(2, 150, 7, 1.3), counted(4, 300, 8, 2.0))
    assert load.tokens_out == 50.0
    assert load.first_token == pytest.approx(0.25)


def test_a_reading_that_is_too_old_does_not_count():
    load = of_one(counted(0, 0), counted(5, 1000), counted(10, 1000), counted(16, 1010))
    assert load.tokens_out == pytest.approx(10 / 11)


def test_counters_of_a_service_that_has_begun_again_give_no_rate():
    load = of_one(reading(0, generation_tokens_total=500), reading(2, generation_tokens_total=3))
    assert load.tokens_out is None


def test_a_router_is_read_by_what_it_has_sent_on():
    sums = {"generation_tokens_total": 7.0, "routed_generation_tokens_total": 20.0, "routed_num_requests_running": 3.0}
    load = of_one(reading(0, "gateway"), reading(2, "gateway", **sums))
    assert (load.tokens_out, load.running, load.slots) == (10.0, 3, None)


def test_no_name_or_reason_of_a_service_steers_the_terminal():
    model = {**MODEL, "model": "a\x1b]0;b\x07\0@llm", "state": "failed", "reason": "c\x1b[2J"}
    kept = Readings(10.0)
    kept.add(reading(0, "d\x1b[31m", models=(model,)))
    for width in None, 200:
        assert all(text.isprintable() for text, _ in top.lines_of(kept, "http://e", width))


def test_without_metrics_there_are_states_and_no_rates():
    load = of_one(reading(0, error=ConfigError("off")), reading(2, error=ConfigError("off")))
    assert (load.state, load.tokens_out, load.running, load.waiting) == ("ready", None, 2, 3)
    assert ("no rates: off", False) in top.lines_of(_kept(reading(0, error=ConfigError("off"))), "http://h/api", 80)


def test_a_reason_is_shown_where_a_model_is_not_ready_and_no_table_without_models():
    failed = reading(0, models=({**MODEL, "state": "failed", "reason": "no memory"},))
    assert ("  echo: no memory", False) in top.lines_of(_kept(failed), "http://h/api", 80)
    for quiet in (reading(0), reading(0, models=())):
        assert not any("instances" in text for text, _ in top.lines_of(_kept(quiet), "http://h/api", 80))
    assert not any(is_heading for _, is_heading in top.lines_of(_kept(quiet), "http://h/api", 80))


def test_a_narrow_terminal_shows_whole_reasons():
    failed = reading(0, models=({**MODEL, "state": "failed", "reason": "there is no file 日本語.gguf in " + "x" * 50},))
    lines = [text for text, _ in top.lines_of(_kept(failed), "http://localhost:8000/api", 40)]
    assert all(sum(2 if char > "\u2000" else 1 for char in text) <= 40 for text in lines)
    assert "x" * 50 in "".join(text.strip() for text in lines)
    assert any(text.endswith("ready") for text in lines), "the state is not cut off"


def _kept(first: Reading) -> Readings:
    kept = Readings(10.0)
    kept.add(first)
    return kept


def test_what_a_real_service_does_is_read(running: Runtime):
    with Client(url_of(running)) as client:
        before = read(client)
        client.chat("x", model="echo", max_new_tokens=5)
        kept = _kept(before)

        def is_counted() -> bool:
            kept.add(read(client))
            load = kept.loads()[0]
            return bool(load.tokens_out) and load.instances is not None

        wait_until(is_counted, "its tokens are counted, and it is in view")
        load, vectors = kept.loads()
    assert (load.model, load.instances, load.running, load.slots, load.waiting) == ("echo", "1/1", 0, 8, 0)
    assert load.first_token is not None and load.first_token < 5
    assert (vectors.model, vectors.worker_type, vectors.slots) == ("echo-embed", "text2vec", 64)
    assert {row["key"] for row in kept.last.instances or ()} >= {"echo@llm", "echo-embed@text2vec"}


def test_through_a_pipe_it_is_one_table_and_ends(running: Runtime):
    ran = modelyard("top", "--interval", "0.2", "--url", url_of(running))
    assert ran.status == 0, ran.err
    head, totals, empty, heading, echo, *_ = ran.out.splitlines()
    assert head.endswith(f"standalone  {url_of(running)}  ready") and empty == ""
    assert "threads 0 of 128" in totals and "instances healthy" in totals
    assert heading.split() == list(top.MODELS[:-1]), "the last has no value yet"
    assert echo.split()[:5] == ["echo@llm", "ready", "1/1", "0/8", "0"]
    assert "\x1b" not in ran.out


def test_as_json_it_is_one_document(running: Runtime):
    document = modelyard("top", "--interval", "0.2", "--json", "--url", url_of(running)).json
    assert [model["model"] for model in document["models"]] == ["echo", "echo-embed"]
    assert document["models"][0]["tokens_out"] == 0.0
    assert document["no_rates"] is None


def test_lines_are_no_wider_than_the_terminal_and_a_silence_is_named():
    kept = _kept(reading(0))
    lines = top.lines_of(kept, "http://host/api", 60, "no answer for 7 s")
    assert max(len(text) for text, _ in lines) <= 60
    assert lines[0][0].endswith("no answer for 7 s")


class Terminal:
    """A terminal of so many rows and columns, in which ``modelyard top`` runs."""

    def __init__(self, url: str, folder: Path, term: str = "xterm", rows: int = 24, columns: int = 100) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(rows, columns)
        self.modes = termios.tcgetattr(self.slave)
        self.shown = b""
        environ = {**os.environ, "TERM": term, "HOME": str(folder)}
        for name in ("LINES", "COLUMNS"):  # which curses believes more than the terminal
            environ.pop(name, None)
        self.process = subprocess.Popen(
            [console_script("modelyard"), "top", "--interval", "0.2", "--url", url],
            env=environ,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def wait_for(self, text: bytes) -> None:
        self._read(lambda: text in self.shown, f"{text!r} is shown")

    def wait_ended(self) -> int:
        self._read(lambda: self.process.poll() is not None, "it has ended")
        return self.process.returncode

    def _read(self, condition: Callable[[], bool], what: str) -> None:
        with DefaultSelector() as selector:
            selector.register(self.master, EVENT_READ)

            def reached() -> bool:
                while selector.select(0):
                    self.shown += os.read(self.master, 65536)
                return condition()

            wait_until(reached, f"{what}: {self.shown[-2000:]!r}")

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal(running: Runtime, tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    made: list[Terminal] = []

    def make(**options: object) -> Terminal:
        made.append(Terminal(url_of(running), tmp_path, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("end", ["q", "Ctrl-C", "SIGTERM"])
def test_in_a_terminal_it_is_a_screen_and_leaves_the_terminal_as_it_was(terminal, end: str):
    made = terminal()
    made.wait_for(b"echo-embed@text2vec")
    assert b"\x1b[?1049h" in made.shown, "the screen that was there is kept"
    if end == "SIGTERM":
        made.process.send_signal(signal.SIGTERM)
    else:
        made.type(b"q" if end == "q" else b"\x03")
    status = made.wait_ended()
    assert status == 0 or end == "SIGTERM"
    assert b"\x1b[?1049l" in made.shown, "and shown again"
    assert termios.tcgetattr(made.slave) == made.modes


def test_it_follows_the_size_of_the_terminal_and_scrolls(terminal):
    made = terminal(rows=24, columns=100)
    made.wait_for(b"HEARTBEAT")
    made.shown = b""
    made.resize(6, 60)
    made.process.send_signal(signal.SIGWINCH)
    made.wait_for(b"MODEL")
    assert b"ADDRESS" not in made.shown
    made.type(b"\x1b[6~" * 3)
    made.wait_for(b"ADDRESS")
    made.type(b"q")
    assert made.wait_ended() == 0


def test_at_a_dumb_terminal_it_is_one_table(terminal):
    made = terminal(term="dumb")
    assert made.wait_ended() == 0
    assert b"echo@llm" in made.shown and b"\x1b" not in made.shown


@responses.activate
def test_metrics_that_are_off_are_said(running: Runtime):
    responses.get("http://h/api/metrics", status=404)
    responses.get("http://h/metrics", status=404)
    with Client("http://h/api", retries=0) as client, pytest.raises(Exception, match="they may be off"):
        client.metrics()
