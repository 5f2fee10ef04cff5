"""The health of a model that runs: what its engine reports changes what the service shows, and never what it calls."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest
from modelyard.engines.echo import Echo
from modelyard.errors import EngineError
from modelyard.streams import Cancel
from modelyard.types import GenerateRequest
from modelyard.worker.keeper import Keeper
from modelyard.worker.life import ModelLife
from modelyard.worker.states import State
from modelyard.worker.worker import ModelWorker
from running import wait_until

LIMIT = 20


class Watched(Echo):
    """An engine whose health is what the test puts into `reports`; a look waits for it."""

    health_interval = 0.001

    def __init__(self, params: Any, path: Any = None) -> None:
        super().__init__(params, path)
        self.reports: queue.Queue[str | Exception] = queue.Queue()
        self.looks = threading.Semaphore(0)

    def health(self, cancel: Any) -> str:
        self.looks.release()
        while not cancel.is_set():
            try:
                report = self.reports.get(timeout=0.01)
            except queue.Empty:
                continue
            if isinstance(report, Exception):
                raise report
            return report
        return "cancelled"


@pytest.fixture
def watched():
    engine = Watched(Echo.Params(model_name="m", engine="echo"))
    changes: queue.Queue[bool] = queue.Queue()

    class Listener(Keeper):
        def health_changed(self, model: ModelLife) -> None:
            changes.put(model.is_healthy)

    worker = ModelWorker(engine, keeper=Listener())
    worker.start()
    yield engine, worker, changes
    worker.stop()
    assert not [thread.name for thread in threading.enumerate() if thread.name == "health-m@llm"]


def test_a_model_becomes_unhealthy_and_healthy_again_and_is_called_all_the_same(watched):
    engine, worker, changes = watched
    assert worker.shown_state == (State.READY, "")
    for report, shown in (("gone", "gone"), (EngineError("odd"), "odd"), (ValueError("secret"), "ValueError")):
        engine.reports.put(report)
        wait_until(lambda shown=shown: worker.shown_state == (State.UNHEALTHY, shown), "the look was noted")
    assert worker.state is State.READY
    assert worker.generate(GenerateRequest("m", prompt="a"), Cancel()).text
    engine.reports.put("")
    assert [changes.get(timeout=LIMIT), changes.get(timeout=LIMIT)] == [False, True], "a change is told once"
    assert worker.shown_state == (State.READY, "")


def test_a_stop_ends_a_look_and_what_it_says_is_not_told(watched):
    engine, worker, changes = watched
    assert engine.looks.acquire(timeout=LIMIT)
    worker.stop()
    assert worker.shown_state == (State.STOPPED, "")
    assert changes.empty()
    worker.start()
    assert engine.looks.acquire(timeout=LIMIT), "it is watched again"


def test_an_engine_without_an_interval_is_not_watched():
    worker = ModelWorker(Echo(Echo.Params(model_name="plain", engine="echo")))
    worker.start()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("health-plain")]
    worker.stop()
