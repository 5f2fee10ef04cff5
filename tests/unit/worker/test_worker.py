"""One model: its states, its slots, and what its callers see of whatever happens inside."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from modelyard import streams
from modelyard.engines.base import Engine, ModelParams
from modelyard.errors import (
    BadModelFile,
    Cancelled,
    ConfigError,
    Draining,
    EngineError,
    MissingLibrary,
    ModelyardError,
    NetworkFailure,
    NotReady,
    Overloaded,
    PromptTooLong,
    StartFailed,
    StartTimeout,
    Unsupported,
)
from modelyard.streams import Cancel, OutputStream
from modelyard.types import GenerateRequest, Terms
from modelyard.worker.start import start_error
from modelyard.worker.states import State
from modelyard.worker.worker import ModelWorker
from running import wait_until
from steered import Steered, SteeredParams

Make = Callable[..., ModelWorker]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes workers over a `Steered`, and stops them in the end."""
    Steered.reset()
    made: list[ModelWorker] = []

    def worker(**params: Any) -> ModelWorker:
        given = {"model_name": "m", "engine": "steered", **params}
        made.append(ModelWorker(Steered(SteeredParams(**given))))
        return made[-1]

    yield worker
    Steered.go.set()
    for worker_ in made:
        if worker_.state is State.READY:
            worker_.stop()


@pytest.fixture
def ready(make) -> Make:
    def worker(**params: Any) -> ModelWorker:
        made = make(**params)
        made.start()
        return made

    return worker


def ask(worker: ModelWorker, prompt: str, cancel: Cancel | None = None, **terms: Any) -> OutputStream:
    return worker.generate_stream(GenerateRequest("m", prompt=prompt, terms=Terms(**terms)), cancel or Cancel())


def steered(worker: ModelWorker) -> Steered:
    assert isinstance(worker.engine, Steered)
    return worker.engine


def first_piece(stream: OutputStream) -> str:
    return next(burst for burst in stream if burst is not None).pieces[0]


def in_thread(call: Callable[[], object]) -> Callable[[], object]:
    """Run ``call`` in a thread; what is returned gives its result, or its error, in the end."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(call())
        except ModelyardError as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def result() -> object:
        thread.join(30)
        return outcome[0]

    return result


# Its name


def test_an_alias_is_the_name_it_is_called_by(make):
    worker = make(model_alias="nick", worker_type="text2vec")
    assert (worker.name, worker.key) == ("nick", "nick@text2vec")
    assert make().key == "m@llm"


# Its life


def test_it_goes_from_stopped_to_ready_and_back(make):
    worker = make()
    assert (worker.state, steered(worker).starts) == (State.STOPPED, 0)
    worker.start()
    assert (worker.state, worker.reason, steered(worker).starts) == (State.READY, "", 1)
    assert worker.started_in >= 0
    worker.stop()
    assert (worker.state, steered(worker).stops) == (State.STOPPED, 1)
    worker.start()
    assert (worker.state, steered(worker).starts) == (State.READY, 2)


def test_while_it_starts_it_says_how_far_it_is_and_answers_nothing(make):
    worker = make(hold_start=True)
    result = in_thread(worker.start)
    wait_until(lambda: worker.reason == "stretching", "it told its progress")
    assert worker.state is State.STARTING
    for call in (lambda: ask(worker, "a"), lambda: worker.count_token("a"), worker.metadata, worker.stop, worker.start):
        with pytest.raises(NotReady, match="'m' is starting"):
            call()
    Steered.go.set()
    assert result() is None
    assert worker.state is State.READY


@pytest.mark.parametrize(
    ("fail", "kind"),
    [
        ("timeout", StartTimeout),
        ("network", NetworkFailure),
        ("library", MissingLibrary),
        ("file", BadModelFile),
        ("other", StartFailed),
        ("memory", StartFailed),
        ("exit", StartFailed),
    ],
)
def test_a_start_that_fails_says_why_and_may_be_tried_again(make, fail, kind):
    worker = make(fail=fail)
    for _ in range(2):
        with pytest.raises(StartFailed) as caught:
            worker.start()
        assert type(caught.value) is kind
        assert (worker.state, worker.reason) == (State.FAILED, str(caught.value))
        with pytest.raises(NotReady, match="'m' is failed") as refused:
            ask(worker, "a")
        assert str(caught.value) in str(refused.value)
    assert Steered.running() == []


def test_weights_that_are_not_there_fail_the_start_before_the_engine(make):
    def locate() -> None:
        raise BadModelFile("there is no model file x.gguf")

    worker = ModelWorker(Steered(SteeredParams(model_name="m", engine="steered")), locate)
    with pytest.raises(BadModelFile, match=r"x\.gguf"):
        worker.start()
    assert worker.state is State.FAILED
    assert Steered.running() == []


def test_a_start_that_hangs_is_left_behind_and_undone_when_it_comes_to_life(make):
    worker = make(hold_start=True, start_timeout=0.1)
    first = worker.engine
    with pytest.raises(StartTimeout, match=r"within 0\.1 s \(start_timeout\)"):
        worker.start()
    assert worker.state is State.FAILED
    assert worker.engine is not first, "the next try needs an engine of its own"
    Steered.go.set()
    wait_until(lambda: first.stops == 1, "the late one was stopped")
    worker.start()
    assert worker.state is State.READY
    assert Steered.running() == [worker.engine]


def test_stopping_what_does_not_run_does_nothing(make):
    worker = make(fail="other")
    worker.stop()
    assert worker.state is State.STOPPED
    with pytest.raises(StartFailed):
        worker.start()
    worker.stop()
    assert (worker.state, worker.reason, steered(worker).stops) == (State.STOPPED, "", 0)


def test_starting_what_runs_is_refused_and_leaves_it(ready):
    worker = ready()
    with pytest.raises(NotReady, match="'m' is ready: it can't be started now"):
        worker.start()
    assert (worker.state, steered(worker).starts) == (State.READY, 1)


def test_a_stop_ends_answers_under_way_and_in_line_with_the_reason(ready):
    worker = ready(limit_model_concurrency=1)
    running, waiting = ask(worker, "hold"), ask(worker, "a")
    assert first_piece(running) == " hold"
    outcomes = [in_thread(lambda stream=stream: list(stream)) for stream in (running, waiting)]
    worker.stop()
    for outcome in outcomes:
        error = outcome()
        assert isinstance(error, NotReady)
        assert "'m' was stopped" in str(error)
    assert (worker.state, steered(worker).generating, steered(worker).stops) == (State.STOPPED, 0, 1)


def test_a_stop_ends_an_embedding_under_way_with_the_reason(ready):
    worker = ready(worker_type="text2vec")
    outcome = in_thread(lambda: worker.embeddings(["hold"], Cancel()))
    wait_until(lambda: steered(worker).generating, "it computes")
    worker.stop()
    error = outcome()
    assert isinstance(error, NotReady), f"the client is still there, and was told: {error!r}"


def test_a_stop_ends_embeddings_that_wait_for_the_texts_of_others_with_the_reason(ready):
    worker = ready(worker_type="text2vec", joint_texts=8)
    failures: list[BaseException] = []

    def embed(text: str) -> None:
        with pytest.raises(NotReady) as caught:
            worker.embeddings([text], Cancel())
        failures.append(caught.value)

    threads = [threading.Thread(target=embed, args=(text,)) for text in ("hold", "a", "b")]
    for number, thread in enumerate(threads):
        thread.start()
        wait_until(lambda taken=number + 1: worker.gate.slots - worker.gate.free == taken, "it has a slot")
    wait_until(lambda: steered(worker).generating == 1, "the first is computed")
    worker.stop()
    for thread in threads:
        thread.join(10)
    assert [str(failure) for failure in failures] == ["model 'm' was stopped"] * 3
    assert worker.gate.free == worker.gate.slots


def test_embeddings_that_wait_are_computed_in_one_call_of_the_engine(ready, monkeypatch):
    worker, calls, go = ready(worker_type="text2vec", joint_texts=8), [], threading.Event()
    embed = steered(worker).embed

    def counted(texts: Any, cancel: Any) -> Any:
        calls.append(list(texts))
        if "first" in texts:
            assert go.wait(10)
        return embed(texts, cancel)

    monkeypatch.setattr(worker.engine, "embed", counted)
    found: dict[str, Any] = {}

    def ask(text: str) -> None:
        rank = worker.rerank("qq", [text], Cancel()) if text == "rank" else None
        found[text] = rank or worker.embeddings([text], Cancel())[0]

    threads = [threading.Thread(target=ask, args=(text,)) for text in ("first", "a", "rank")]
    for number, thread in enumerate(threads):
        thread.start()
        wait_until(lambda waiting=number: len(calls) == 1 and len(worker._joint._line) == waiting, "it waits")
    go.set()
    for thread in threads:
        thread.join(10)
    assert calls == [["first"], ["a", "qq", "rank"]]
    assert found["a"] == [1.0, 1.0]
    assert found["rank"] == pytest.approx([9 / (5**0.5 * 17**0.5)])


def test_an_engine_that_does_not_let_go_is_not_freed_under_its_answers(ready):
    worker = ready()
    stream = ask(worker, "hold")
    first_piece(stream)
    with pytest.raises(EngineError, match="does not end 1 answers"):
        worker.stop(timeout=0.01)
    assert (worker.state, steered(worker).stops) == (State.READY, 0)
    stream.close()
    worker.stop()
    assert steered(worker).stops == 1


def test_an_engine_that_fails_to_stop_leaves_a_failed_model_with_the_reason(ready, monkeypatch):
    worker = ready()
    monkeypatch.setattr(worker.engine, "stop", lambda: 1 // 0)
    with pytest.raises(EngineError, match="did not stop in order: ZeroDivisionError") as failure:
        worker.stop()
    assert (worker.state, worker.reason) == (State.FAILED, str(failure.value))
    with pytest.raises(NotReady, match=r"is failed .*ZeroDivisionError"):
        ask(worker, "a")


def test_a_quarantined_model_says_what_to_do_and_starts_by_hand(make):
    worker = make()
    worker.quarantine()
    assert worker.state is State.FAILED
    with pytest.raises(NotReady, match=r"quarantined.*modelyard models start m"):
        ask(worker, "a")
    worker.start()
    assert worker.state is State.READY


# Answers


def test_a_stream_carries_the_engines_bursts(ready):
    with ask(ready(), "a b c") as stream:
        bursts = [burst for burst in stream if burst]
    assert "".join(piece for burst in bursts for piece in burst.pieces) == " a b c"
    assert bursts[-1].finish_reason == "stop"


def test_a_whole_answer_has_text_usage_and_reason(ready):
    request = GenerateRequest("m", prompt="a b", metrics=True)
    output = ready().generate(request, Cancel())
    assert (output.text, output.error_code, output.finish_reason) == (" a b", 0, "stop")
    assert output.usage == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}
    assert output.metrics == {"speed": 1.0}


@pytest.mark.parametrize("end", ["read", "close", "error", "cancel", "unread"])
def test_however_an_answer_ends_its_slot_is_free_again(ready, end):
    worker = ready(limit_model_concurrency=1)
    cancel = Cancel()
    stream = ask(worker, {"read": "a", "error": "break"}.get(end, "hold"), cancel)
    assert worker.gate.free == 0
    if end == "read":
        list(stream)
    elif end == "error":
        with pytest.raises(EngineError):
            list(stream)
    elif end == "close":
        first_piece(stream)
        stream.close()
    elif end == "cancel":
        first_piece(stream)
        cancel.set(Draining("about to end"))
        with pytest.raises(Draining):
            list(stream)
    else:
        stream.close()
    assert worker.gate.free == 1
    assert steered(worker).generating == 0
    stream.close()
    assert worker.gate.free == 1


def test_an_answer_in_line_says_nothing_yet_and_begins_with_a_slot(ready, monkeypatch):
    monkeypatch.setattr(streams, "TICK", 0.005)
    monkeypatch.setattr("modelyard.worker.worker.TICK", 0.005)
    worker = ready(limit_model_concurrency=1)
    held, waiting = ask(worker, "hold"), ask(worker, "a b")
    first_piece(held)
    assert [next(waiting), next(waiting)] == [None, None]
    assert (held.load, waiting.load) == ("slots=1;free=0;waiting=0", "slots=1;free=0;waiting=1")
    assert steered(worker).generating == 1, "what waits in line does not compute"
    held.close()
    assert "".join(piece for burst in waiting if burst for piece in burst.pieces) == " a b"


def test_a_dead_request_in_line_never_reaches_the_engine(ready, monkeypatch):
    worker = ready(limit_model_concurrency=1)
    asked: list[str] = []
    generate = worker.engine.generate_stream
    monkeypatch.setattr(
        worker.engine, "generate_stream", lambda r, c: (asked.append(r.prompt), generate(r, c))[1], raising=True
    )
    cancel = Cancel()
    held = ask(worker, "hold")
    first_piece(held)
    waiting = ask(worker, "dead", cancel)
    cancel.set()
    held.close()
    with pytest.raises(Cancelled):
        list(waiting)
    assert asked == ["hold"]
    assert worker.gate.free == 1


def test_over_slots_and_line_it_is_refused_at_once(ready):
    worker = ready(limit_model_concurrency=1, max_waiting=1)
    held, waiting = ask(worker, "hold"), ask(worker, "a")
    with pytest.raises(Overloaded, match="max_waiting"):
        ask(worker, "b")
    waiting.close()
    with pytest.raises(Overloaded, match="the caller does not wait"):
        ask(worker, "b", wait=False)
    held.close()
    assert worker.gate.free == 1


@pytest.mark.parametrize("call", ["generate", "stream"])
def test_what_breaks_in_the_engine_is_told_by_its_kind_and_logged(ready, caplog, call):
    worker = ready()
    with pytest.raises(EngineError, match="the engine of model 'm' failed: RuntimeError") as caught:
        if call == "generate":
            worker.generate(GenerateRequest("m", prompt="break"), Cancel())
        else:
            list(ask(worker, "break"))
    assert "the inside of the engine" not in str(caught.value)
    assert "the inside of the engine" in caplog.text


def test_what_the_engine_refuses_reaches_the_caller_as_it_is(ready):
    with pytest.raises(PromptTooLong, match="the prompt is too long"):
        list(ask(ready(), "refuse"))


# Vectors and cheap calls


def test_embeddings_hold_a_slot_and_give_it_back(ready):
    worker = ready(worker_type="text2vec", limit_model_concurrency=1, max_waiting=0)
    assert worker.embeddings(["abc", ""], Cancel()) == [[3.0, 1.0], [0.0, 1.0]]
    cancel = Cancel()
    outcome = in_thread(lambda: worker.embeddings(["hold"], cancel))
    wait_until(lambda: steered(worker).generating, "it computes")
    with pytest.raises(Overloaded):
        worker.embeddings(["a"], Cancel())
    cancel.set()
    assert isinstance(outcome(), Cancelled)
    assert worker.gate.free == 1
    with pytest.raises(EngineError, match="RuntimeError"):
        worker.embeddings(["break"], Cancel())
    assert worker.gate.free == 1


def test_a_reranker_is_asked_itself_and_an_embedder_answers_by_cosine(ready):
    assert ready(worker_type="reranker").rerank("a", ["aa", "b"], Cancel()) == [2.0, 0.0]
    scores = ready(worker_type="text2vec").rerank("aa", ["bb", "b" * 50, ""], Cancel())
    assert scores[0] == pytest.approx(1.0)
    assert scores[0] > scores[1] > scores[2] > 0


def test_cheap_calls_never_stand_in_line(ready):
    worker = ready(limit_model_concurrency=1, max_waiting=0)
    held = ask(worker, "hold")
    first_piece(held)
    assert worker.count_token("a b c") == 3
    assert worker.metadata().metadata["size"] == 1
    held.close()


def test_a_count_that_breaks_is_told_by_its_kind(ready):
    with pytest.raises(EngineError, match="RuntimeError"):
        ready().count_token("break")


def test_a_model_that_can_not_do_it_says_so():
    worker = ModelWorker(Engine(ModelParams(model_name="m", engine="none")))
    worker.start()
    with pytest.raises(Unsupported, match=r"'m' \(llm\) does not count tokens"):
        worker.count_token("a")
    with pytest.raises(Unsupported, match="does not generate text"):
        worker.generate(GenerateRequest("m", prompt="a"), Cancel())
    with pytest.raises(Unsupported, match="does not embed texts"):
        worker.embeddings(["a"], Cancel())
    worker.stop()


# Why it did not start


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (TimeoutError(), StartTimeout, "a time limit passed"),
        (TimeoutError("the backend sleeps"), StartTimeout, "the backend sleeps"),
        (ConnectionRefusedError(111, "refused"), NetworkFailure, "the network failed"),
        (requests.ConnectionError("no route"), NetworkFailure, "no route"),
        (requests.Timeout("slow"), NetworkFailure, "slow"),
        (ImportError("No module named 'torch'"), MissingLibrary, "'torch'; install the library"),
        (ModuleNotFoundError("No module named 'torch'"), MissingLibrary, "'torch'; install the library"),
        (FileNotFoundError(2, "No such file", "x.gguf"), BadModelFile, "x.gguf"),
        (PermissionError(13, "denied", "x.gguf"), BadModelFile, "denied"),
        (OSError("cut short"), BadModelFile, "cut short"),
        (MemoryError(), StartFailed, "not enough memory"),
        (RuntimeError("odd"), StartFailed, "RuntimeError: odd"),
        (KeyError("x"), StartFailed, "KeyError: 'x'"),
        (SystemExit(3), StartFailed, "SystemExit: 3"),
    ],
    ids=lambda value: value.__class__.__name__ if isinstance(value, BaseException) else None,
)
def test_each_kind_of_failure_is_told_with_the_model_and_the_cause(error, kind, says):
    found = start_error(error, "m")
    assert type(found) is kind
    assert str(found).startswith("model 'm' did not start: ")
    assert says in str(found)


def test_a_name_that_can_not_be_resolved_is_not_taken_for_a_bad_file():
    assert type(start_error(socket.gaierror(-2, "Name or service not known"), "m")) is NetworkFailure


@pytest.mark.parametrize("kind", [BadModelFile, StartTimeout, ConfigError])
def test_an_error_of_ours_stays_as_it_is(kind):
    error = kind("told already")
    assert start_error(error, "m") is error
