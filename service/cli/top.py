"""``modelyard top``: the models of a running service, their lines, tokens a second and time to first token, live."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime

import click

from ..client.client import Client
from ..errors import ModelyardError
from ..telemetry import metrics
from ..threads import BackgroundThread
from ..types import JSONObject
from .connected import READ_TIMEOUT, with_client
from .readings import ModelLoad, Readings, read
from .tables import as_json, printable, table, terminal_width, wrapped

INTERVAL = 2.0
"""Seconds between two readings."""
WINDOW = 5
"""Intervals that rates are for."""
LATE = 2.5
"""Intervals after which an answer is missed."""

MODELS = ("MODEL", "STATE", "UP", "RUN", "WAIT", "REQ/S", "FAIL/S", "IN/S", "OUT/S", "FIRST")
INSTANCES = ("INSTANCE", "ADDRESS", "HEALTHY", "LOAD", "HEARTBEAT")


@click.command()
@click.option(
    "--interval",
    type=click.FloatRange(0.2, 3600),
    default=INTERVAL,
    metavar="SECONDS",
    help=f"seconds between two readings  [default: {INTERVAL:g}]",
)
@with_client(READ_TIMEOUT)
def top(client: Client, *, interval: float, json_wanted: bool) -> None:
    """Watch the models of a running service: states, instances, lines, tokens a second, time to first token.

    q or Ctrl-C ends it, arrow keys scroll. Through a pipe, and with --json, it prints what happens within one interval.
    Rates need the scope metrics.
    """
    if not json_wanted and importlib.util.find_spec("curses") is not None:
        from . import screen  # noqa: PLC0415 - not every Python has curses

        if screen.is_possible():
            with _Watched(client, interval) as watched:
                screen.show(watched.lines)
            return
    readings = Readings(interval)
    readings.add(read(client))
    time.sleep(interval)
    readings.add(read(client))
    if json_wanted:
        click.echo(as_json(_document(readings)))
    else:
        click.echo("\n".join(text for text, _ in lines_of(readings, client.url, terminal_width())))


class _Watched:
    """Reads a service again and again in a thread, so that the keyboard is answered while a service is not."""

    def __init__(self, client: Client, interval: float) -> None:
        self._client = client
        self._interval = interval
        self._readings = Readings(WINDOW * interval)
        self._trouble: str | None = None
        self._lock = threading.Lock()
        self._thread = BackgroundThread("modelyard-top", self._read)

    def __enter__(self) -> _Watched:
        self._readings.add(read(self._client))  # what is wrong with the address ends the command
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._thread.stop(0)  # a call may be under way: the process ends without it

    def _read(self) -> float:
        try:
            reading = read(self._client)
        except ModelyardError as error:
            with self._lock:
                self._trouble = str(error)
        else:
            with self._lock:
                self._readings.add(reading)
                self._trouble = None
        return self._interval

    def lines(self, width: int) -> list[tuple[str, bool]]:
        """Return the lines of a screen; each with whether it is a heading."""
        with self._lock:
            silence = time.monotonic() - self._readings.last.at
            trouble = self._trouble or (f"no answer for {silence:.0f} s" if silence > LATE * self._interval else None)
            return lines_of(self._readings, self._client.url, width, trouble)


def lines_of(readings: Readings, url: str, width: int | None, trouble: str | None = None) -> list[tuple[str, bool]]:
    """Return the lines that show ``readings``, each with whether it is a heading, at most ``width`` cells wide."""
    last = readings.last
    title = " ".join(filter(None, ("modelyard", last.labels.get("version"), last.labels.get("role"))))
    state = "ready" if last.status.get("ready") else f"{last.status.get('state')}: {last.status.get('reason')}"
    texts = [f"{title}  {url}  {trouble or state}", _totals(readings)]
    if last.error is not None:
        texts.append(f"no rates: {last.error}")
    lines = [(text, False) for text in _wrapped(texts, width)]
    loads = readings.loads()
    if loads:
        lines += [("", False), *_table(MODELS, [_row(load) for load in loads], width)]
    reasons = [(load.model, load.reason) for load in loads if load.reason and load.state != "ready"]
    told = _wrapped((f"{model}: {reason}" for model, reason in reasons), width and width - 2)
    lines += [(f"  {text}", False) for text in told]
    if last.instances:
        lines += [("", False), *_table(INSTANCES, [_instance(row) for row in last.instances], width)]
    return [(text[:width], head) for text, head in lines]


def _wrapped(texts: Iterable[str], width: int | None) -> list[str]:
    return [line for text in texts for line in (wrapped(printable(text), width) if width else [printable(text)])]


def _totals(readings: Readings) -> str:
    last, loads = readings.last, readings.loads()
    held, threads = last.value(metrics.THREADS_HELD.name), last.value(metrics.THREADS.name)
    words = [] if held is None or threads is None else [f"threads {held:.0f} of {threads:.0f}"]
    if any(load.tokens_out is not None for load in loads):
        words.append(f"{sum(load.tokens_out or 0 for load in loads):.1f} tokens/s")
        words.append(f"{sum(load.requests or 0 for load in loads):.1f} requests/s")
    if last.instances is not None:
        healthy = sum(bool(row["healthy"]) for row in last.instances)
        words.append(f"{healthy} of {len(last.instances)} instances healthy")
    error = (last.status.get("cluster") or {}).get("error")
    return "  ".join([*words, *([f"registry: {error}"] if error else [])])


def _table(headings: Sequence[str], rows: Sequence[Sequence[object]], width: int | None) -> list[tuple[str, bool]]:
    head, *lines = table(headings, rows, width).splitlines()
    return [(head, True), *((line, False) for line in lines)]


def _row(load: ModelLoad) -> tuple[object, ...]:
    key = load.model if load.worker_type is None else f"{load.model}@{load.worker_type}"
    running = load.running if load.slots is None else f"{load.running}/{load.slots}"
    rates = (load.requests, load.failures, load.tokens_in, load.tokens_out)
    first = None if load.first_token is None else f"{load.first_token * 1000:.0f} ms"
    shown = (None if rate is None else f"{rate:.1f}" for rate in rates)
    return (key, load.state, load.instances, running, load.waiting, *shown, first)


def _instance(row: JSONObject) -> tuple[object, ...]:
    load = dict(part.partition("=")[::2] for part in str(row.get("load") or "").split(";"))
    shown = None
    if load.get("slots", "").isdecimal() and load.get("free", "").isdecimal():
        shown = f"{int(load['slots']) - int(load['free'])}/{load['slots']}, {load.get('waiting', '0')} waiting"
    healthy = "disabled" if not row.get("enabled", True) else row["healthy"]
    return (row["key"], row["url"], healthy, shown, _age(row.get("last_heartbeat")))


def _age(time_of: str | None) -> str | None:
    if not time_of:
        return None
    return f"{max(0.0, (datetime.now(UTC) - datetime.fromisoformat(time_of)).total_seconds()):.0f} s ago"


def _document(readings: Readings) -> JSONObject:
    last = readings.last
    return {
        "ready": bool(last.status.get("ready")),
        "state": last.status.get("state"),
        "reason": last.status.get("reason"),
        "models": [asdict(load) for load in readings.loads()],
        "instances": last.instances,
        "no_rates": None if last.error is None else str(last.error),
    }
