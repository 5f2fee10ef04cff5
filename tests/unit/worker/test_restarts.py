"""Models whose engine was lost: failed with the reason, and started again with growing pauses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
from clocks import Clock
from modelyard.engines.echo import Echo
from modelyard.errors import NotReady, StartFailed
from modelyard.models.catalog import Catalog
from modelyard.settings.settings import Settings
from modelyard.streams import Cancel
from modelyard.types import GenerateRequest
from modelyard.worker.admission import Budget
from modelyard.worker.declarations import Declarations
from modelyard.worker.keeper import Keeper
from modelyard.worker.life import ModelLife
from modelyard.worker.local_models import LocalModels
from modelyard.worker.manager import LocalWorkerManager
from modelyard.worker.restarts import IN_A_ROW, LONGEST_PAUSE, Restarts
from modelyard.worker.states import State
from modelyard.worker.worker import ModelWorker
from running import wait_until


class Losable(Echo):
    """An engine that a test loses by `lose`; its starts fail while ``broken``."""

    broken: ClassVar[bool] = False
    starts: ClassVar[int] = 0

    def start(self, progress: Any) -> None:
        Losable.starts += 1
        if self.broken:
            raise StartFailed("broken")

    def when_lost(self, callback: Callable[[str], None]) -> None:
        self.lose = callback


class Noting(Keeper):
    """Notes the models that are lost."""

    def __init__(self) -> None:
        self.models: list[ModelLife] = []

    def lost(self, model: ModelLife) -> None:
        self.models.append(model)


@pytest.fixture(autouse=True)
def unbroken() -> Iterator[None]:
    Losable.starts = 0
    yield
    Losable.broken = False


@pytest.fixture
def models() -> Iterator[LocalModels]:
    settings = Settings(models_dirs=["/nonexistent"])
    tables = [{"name": "m", "worker_class": f"{__name__}:Losable"}]
    declarations = Declarations(settings, Catalog.load(tables, settings.models_paths), {})
    made = LocalWorkerManager(declarations, Budget(64, 8)).models
    made.add("m")
    made.start()
    yield made
    made.stop()
    wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("restart-")], "no thread is left")


class Pauses:
    """The pauses of `Restarts`, which take no time; those that come after ``last`` of them end the restarts."""

    def __init__(self, last: int = 100) -> None:
        self.seen: list[float] = []
        self._last = last

    def __call__(self, seconds: float) -> bool:
        self.seen.append(seconds)
        return len(self.seen) > self._last


def worker_of() -> ModelWorker:
    return ModelWorker(Losable(Losable.Params(model_name="m", engine="echo")))


def test_a_lost_engine_fails_its_model_and_what_waits_in_line():
    keeper = Noting()
    engine = Losable(Losable.Params(model_name="m", engine="echo", limit_model_concurrency=1, delay=0.05))
    worker = ModelWorker(engine, keeper=keeper)
    worker.start()
    request = GenerateRequest("m", prompt="a b", max_new_tokens=2)
    with worker.generate_stream(request, Cancel()) as running, worker.generate_stream(request, Cancel()) as waiting:
        engine.lose("it was struck by lightning")
        assert (worker.state, worker.reason, keeper.models) == (State.FAILED, "it was struck by lightning", [worker])
        with pytest.raises(NotReady, match="'m' has failed: it was struck by lightning"):
            list(waiting)
        assert sum(len(burst.pieces) for burst in running if burst is not None) == 2, (
            "an answer ends as its engine says"
        )
    with pytest.raises(NotReady, match=r"'m' is failed \(it was struck by lightning\)"):
        worker.metadata()
    worker.start()
    assert worker.state is State.READY
    worker.stop()
    engine.lose("late")
    assert (worker.state, len(keeper.models)) == (State.STOPPED, 1)


def test_pauses_grow_to_a_limit_and_fall_back_after_a_quiet_minute():
    clock, pauses, worker = Clock(1000.0), Pauses(), worker_of()
    failures = 7
    restarts = Restarts(lambda worker: len(pauses.seen) > failures, pauses, clock)
    restarts.run(worker)
    assert pauses.seen == [0, 1, 2, 4, 8, 16, LONGEST_PAUSE, LONGEST_PAUSE]
    clock.now += IN_A_ROW - 1
    restarts.run(worker)
    assert pauses.seen[8:] == [LONGEST_PAUSE], "a loss soon after a start is one more in a row"
    clock.now += IN_A_ROW
    restarts.run(worker)
    assert pauses.seen[9:] == [0]


def test_a_pause_is_told_and_a_stop_ends_it():
    worker, pauses = worker_of(), Pauses(last=2)
    worker.state, worker.reason = State.FAILED, "gone"
    tries: list[str] = []
    Restarts(lambda worker: bool(tries.append(worker.reason)), pauses).run(worker)
    assert tries == ["gone", "gone; it is started again after 1 s"]
    restarts = Restarts(lambda worker: False)
    restarts.stop()
    restarts.run(worker)  # the default pause ends with `stop`


def test_a_lost_model_is_told_started_again_and_told(models):
    events: list[tuple[str, State]] = []
    models.subscribe(lambda event: events.append((event.kind, event.worker.state)))
    worker = models.find("m@llm")
    worker.engine.lose("gone")
    wait_until(lambda: len(events) == 4, "it runs again")
    begins = [("starting", State.FAILED), ("loading", State.STARTING)]
    assert events == [("failed", State.FAILED), *begins, ("started", State.READY)]
    assert Losable.starts == 2


@pytest.mark.parametrize("change", ["stop", "shutdown", "start"])
def test_a_model_that_was_stopped_or_started_meanwhile_is_left_alone(models, change):
    worker = models.find("m@llm")
    Losable.broken = True
    worker.engine.lose("gone")
    wait_until(lambda: "started again after 1 s" in worker.reason, "its first restart failed")
    Losable.broken = False
    starts = Losable.starts
    if change == "stop":
        worker.stop()
    elif change == "shutdown":
        models.shutdown("m", None)
    else:
        worker.start()
    wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("restart-")], "its pause is over")
    assert worker.state is (State.READY if change == "start" else State.STOPPED)
    assert Losable.starts == starts + (change == "start")
