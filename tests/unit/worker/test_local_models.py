"""The models of one process, beyond the contract of managers: adding, listening, starting and stopping all, races."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import steered
from modelyard.errors import Conflict, EngineError, ModelyardError, NotReady, StartFailed, UnknownModel
from modelyard.models.catalog import Catalog
from modelyard.settings.settings import Settings
from modelyard.types import GenerateRequest, WorkerType
from modelyard.worker.admission import Budget
from modelyard.worker.declarations import Declarations
from modelyard.worker.manager import LocalWorkerManager
from modelyard.worker.protocol import ModelEvent
from modelyard.worker.states import State
from running import wait_until
from steered import Steered


def manager_of(*names: str, incomplete: Callable[[], str] = lambda: "", **params: Any) -> LocalWorkerManager:
    """Return a manager of models that are declared, and not added."""
    settings = Settings(models_dirs=["/nonexistent"], threads=64)
    tables = [{"name": name, "worker_class": steered.PATH, **params} for name in names]
    declarations = Declarations(settings, Catalog.load(tables, settings.models_paths), {})
    return LocalWorkerManager(declarations, Budget(64, settings.reserve), incomplete=incomplete)


@pytest.fixture
def manager() -> Iterator[LocalWorkerManager]:
    Steered.reset()
    made = manager_of("a", "b", "c")
    yield made
    Steered.go.set()
    made.models.stop()
    assert Steered.running() == []


@pytest.fixture
def events(manager) -> list[tuple[str, str]]:
    told: list[tuple[str, str]] = []
    manager.models.subscribe(
        lambda event: None if event.kind == "loading" else told.append((event.kind, event.worker.key))
    )
    return told


# Adding


def test_an_added_model_is_declared_and_not_started(manager):
    worker = manager.models.add("a", over_http={"size": 3})
    assert (worker.key, worker.state, worker.params.size) == ("a@llm", State.STOPPED, 3)
    assert manager.models.workers() == [worker]
    assert Steered.running() == []


def test_a_key_is_added_once(manager):
    manager.models.add("a")
    with pytest.raises(Conflict, match="a@llm exists already"):
        manager.models.add("a")
    manager.models.add("a", WorkerType.TEXT2VEC, {"limit_model_concurrency": 4})
    assert [w.key for w in manager.models.workers()] == ["a@llm", "a@text2vec"]


def test_two_models_with_one_alias_are_refused(manager):
    manager.models.add("a", over_http={"model_alias": "b"})
    with pytest.raises(Conflict, match="b@llm exists already"):
        manager.models.add("b")


def test_what_nobody_knows_is_not_added(manager):
    with pytest.raises(UnknownModel):
        manager.models.add("nope")


def test_more_slots_than_the_budget_holds_are_not_added(manager):
    manager.models.add("a", over_http={"limit_model_concurrency": 50})
    with pytest.raises(Conflict, match=r"asks for 8 slots.*have 50 of the 56"):
        manager.models.add("b")
    assert [w.name for w in manager.models.workers()] == ["a"]


# Starting and stopping all


def test_all_are_started_in_order_but_those_to_skip(manager, events):
    for name in "abc":
        manager.models.add(name)
    manager.models.start(skip={"b@llm"})
    assert events == [("starting", "a@llm"), ("started", "a@llm"), ("starting", "c@llm"), ("started", "c@llm")]
    assert [w.state for w in manager.models.workers()] == [State.READY, State.STOPPED, State.READY]


def test_one_that_fails_is_told_and_the_others_start(manager, events):
    manager.models.add("a", over_http={"fail": "other"})
    manager.models.add("b")
    manager.models.start()
    assert [w.state for w in manager.models.workers()] == [State.FAILED, State.READY]
    assert ("failed", "a@llm") in events


def test_once_halted_nothing_more_is_started(manager):
    for name in "abc":
        manager.models.add(name)
    manager.models.start(halted=lambda: len(Steered.running()) == 2)
    assert [w.state for w in manager.models.workers()] == [State.READY, State.READY, State.STOPPED]


def test_a_failure_is_raised_after_the_others_were_started_if_wanted(manager):
    manager.models.add("a", over_http={"fail": "library"})
    manager.models.add("b")
    with pytest.raises(StartFailed, match="'a' did not start"):
        manager.models.start(ignore_errors=False)
    assert manager.models.workers()[1].state is State.READY


def test_starting_twice_starts_once(manager, events):
    manager.models.add("a")
    manager.models.start()
    manager.models.start()
    assert events.count(("started", "a@llm")) == 1


def test_the_last_added_is_stopped_first(manager, monkeypatch):
    stopped = []
    for name in "abc":
        manager.models.add(name)
    manager.models.start()
    monkeypatch.setattr(Steered, "stop", lambda self: stopped.append(self.params.model_name))
    manager.models.stop()
    assert stopped == ["c", "b", "a"]
    for engine in Steered.made:
        engine.stops = engine.starts


def test_one_that_does_not_stop_leaves_the_others_and_is_raised_if_wanted(manager, monkeypatch, caplog):
    for name in "ab":
        manager.models.add(name)
    manager.models.start()
    b = manager.models.workers()[1].engine
    assert isinstance(b, Steered)
    monkeypatch.setattr(b, "stop", lambda: 1 // 0)
    with pytest.raises(EngineError, match="ZeroDivisionError"):
        manager.models.stop(ignore_errors=False)
    assert [w.state for w in manager.models.workers()] == [State.STOPPED, State.FAILED]
    assert "b@llm did not stop" in caplog.text
    b.stops = b.starts


@pytest.fixture
def odd_stop(monkeypatch) -> None:
    """Let the stop of every engine raise, after it has freed what it had."""

    def stop(engine: Steered) -> None:
        engine.stops += 1
        raise ValueError("the library is odd")

    monkeypatch.setattr(Steered, "stop", stop)


ODD_STOP = r"model 'a' did not stop in order: ValueError: the library is odd"


def test_an_engine_that_fails_to_stop_leaves_a_failed_model_and_everybody_hears_of_it(manager, events, odd_stop):
    worker = manager.models.add("a")
    manager.models.start()
    events.clear()
    outcome = manager.worker_apply("a", "stop", None, {})
    assert (outcome.success, outcome.message) == (False, ODD_STOP)
    assert (worker.state, worker.reason) == (State.FAILED, ODD_STOP)
    assert events == [("failed", "a@llm")]
    assert manager.worker_apply("a", "stop", None, {}).success, "a second try finds nothing that runs"
    assert worker.state is State.STOPPED
    assert manager.worker_apply("a", "start", None, {}).success
    assert worker.engine is Steered.made[-1], "what failed to stop is not started again"


@pytest.mark.parametrize(("how", "params"), [("restart", {}), ("update_params", {"size": 2})])
def test_an_engine_that_fails_to_stop_does_not_keep_its_successor_from_starting(manager, events, odd_stop, how, params):
    manager.models.add("a")
    manager.models.start()
    events.clear()
    outcome = manager.worker_apply("a", how, None, params)
    assert outcome.success
    assert outcome.message.endswith(f"restarted; {ODD_STOP}")
    assert events == [("started", "a@llm")]
    assert manager.generate(GenerateRequest("a", prompt="x")).text == " x"


def test_where_neither_the_stop_nor_the_next_start_goes_well_the_previous_parameters_run_on(manager, odd_stop):
    manager.models.add("a")
    manager.models.start()
    outcome = manager.worker_apply("a", "update_params", None, {"fail": "other"})
    assert not outcome.success
    assert "it runs on with the parameters it had" in outcome.message
    assert manager.generate(GenerateRequest("a", prompt="x")).text == " x"


def test_a_shutdown_of_an_engine_that_fails_to_stop_is_told_and_a_second_one_forgets_it(manager, events, odd_stop):
    manager.models.add("a")
    manager.models.start()
    events.clear()
    with pytest.raises(EngineError, match=ODD_STOP):
        manager.model_shutdown("a", None)
    manager.model_shutdown("a", None)
    assert events == [("failed", "a@llm"), ("forgotten", "a@llm")]
    assert manager.models.all() == []


def test_stopping_twice_stops_once(manager):
    manager.models.add("a")
    manager.models.start()
    manager.models.stop()
    manager.models.stop()
    assert [engine.stops for engine in Steered.made] == [1]


# Listening


def test_listeners_hear_of_everything_in_order(manager, events):
    manager.model_startup("a", None, {})
    manager.worker_apply("a", "update_params", None, {"size": 2})
    manager.worker_apply("a", "stop", None, {})
    manager.worker_apply("a", "update_params", None, {"size": 3})
    manager.worker_apply("a", "start", None, {})
    manager.model_shutdown("a", None)
    assert events == [
        ("starting", "a@llm"),
        ("started", "a@llm"),
        ("started", "a@llm"),
        ("stopped", "a@llm"),
        ("changed", "a@llm"),
        ("starting", "a@llm"),
        ("started", "a@llm"),
        ("forgotten", "a@llm"),
    ]


def test_a_startup_that_fails_is_forgotten(manager, events):
    with pytest.raises(StartFailed):
        manager.model_startup("a", None, {"fail": "other"})
    assert events == [("starting", "a@llm"), ("failed", "a@llm"), ("forgotten", "a@llm")]


def test_listeners_are_told_what_was_set_over_http_and_only_that(manager):
    told: list[ModelEvent] = []
    manager.models.subscribe(told.append)
    manager.model_startup("a", None, {"size": 2, "token": None})
    manager.worker_apply("a", "update_params", None, {"max_waiting": 5})
    assert [event.over_http for event in told if event.kind == "started"] == [
        {"size": 2},
        {"size": 2, "max_waiting": 5},
    ]


def test_what_a_listener_changes_is_its_own(manager):
    manager.models.subscribe(lambda event: event.over_http.clear())
    manager.model_startup("a", None, {"size": 2})
    manager.worker_apply("a", "restart", None, {})
    assert manager.models.workers()[0].params.size == 2


def test_a_listener_that_fails_stops_nobody(manager, events, caplog):
    manager.models.subscribe(lambda event: 1 // 0)
    told: list[str] = []
    manager.models.subscribe(lambda event: told.append(event.kind))
    manager.model_startup("a", None, {})
    assert told == ["starting", "loading", "started"]
    assert [kind for kind, _ in events] == ["starting", "started"]
    assert "a listener failed at starting of a@llm" in caplog.text


# Races


def test_while_models_are_still_to_be_declared_everybody_is_told_to_come_again():
    manager = manager_of("a", incomplete=lambda: "another process holds them")
    for call in (
        lambda: manager.count_token(None, "x"),
        lambda: manager.model_metadata("a"),
        lambda: manager.model_startup("a", None, {}),
        lambda: manager.worker_apply("*", "start", None, {}),
        lambda: manager.model_shutdown("a", None),
    ):
        with pytest.raises(NotReady, match="the models are not there yet: another process holds them"):
            call()


def test_a_startup_while_somebody_starts_the_stopped_one_is_a_conflict(manager):
    manager.models.add("a", over_http={"hold_start": True})
    thread = threading.Thread(target=lambda: manager.worker_apply("a", "start", None, {}))
    thread.start()
    wait_until(lambda: Steered.holding == 1, "it starts")
    with pytest.raises(Conflict, match="a@llm is starting already"):
        manager.model_startup("a", None, {})
    Steered.go.set()
    thread.join(30)
    assert len(Steered.running()) == 1


def test_a_start_that_comes_after_the_shutdown_finds_nothing(manager):
    manager.models.add("a", over_http={"hold_start": True})
    outcomes = []

    def call(how: str) -> None:
        outcomes.append(manager.worker_apply("a", how, None, {}))

    first = threading.Thread(target=call, args=("start",))
    first.start()
    wait_until(lambda: Steered.holding == 1, "it starts")
    # Both wait for the start to end: whichever comes second finds the model gone, or running.
    shutdown = threading.Thread(target=lambda: manager.model_shutdown("a", None))
    others = [threading.Thread(target=call, args=("restart",)), shutdown]
    for thread in others:
        thread.start()
    Steered.go.set()
    for thread in (first, *others):
        thread.join(30)
    assert manager.models.workers() == []
    assert Steered.running() == []


def test_changes_at_the_same_time_do_not_exceed_the_budget_together(manager, monkeypatch):
    for name in "ab":
        manager.model_startup(name, None, {})
    both, stop = threading.Barrier(2), Steered.stop

    def stop_together(self: Steered) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.3)
        stop(self)

    monkeypatch.setattr(Steered, "stop", stop_together)
    # 30 fit beside the other's 8, and not beside 30.
    outcome = manager.worker_apply("*", "update_params", None, {"limit_model_concurrency": 30})
    assert not outcome.success
    assert outcome.message.count("no room for model") == 1
    assert sum(w.gate.slots for w in manager.models.workers()) == 38
    assert all(w.state is State.READY for w in manager.models.workers())


@pytest.mark.parametrize("seed", range(3))
def test_whatever_many_threads_ask_for_every_running_engine_is_a_ready_worker(manager, seed):
    calls = {
        "startup": lambda name, chance: manager.model_startup(name, None, {"size": chance.randrange(1, 9)}),
        "fails": lambda name, chance: manager.model_startup(name, None, {"fail": "other"}),
        "shutdown": lambda name, chance: manager.model_shutdown(name, None),
        "start": lambda name, chance: manager.worker_apply(name, "start", None, {}),
        "stop": lambda name, chance: manager.worker_apply(name, "stop", None, {}),
        "restart": lambda name, chance: manager.worker_apply("*", "restart", None, {}),
        "update": lambda name, chance: manager.worker_apply(
            name, "update_params", None, {"size": chance.randrange(1, 9), "limit_model_concurrency": 20}
        ),
        "breaks": lambda name, chance: manager.worker_apply(name, "update_params", None, {"fail": "other"}),
    }

    def work(chance: random.Random) -> None:
        for _ in range(40):
            with contextlib.suppress(ModelyardError):
                chance.choice(list(calls.values()))(chance.choice("abc"), chance)

    threads = [threading.Thread(target=work, args=(random.Random(f"{seed} {n}"),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    ready = [w.engine for w in manager.models.workers() if w.state is State.READY]
    assert sorted(map(id, Steered.running())) == sorted(map(id, ready))
    assert all(w.state in (State.READY, State.STOPPED, State.FAILED) for w in manager.models.workers())
    assert sum(w.gate.slots for w in manager.models.workers()) <= manager.models.budget.total
