"""What a signal to the model host itself does: docs/placement.md has the table."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from clients import DELTA, outputs
from monoliths import API, host_pid, monolith, wait_host, wait_workers
from processes import children
from running import Service, Services, wait_until

from scripts import journal, script

PIECES = 10


@pytest.fixture
def shop(run: Services) -> Service:
    service = monolith(run, workers=2, models="script")
    wait_workers(service, 2)
    return service


def stream(service: Service) -> Iterator[dict[str, Any]]:
    """Yield the chunks of an answer whose last piece comes after `let_end`."""
    body = script(pieces=PIECES, until=str(service.folder / "go"))
    with service.post(f"{API}generate_stream", body, headers=DELTA, stream=True) as response:
        yield from outputs(response)


def let_end(service: Service) -> None:
    (service.folder / "go").touch()


def starts(service: Service) -> int:
    return len(journal(service, "start"))


def send(service: Service, host: int, number: int) -> None:
    """Send a signal to the host's master, and return when gunicorn handles it."""
    os.kill(host, number)
    name = signal.Signals(number).name.removeprefix("SIG").lower()
    wait_until(lambda: f"[{host}] [INFO] Handling signal: {name}" in service.log(), f"gunicorn handles {name}")


def text_of(chunks: Iterable[dict[str, Any]]) -> str:
    return "".join(chunk["text"] for chunk in chunks)


def test_a_host_that_is_told_to_end_lets_answers_end_and_another_is_started(shop: Service) -> None:
    host = host_pid(shop)
    chunks = stream(shop)
    first = next(chunks)
    send(shop, host, signal.SIGTERM)
    let_end(shop)
    rest = list(chunks)
    assert [chunk["error_code"] for chunk in (first, *rest)] == [0] * (len(rest) + 1)
    assert text_of((first, *rest)) == "x" * PIECES
    wait_host(shop, other_than=host)
    assert starts(shop) == 2
    assert text_of(stream(shop)) == "x" * PIECES


def test_a_host_that_is_reloaded_lets_answers_end_and_loads_its_models_anew(shop: Service) -> None:
    host = host_pid(shop)
    chunks = stream(shop)
    first = next(chunks)
    send(shop, host, signal.SIGHUP)
    let_end(shop)
    assert text_of((first, *chunks)) == "x" * PIECES
    wait_until(lambda: starts(shop) == 2, "the second start")
    assert wait_host(shop) == host


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGKILL])
def test_an_answer_that_was_cut_off_says_so_and_does_not_begin_anew(shop: Service, number: int) -> None:
    (worker,) = children(host_pid(shop))
    chunks = stream(shop)
    first = next(chunks)
    os.kill(worker, number)
    *pieces, last = (first, *chunks)
    assert last["error_code"] in (502, 503)
    assert len(text_of(pieces)) < PIECES
    let_end(shop)
    wait_until(lambda: starts(shop) == 2, "the second start")
    wait_host(shop)
    assert text_of(stream(shop)) == "x" * PIECES
