"""Models that are unloaded and loaded again: for whom, when, and what their requests see of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import steered
from clocks import Clock
from modelyard.errors import InvalidRequest, ModelyardError, NotReady, Overloaded, StartFailed
from modelyard.models.catalog import Catalog
from modelyard.settings.settings import Settings
from modelyard.streams import Cancel, OutputStream
from modelyard.telemetry.metrics import LOAD_FAILURES, LOADS, UNLOADS, Metrics
from modelyard.types import GenerateRequest, Terms
from modelyard.worker.admission import Budget
from modelyard.worker.declarations import Declarations
from modelyard.worker.manager import LocalWorkerManager
from modelyard.worker.states import State
from modelyard.worker.worker import ModelWorker
from running import wait_until
from steered import Steered

MB = 10**6
Make = Callable[..., LocalWorkerManager]


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    """Let requests look at their lines often, and models make room soon after their last request."""
    monkeypatch.setattr("modelyard.worker.worker.TICK", 0.005)
    monkeypatch.setattr("modelyard.worker.admission.LOOK", 0.005)
    monkeypatch.setattr("modelyard.worker.room.LINGER", 0.01)


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes a manager of models ``a``, ``b`` ..., each of 60 MB and started, within a budget."""
    Steered.reset()
    made: list[LocalWorkerManager] = []

    def manager(names: str = "ab", *, budget: int | None = 100 * MB, turn: float = 10.0, **params: Any) -> Any:
        tables = [{"name": name, "worker_class": steered.PATH, "memory": 60 * MB, **params} for name in names]
        for table in tables:
            table.update(table.pop("only", {}).get(table["name"], {}))
        settings = Settings(models_dirs=["/nonexistent"], threads=128, memory_budget=budget, memory_turn=turn)
        declarations = Declarations(settings, Catalog.load(tables, settings.models_paths), {})
        made.append(LocalWorkerManager(declarations, Budget(128, 8), metrics=Metrics()))
        for name in names:
            made[-1].models.add(name)
        made[-1].models.start()
        return made[-1]

    yield manager
    Steered.go.set()
    for one in made:
        one.models.stop()
    wait_until(lambda: Steered.running() == [], "every engine was stopped")


def worker(manager: LocalWorkerManager, name: str) -> ModelWorker:
    found = manager.models.find(f"{name}@llm") or manager.models.find(f"{name}@text2vec")
    assert found is not None
    return found


def states(manager: LocalWorkerManager) -> str:
    """Return the first two letters of the states: ``re`` is ready, ``un`` unloaded, ``fa`` failed."""
    return " ".join(state.value[:2] for state in manager.model_states().values())


def ask(manager: LocalWorkerManager, model: str, prompt: str = "x", cancel: Cancel | None = None) -> OutputStream:
    return manager.generate_stream(GenerateRequest(model, prompt=prompt), cancel)


def answer(manager: LocalWorkerManager, model: str, prompt: str = "x") -> str:
    return manager.generate(GenerateRequest(model, prompt=prompt)).text


class Asking(threading.Thread):
    """A call in a thread of its own, with its result or its error."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self.result: object = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._call()
        except ModelyardError as error:
            self.result = error

    def end(self) -> object:
        self.join(20)
        assert not self.is_alive(), "it still waits"
        return self.result


def counted(manager: LocalWorkerManager, family: Any) -> dict[tuple[str, ...], float]:
    counts = manager.models._metrics.counts().get(family.name, {})
    return {(labels[0], labels[2]): cell[0] for labels, cell in counts.items()}


# The start


def test_models_are_started_while_there_is_room_and_the_others_are_available(make):
    manager = make("abc")
    assert states(manager) == "re un un"
    instances = manager.get_all_model_instances()
    assert [instance.model_name for instance in instances] == ["a@llm", "b@llm", "c@llm"]
    assert manager.models.room.taken == 60 * MB
    assert manager.context_lengths() == {"a": 128}, "that of a model that was never loaded is not known"


def test_pinned_models_are_started_first(make):
    assert states(make("abc", memory=30 * MB, only={"c": {"pinned": True, "memory": 50 * MB}})) == "re un re"


def test_a_model_that_fills_the_memory_must_say_how_much_it_may_take(make, monkeypatch):
    monkeypatch.setattr(Steered, "fills_memory", True)
    manager = make("ab", only={"b": {"memory": None}})
    assert states(manager) == "re fa"
    assert "memory_budget is set: set its parameter memory too" in worker(manager, "b").reason


def test_a_model_that_can_never_fit_has_failed_with_the_figures(make):
    manager = make("ab", only={"b": {"memory": 120 * MB}})
    assert states(manager) == "re fa"
    assert "model 'b' needs 120.0 MB of memory, and memory_budget is 100.0 MB" in worker(manager, "b").reason


def test_without_a_budget_nothing_is_counted(make):
    manager = make("abc", budget=None)
    assert states(manager) == "re re re"
    assert manager.models.room.taken == 0


# Requests


@pytest.mark.parametrize("call", ["stream", "whole", "count"])
def test_a_request_loads_its_model_and_waits_for_it(make, call):
    manager = make("ab")
    if call == "stream":
        bursts = list(ask(manager, "b", "one two"))
        assert "".join(piece for burst in bursts if burst for piece in burst.pieces) == " one two"
    elif call == "whole":
        assert answer(manager, "b", "one two") == " one two"
    else:
        assert manager.count_token("b", "one two") == 2
    assert states(manager) == "un re"
    assert counted(manager, LOADS) == {("a", "start"): 1, ("b", "request"): 1}
    assert counted(manager, UNLOADS) == {("a", "room"): 1}
    assert manager.context_lengths() == {"a": 128, "b": 128}, "what was known of an unloaded model stays"


def test_texts_to_embed_wait_for_their_model_too(make):
    manager = make("ab", only={"b": {"worker_type": "text2vec"}})
    assert manager.embeddings("b", ["abc"]) == [[3.0, 1.0]]
    assert manager.rerank("b", "abc", ["abc"]) == pytest.approx([1.0])
    assert states(manager) == "un re"


def test_a_stream_shows_that_it_waits_until_its_model_is_loaded(make):
    manager = make("ab", only={"b": {"hold_start": True}})
    stream = ask(manager, "b", "hello")
    assert [next(stream), next(stream)] == [None, None]
    wait_until(lambda: worker(manager, "b").reason == "stretching", "its engine starts")
    assert worker(manager, "b").shown_state[0] is State.LOADING
    assert stream.load == "slots=8;free=0;waiting=1;loaded=0"
    Steered.go.set()
    assert "".join(piece for burst in stream if burst for piece in burst.pieces) == " hello"
    assert stream.cancel.queued > 0


def test_what_only_looks_does_not_load_and_is_no_use(make):
    manager = make("ab")
    used = worker(manager, "a").last_used
    for name in "ab":
        assert manager.model_metadata(name).model == name
        assert manager.parameter_descriptions(name, None)
    manager.get_all_model_instances()
    manager.context_lengths()
    manager.load_of("b", worker(manager, "b").worker_type)
    manager.supported_models()
    assert states(manager) == "re un"
    assert worker(manager, "a").last_used == used
    assert manager.count_token(None, "a b") == 2, "by the model that is loaded"
    assert states(manager) == "re un"


def test_who_does_not_wait_is_refused_and_loads_nothing(make):
    manager = make("ab")
    with pytest.raises(Overloaded, match="model 'b' is not loaded, and the caller does not wait") as refused:
        manager.generate_stream(GenerateRequest("b", prompt="x", terms=Terms(wait=False)))
    assert refused.value.load == "slots=8;free=0;waiting=0;loaded=0"
    assert states(manager) == "re un"


def test_what_a_model_takes_is_checked_when_it_is_loaded(make):
    manager = make("ab")
    taken = GenerateRequest("b", prompt="x", options={"logprobs": True})
    assert manager.generate(taken).text == " x"
    with pytest.raises(InvalidRequest, match="not supported by model 'a'"):
        manager.generate(GenerateRequest("a", prompt="x", options={"grammar": "y"}))
    assert states(manager) == "re un", "only the loaded model knows"


def test_a_client_that_leaves_does_not_end_the_load(make):
    manager = make("ab", only={"b": {"hold_start": True}})
    cancel = Cancel()
    stream = ask(manager, "b", cancel=cancel)
    wait_until(lambda: worker(manager, "b").reason == "stretching", "its engine starts")
    cancel.set()
    stream.close()
    Steered.go.set()
    wait_until(lambda: states(manager) == "un re", "it is loaded")


# Turns


def test_a_model_that_runs_is_not_unloaded_and_the_other_is_refused_when_its_time_is_over(make):
    manager = make("ab", only={"b": {"queue_timeout": 0.05}})
    running = ask(manager, "a", "hold")
    next(running)
    with pytest.raises(Overloaded, match=r"'b' is not loaded, and its turn did not come in 0\.05 s") as refused:
        answer(manager, "b")
    assert refused.value.retry_after == 1
    assert states(manager) == "re lo" or states(manager) == "re un"
    running.close()
    wait_until(lambda: states(manager) in ("re un", "un re"), "the line is empty")
    assert answer(manager, "a") == " x"


def test_requests_are_collated_by_model(make):
    manager = make("ab", only={"a": {"limit_model_concurrency": 1}})
    order: list[str] = []
    held = ask(manager, "a", "hold")
    next(held)

    def in_line(model: str, number: int) -> Asking:
        def call() -> None:
            with ask(manager, model) as stream:
                for burst in stream:
                    if burst is not None and burst.pieces:
                        order.append(f"{model}{number}")

        asking = Asking(call)
        wait_until(lambda: worker(manager, model).gate.waiting == number, "it is in line")
        return asking

    asking = [in_line("b", 1), in_line("a", 1), in_line("b", 2), in_line("a", 2)]
    held.close()
    assert [each.end() for each in asking] == [None] * 4
    assert sorted(order[:2]) == ["a1", "a2"], "its turn lasts until it is idle"
    assert sorted(order[2:]) == ["b1", "b2"]
    assert counted(manager, UNLOADS) == {("a", "room"): 1}


def test_after_its_turn_new_requests_of_a_busy_model_wait_for_the_other(make):
    manager = make("ab", turn=0)
    held = ask(manager, "a", "hold")
    next(held)
    other = Asking(lambda: answer(manager, "b"))
    wait_until(lambda: worker(manager, "a").gate.load().endswith("loaded=0"), "it is to make room")
    later = Asking(lambda: answer(manager, "a"))
    wait_until(lambda: worker(manager, "a").gate.waiting == 1, "a later request waits")
    held.close()
    assert (other.end(), later.end()) == (" x", " x")
    assert counted(manager, LOADS) == {("a", "start"): 1, ("b", "request"): 1, ("a", "request"): 1}


@pytest.mark.parametrize("turn", [0, 10])
def test_whatever_many_clients_ask_at_once_one_model_is_loaded_and_all_are_answered(make, turn):
    manager = make("abc", turn=turn)
    most: list[int] = []

    def client(name: str) -> list[str]:
        answers = []
        for number in range(15):
            answers.append(answer(manager, name, f"{name} {number}"))
            most.append(len(Steered.running()))
        return answers

    clients = [Asking(lambda name=name: client(name)) for name in "abc" * 3]
    for name, asking in zip("abc" * 3, clients, strict=True):
        assert asking.end() == [f" {name} {number}" for number in range(15)]
    assert max(most) == 1
    assert manager.models.room.taken == 60 * MB


# Idle


def test_a_model_that_nobody_uses_is_unloaded_and_the_next_request_loads_it(make):
    manager = make("ab", budget=None, only={"a": {"keep_alive": 0.1}})
    events: list[str] = []
    manager.models.subscribe(lambda event: events.append(f"{event.kind} {event.worker.name}"))
    wait_until(lambda: states(manager) == "un re", "it is unloaded")
    assert answer(manager, "a") == " x"
    wait_until(lambda: states(manager) == "un re", "it is unloaded again")
    assert counted(manager, UNLOADS) == {("a", "idle"): 2}
    wait_until(lambda: events == ["unloaded a", "loading a", "loaded a", "unloaded a"], "listeners hear of it")


def test_a_model_is_idle_after_its_last_request_and_not_before(make, monkeypatch):
    clock = Clock(1000.0)
    manager = make("a", budget=None, keep_alive=100.0)
    monkeypatch.setattr(manager.models.room, "clock", clock)
    keeper, model = manager.models._housekeeper, worker(manager, "a")
    model.last_used = clock.now
    clock.now += 99
    assert (keeper._unload_idle(), states(manager)) == (pytest.approx(1), "re")
    stream = ask(manager, "a", "hold")
    next(stream)
    clock.now += 1000
    assert (keeper._unload_idle(), states(manager)) == (1, "re"), "it answers"
    stream.close()
    assert (keeper._unload_idle(), states(manager)) == (pytest.approx(100), "re")
    clock.now += 100
    assert (keeper._unload_idle(), states(manager)) == (None, "un")


def test_a_look_at_a_model_that_is_due_does_not_keep_it_for_another_keep_alive(make):
    manager = make("a", budget=None, keep_alive=1000.0)
    model = worker(manager, "a")
    model.last_used -= 2000
    look = model.gate.beside()
    assert look is not None
    assert manager.models._housekeeper._unload_idle() == 1
    look.release()
    assert (manager.models._housekeeper._unload_idle(), states(manager)) == (None, "un")


def test_without_room_for_a_thread_a_model_is_loaded_and_stays(make, monkeypatch):
    manager = make("a", budget=None)

    def no_thread() -> None:
        raise Overloaded("can't start new thread")

    monkeypatch.setattr(manager.models._housekeeper._watch, "start", no_thread)
    assert manager.worker_apply("a", "restart", None, {"keep_alive": 1000.0}).success
    assert answer(manager, "a") == " x"


def test_a_pinned_model_stays(make):
    manager = make("a", budget=None, keep_alive=0.1, pinned=True)
    assert (manager.models._housekeeper._unload_idle(), states(manager)) == (None, "re")


# Failures and stops


def test_a_load_that_fails_is_the_error_of_those_that_wait_and_of_those_that_come_soon(make, monkeypatch):
    manager = make("ab")
    broken = worker(manager, "b").engine
    monkeypatch.setattr(broken, "start", lambda progress: 1 // 0)
    waiting = [Asking(lambda: answer(manager, "b")) for _ in range(3)]
    for each in waiting:
        error = each.end()
        assert isinstance(error, NotReady)
        assert str(error).startswith("model 'b' could not be loaded: model 'b' did not start: ZeroDivisionError")
    assert (states(manager), manager.models.room.taken) == ("un un", 0)
    with pytest.raises(NotReady, match="could not be loaded") as refused:
        answer(manager, "b")
    assert 1 <= refused.value.retry_after <= 5
    assert counted(manager, LOAD_FAILURES) == {("b", "start_failed"): 1}
    monkeypatch.undo()
    worker(manager, "b")._retry_at = time.monotonic()
    assert answer(manager, "b") == " x"
    assert answer(manager, "a") == " x"


def test_a_stop_ends_a_load_and_its_memory_is_free_when_the_engine_is(make):
    manager = make("ab", only={"b": {"hold_start": True}})
    waiting = Asking(lambda: answer(manager, "b"))
    wait_until(lambda: worker(manager, "b").reason == "stretching", "its engine starts")
    outcome = manager.worker_apply("b", "stop", None, {})
    assert (outcome.success, outcome.message) == (True, "model b@llm stopped")
    error = waiting.end()
    assert isinstance(error, NotReady)
    assert "model 'b' was stopped" in str(error)
    assert (states(manager), manager.models.room.taken) == ("un st", 60 * MB)
    other = Asking(lambda: answer(manager, "a"))
    Steered.go.set()
    assert other.end() == " x"
    with pytest.raises(NotReady, match="is stopped"):
        answer(manager, "b")


def test_a_request_to_a_changed_model_loads_it_while_the_load_of_the_previous_one_still_ends(make):
    manager = make("ab")
    keeper, previous = manager.models._housekeeper, worker(manager, "b")
    with manager.models.held(manager.models.all()[1]):
        keeper.wanted(previous)  # its thread waits for the lock
        changed = manager.models.new_worker("b", None, {})
        assert changed.start("start") is None
        manager.models.all()[1].worker = changed
        with ask(manager, "b") as stream:
            wait_until(lambda: changed in keeper._loading, "a thread is about to load it")
            assert next(stream) is None
    wait_until(lambda: not keeper._loading, "no thread is left")


def test_the_requests_of_an_unloaded_model_are_refused_if_no_thread_can_load_it(make, monkeypatch):
    manager = make("ab", turn=0.0)
    with ask(manager, "a", "hold") as held:
        next(held)
        other = Asking(lambda: answer(manager, "b"))
        wait_until(lambda: worker(manager, "a").gate._held, "the other one waits for its end")
        late = Asking(lambda: answer(manager, "a"))
        wait_until(lambda: worker(manager, "a").gate.waiting, "it stands in line")

        def no_thread(thread: threading.Thread) -> None:
            raise Overloaded("can't start new thread")

        monkeypatch.setattr("modelyard.worker.housekeeper.start_thread", no_thread)
    assert other.end() == " x", "it has its memory all the same"
    assert isinstance(late.end(), Overloaded)


def test_what_gives_up_the_start_of_an_engine_tells_it(make, monkeypatch):
    monkeypatch.setattr(Steered, "give_up", lambda engine: Steered.go.set(), raising=False)
    manager = make("ab", only={"b": {"hold_start": True}})
    waiting = Asking(lambda: answer(manager, "b"))
    wait_until(lambda: worker(manager, "b").reason == "stretching", "its engine starts")
    assert manager.worker_apply("b", "stop", None, {}).success
    assert isinstance(waiting.end(), NotReady)
    wait_until(lambda: manager.models.room.taken == 0, "its memory is free")


def test_a_stop_ends_the_wait_for_memory(make):
    manager = make("ab")
    with ask(manager, "a", "hold") as held:
        next(held)
        waiting = Asking(lambda: answer(manager, "b"))
        wait_until(lambda: worker(manager, "b").reason == "waiting for memory", "it waits")
        assert manager.worker_apply("b", "stop", None, {}).success
        assert isinstance(waiting.end(), NotReady)
    assert states(manager) == "re st"


def test_an_unloaded_model_is_stopped_started_changed_and_forgotten_like_any_other(make):
    manager = make("abc")
    assert manager.worker_apply("b", "update_params", None, {"size": 3}).success
    assert (states(manager), worker(manager, "b").params.size) == ("re un un", 3), "it is not loaded for that"
    assert manager.worker_apply("b", "start", None, {}).success
    assert states(manager) == "un re un"
    assert manager.worker_apply("c", "stop", None, {}).success
    with pytest.raises(NotReady, match="'c' is stopped"):
        answer(manager, "c")
    assert manager.worker_apply("a", "restart", None, {}).success
    assert states(manager) == "re un st"
    manager.model_shutdown("b", None)
    assert states(manager) == "re st"


def test_a_start_by_hand_of_a_model_that_never_fits_fails_at_once(make):
    manager = make("ab", only={"b": {"start": False}})
    manager.models.shutdown("b", None)
    with pytest.raises(StartFailed, match=r"'b' needs 200\.0 MB of memory, and memory_budget is 100\.0 MB"):
        manager.model_startup("b", None, {"memory": 200 * MB})
    assert states(manager) == "re"


def test_an_engine_that_fails_to_stop_is_replaced_and_the_next_request_loads_another(make, monkeypatch):
    manager = make("ab")
    first = worker(manager, "a").engine
    monkeypatch.setattr(first, "stop", lambda: 1 // 0)
    assert answer(manager, "b") == " x"
    assert "did not stop in order" in worker(manager, "a").reason
    assert answer(manager, "a") == " x"
    assert worker(manager, "a").engine is not first
    Steered.made.remove(first)


# Restarts


def restarted(manager: LocalWorkerManager, **params: Any) -> Any:
    return Asking(lambda: manager.worker_apply("a", "restart", None, params))


def test_requests_stand_in_line_while_their_model_restarts_and_another_one_has_taken_its_memory(make):
    manager = make("ab")
    running, other = ask(manager, "a", "hold"), ask(manager, "b", "hold")
    next(running)
    cut_off = Asking(lambda: list(running))
    taking = Asking(lambda: next(burst for burst in other if burst))
    wait_until(lambda: worker(manager, "b").reason == "waiting for memory", "the other one waits for it")
    restart = restarted(manager)
    assert isinstance(cut_off.end(), NotReady)
    assert taking.end()
    wait_until(lambda: worker(manager, "a").reason == "waiting for memory", "it waits for its turn")
    late = Asking(lambda: answer(manager, "a"))
    wait_until(lambda: worker(manager, "a").gate.waiting == 1, "a request waits with it")
    assert "loaded=0" in worker(manager, "a").load
    other.close()
    assert (late.end(), restart.end().success) == (" x", True)


def test_the_time_of_a_request_in_line_ends_while_its_model_restarts(make):
    manager = make("ab", only={"a": {"queue_timeout": 0.05}})
    other = ask(manager, "b", "hold")
    cut_off = Asking(lambda: next(burst for burst in other if burst))
    cut_off.end()
    restart = restarted(manager)
    wait_until(lambda: worker(manager, "a").reason == "waiting for memory", "it waits for its turn")
    with pytest.raises(Overloaded, match=r"its turn did not come in 0\.05 s"):
        answer(manager, "a")
    other.close()
    assert restart.end().success


def test_where_a_restart_fails_those_in_line_are_refused_and_later_ones_answered(make):
    manager = make("a")
    restart = restarted(manager, hold_start=True, fail="other")
    wait_until(lambda: Steered.holding == 1, "it is loaded")
    assert manager.model_metadata("a").context_length == 128, "of the one before"
    waiting = Asking(lambda: answer(manager, "a"))
    wait_until(lambda: worker(manager, "a").gate.waiting == 1, "a request waits")
    Steered.go.set()
    assert isinstance(waiting.end(), NotReady)
    assert "it runs on with the parameters it had" in restart.end().message
    assert answer(manager, "a") == " x"


@pytest.mark.parametrize("how", ["stop", "shutdown", "end"])
def test_a_model_that_is_stopped_while_it_restarts_is_not_started_with_its_earlier_parameters(make, how):
    manager = make("ab")
    first, cancel = worker(manager, "a"), Cancel()
    other = Asking(lambda: list(ask(manager, "b", "hold", cancel)))
    wait_until(lambda: states(manager) == "un re" and worker(manager, "b").is_in_use, "the other one is in use")
    kinds: list[str] = []
    manager.models.subscribe(lambda event: kinds.append(event.kind))
    restart = restarted(manager)
    wait_until(lambda: worker(manager, "a").reason == "waiting for memory", "it waits for its turn")
    waiting = Asking(lambda: answer(manager, "a"))
    wait_until(lambda: worker(manager, "a").gate.waiting == 1, "a request waits")
    calls: dict[str, Callable[[], object]] = {
        "stop": lambda: manager.worker_apply("a", "stop", None, {}),
        "shutdown": lambda: manager.model_shutdown("a", None),
        "end": manager.models.stop,
    }
    Asking(calls[how]).end()
    assert "was stopped" in restart.end().message
    assert isinstance(waiting.end(), NotReady)
    assert (first.engine.starts, first.state) == (1, State.STOPPED)
    assert "changed" not in kinds, "with the end of its service it is not remembered as stopped by hand"
    cancel.set(NotReady("enough"))
    assert isinstance(other.end(), NotReady)


def test_where_an_engine_does_not_let_go_those_in_line_for_the_next_one_are_refused(make, monkeypatch):
    manager = make("a")
    first = worker(manager, "a")
    waiting: list[Asking] = []

    def never(timeout: float) -> bool:
        waiting.append(Asking(lambda: answer(manager, "a")))
        wait_until(lambda: worker(manager, "a").gate.waiting == 1, "a request waits")
        return False

    monkeypatch.setattr(first.gate, "wait_idle", never)
    assert not restarted(manager).end().success
    assert isinstance(waiting[0].end(), NotReady)
    assert worker(manager, "a") is first
    assert answer(manager, "a") == " x"


def test_a_change_that_leaves_a_model_unloaded_loads_it_for_those_that_came_meanwhile(make, monkeypatch):
    manager = make("ab")
    first = worker(manager, "b")
    asked: list[Asking] = []

    def stop(self: ModelWorker) -> None:
        asked.append(Asking(lambda: answer(manager, "b")))
        wait_until(lambda: worker(manager, "b").gate.waiting == 1, "a request waits")

    monkeypatch.setattr(first, "stop", lambda: stop(first))
    assert manager.worker_apply("b", "update_params", None, {"size": 3}).success
    assert asked[0].end() == " x"
    assert states(manager) == "un re"
