"""The counts of one process, and their sum over the processes of a service."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from modelyard.telemetry.metrics import (
    ENGINE,
    FAMILIES,
    LAST_HEARTBEAT,
    MANY,
    MODEL_STATE,
    RUNNING,
    Counts,
    Metrics,
    added,
)
from modelyard.telemetry.shared_metrics import Sample, SharedMetrics
from running import wait_until

LABELS = ("m", "llm")
TOKENS = ENGINE.prompt_tokens


class Process:
    """One process of a service, as its metrics see it: each has an open lock of its own."""

    def __init__(self, folder: Path, interval: float = 60.0) -> None:
        self.metrics = Metrics()
        self.gauges: Counts = {}
        self.shared = SharedMetrics(lambda: folder, lambda: Sample(self.metrics.counts(), self.gauges), interval)
        self.shared.start()

    def count(self, tokens: int) -> None:
        self.metrics.add(TOKENS, *LABELS, amount=tokens)

    def tokens(self) -> float:
        return self.shared.total().counts.get(TOKENS.name, {}).get(LABELS, [0])[0]

    def running(self) -> float | None:
        cell = self.shared.total().gauges.get(RUNNING.name, {}).get(LABELS)
        return None if cell is None else cell[0]


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def process(interval: float = 60.0) -> Process:
            made = Process(tmp_path / "metrics", interval)
            stack.callback(made.shared.stop)
            return made

        yield process


# One process


def test_a_value_at_a_bound_of_a_bucket_is_in_it():
    metrics, family = Metrics(), ENGINE.texts_a_call
    for value in (1, 2, 3, 5000):
        metrics.observe(family, value, *LABELS)
    total, *buckets = metrics.counts()[family.name][LABELS]
    assert total == 5006
    assert buckets == [1, 1, 1, *[0] * (len(family.buckets) - 3), 1]


def test_counts_are_a_copy():
    metrics = Metrics()
    metrics.add(TOKENS, *LABELS)
    counts = metrics.counts()
    metrics.add(TOKENS, *LABELS)
    assert counts == {TOKENS.name: {LABELS: [1.0]}}


def test_many_values_are_added_up_without_being_read():
    metrics = Metrics()
    for _ in range(3 * MANY):
        metrics.add(TOKENS, *LABELS)
    assert len(metrics._pending) < MANY
    assert metrics.counts()[TOKENS.name][LABELS] == [3 * MANY]


def test_threads_lose_nothing():
    metrics = Metrics()

    def count() -> None:
        for _ in range(1000):
            metrics.add(TOKENS, *LABELS)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert metrics.counts()[TOKENS.name][LABELS] == [8000]


def test_histograms_of_other_buckets_are_not_added():
    # As after an update of the package, where a file of the version before is left.
    assert added([{"h": {LABELS: [1.0, 1.0]}}, {"h": {LABELS: [1.0, 1.0, 1.0]}}]) == {"h": {LABELS: [1.0, 1.0]}}


def test_what_processes_know_alike_is_not_added_up():
    # Each process of a gateway has the state of a model of its own; an alert reads that it is 1.
    failed = (*LABELS, "failed")
    parts = [{MODEL_STATE.name: {failed: [state]}, LAST_HEARTBEAT.name: {(): [at]}} for state, at in ((1, 5), (1, 9))]
    assert added([*parts, {MODEL_STATE.name: {failed: [0]}}]) == parts[1]


def test_names_are_those_that_prometheus_accepts():
    for family in FAMILIES.values():
        assert family.name.startswith("modelyard_"), family.name
        assert not family.name.endswith("_total"), "it is added to counters"
        assert family.help.endswith("."), family.name


# Several processes


def test_each_process_answers_with_the_sum(start: Start):
    first, second = start(), start()
    first.count(3)
    assert first.tokens() == 3
    second.count(4)
    assert second.tokens() == 7
    assert first.tokens() == 7


def test_a_scrape_of_another_process_never_sees_less(start: Start):
    # A sum that falls counts for Prometheus as a restart: all of it would be taken as new.
    first, second = start(), start()
    first.count(3)
    seen = first.tokens()
    assert second.tokens() >= seen


def test_what_a_process_has_counted_is_kept_when_it_ends(start: Start):
    first, second = start(), start()
    first.count(3)
    first.shared.stop()
    assert second.tokens() == 3
    third = start()
    third.count(1)
    assert third.tokens() == second.tokens() == 4


def test_restarts_leave_no_more_files_than_processes(start: Start, tmp_path: Path):
    stays = start()
    for _ in range(5):
        process = start()
        process.count(1)
        process.shared.stop()
    assert stays.tokens() == 5
    assert len(list((tmp_path / "metrics").glob("*.json"))) == 2


def test_counts_begin_at_zero_when_the_service_does(start: Start):
    for _ in range(2):
        process = start()
        process.count(3)
        process.shared.stop()
    assert start().tokens() == 0


def test_gauges_of_a_process_that_has_ended_do_not_count(start: Start):
    first, second = start(), start()
    first.gauges = {RUNNING.name: {LABELS: [2.0]}}
    second.gauges = {RUNNING.name: {LABELS: [1.0]}}
    assert first.running() == 2
    assert second.running() == 3
    first.shared.stop()
    assert second.running() == 1


def test_a_process_that_is_never_scraped_writes_too(start: Start):
    busy, scraped = start(interval=0.01), start()
    busy.count(3)
    wait_until(lambda: scraped.tokens() == 3, "it has written", interval=0.01)


def test_a_child_process_does_not_keep_the_slot(start: Start, tmp_path: Path):
    process = start()
    locks = {str(path) for path in (tmp_path / "metrics").glob("*.lock")}
    fds = [int(fd) for fd in os.listdir("/proc/self/fd")]
    held = [fd for fd in fds if os.path.exists(f"/proc/self/fd/{fd}") and os.readlink(f"/proc/self/fd/{fd}") in locks]
    assert held and not any(os.get_inheritable(fd) for fd in held)
    process.shared.stop()


def test_a_file_that_is_broken_costs_the_others_nothing(start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    first, second = start(), start()
    first.count(3)
    assert first.tokens() == 3
    for path in (tmp_path / "metrics").glob("*.json"):
        path.write_text(json.dumps({"not": "a sample"}))
    second.count(4)
    assert second.tokens() == 4
    assert "can't be read" in caplog.text


def test_without_a_folder_a_process_answers_for_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "file").write_text("")
    process = Process(tmp_path / "file" / "metrics")
    process.count(3)
    assert process.tokens() == 3
    assert "shows its own alone" in caplog.text
    process.shared.stop()
