"""Models belong to one process: another one on the same state waits, says why, and harms nobody."""

from __future__ import annotations

import signal
from typing import Any

from running import Service, Services, wait_until

TABLES = """
[[models]]
name = "script"
worker_class = "scripted:Scripted"
journal = "{journal}"
"""


def start(run: Services, first: Service | None = None, **options: Any) -> Service:
    folder = run.folder()
    state = (first.folder if first else folder) / "state"
    tables = TABLES.format(journal=folder / "journal")
    return run.start(tables, folder=folder, state_dir=state, instance="shared", **options)


def test_a_second_service_stays_up_says_why_and_leaves_the_first_alone(run: Services) -> None:
    first = start(run)
    second = start(run, first, wait="up")
    wait_until(lambda: str(first.worker_pid()) in (second.status().get("reason") or ""), "the reason")
    ready = second.get("/readyz")
    assert ready.status_code == 503
    assert "--port" in ready.json()["reason"]
    refused = second.post("generate", {"model": "script", "prompt": "x"})
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) >= 1
    assert str(first.worker_pid()) in refused.json()["text"]
    assert str(first.worker_pid()) in second.log()
    assert first.status()["ready"] is True
    assert first.post("generate", {"model": "script", "prompt": "x"}).status_code == 200
    assert second.is_running()
    assert not (second.folder / "journal").exists(), "it loaded the models a second time"


def test_the_second_takes_over_when_the_first_ends(run: Services) -> None:
    first = start(run)
    second = start(run, first, wait="up")
    wait_until(lambda: second.status().get("reason"), "the reason")
    first.signal(signal.SIGTERM)
    first.wait_ended(20)
    second.wait_ready()
    assert second.post("generate", {"model": "script", "prompt": "x"}).status_code == 200


def test_one_that_waits_ends_when_it_is_told_to(run: Services) -> None:
    first = start(run)
    for number in (signal.SIGTERM, signal.SIGINT):
        second = start(run, first, wait="up")
        wait_until(lambda second=second: second.status().get("reason"), "the reason")
        second.signal(number)
        assert second.wait_ended(20) == 0
    assert first.post("generate", {"model": "script", "prompt": "x"}).status_code == 200


def test_services_on_other_ports_share_a_state_folder(run: Services) -> None:
    folder = run.folder()
    services = [
        run.start(TABLES.format(journal=folder / f"journal-{number}"), state_dir=folder / "state")
        for number in range(2)
    ]
    for service in services:
        assert service.post("generate", {"model": "script", "prompt": "x"}).status_code == 200
