"""The choices of one answer: at once where slots are free, else in turn, and all of them end together."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import in_process
import pytest
from in_process import SCRIPTED
from modelyard.blueprints.openai.answers import Header, Usage
from modelyard.blueprints.openai.choices import ChoiceBursts, check_copies, open_choices, parts_of
from modelyard.blueprints.openai.events import ChatEvents
from modelyard.blueprints.openai.schemas import Generation
from modelyard.engines.scripted import Answers, Asked
from modelyard.errors import Cancelled, EngineError, InvalidRequest, Overloaded
from modelyard.server.runtime import Runtime
from modelyard.streams import Cancel, OutputStream
from modelyard.types import Burst, GenerateRequest, WorkerType
from running import wait_until


def table(answers: Answers, **params: Any) -> dict[str, Any]:
    return {"name": "gpt", "worker_class": SCRIPTED, "script": answers.key, "max_waiting": 1, **params}


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def service(tmp_path: Path, answers: Answers) -> Iterator[Runtime]:
    """A service whose model has two slots, and a line of one."""
    with in_process.service(tmp_path, [table(answers, limit_model_concurrency=2)]) as runtime:
        yield runtime
        answers.release()
        assert runtime.budget.held == 0, "a thread of the budget was lost"
        assert free_slots(runtime) == 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("choice")]


def free_slots(runtime: Runtime) -> int:
    (worker,) = runtime.local.models.workers()
    return worker.gate.free


def opened(runtime: Runtime, *prompts: str, cancel: Cancel | None = None) -> OutputStream:
    requests = [GenerateRequest("gpt", prompt=prompt) for prompt in prompts]
    return open_choices(runtime.manager, runtime.budget, requests, cancel or Cancel())


def read(stream: OutputStream, count: int | None = None) -> list[str]:
    """Return the text of each choice, at the end or once ``count`` choices have begun."""
    texts: dict[int, str] = {}
    for burst in stream:
        for index, part in parts_of(burst) if burst else ():
            texts[index] = texts.get(index, "") + "".join(part.pieces)
        if len(texts) == count:
            break
    return [texts[index] for index in sorted(texts)]


def test_choices_are_computed_at_once(service: Runtime, answers: Answers) -> None:
    answers.hold("a")
    answers.hold("b")
    with opened(service, "one", "two") as stream:
        assert sorted(read(stream, 2)) == ["a", "b"]
        assert free_slots(service) == 0
        assert service.budget.held == 1, "the second takes a thread, the first has that of the call"
        answers.release()
        read(stream)


def test_more_prompts_than_slots_are_computed_as_slots_come_free(service: Runtime, answers: Answers) -> None:
    pair = threading.Barrier(2, timeout=20)

    def answer(asked: Asked) -> str:
        pair.wait()
        return f"re {asked.prompt}"

    answers.otherwise(answer)
    with opened(service, *"abcdef") as stream:
        assert read(stream) == [f"re {letter}" for letter in "abcdef"]


def test_a_choice_without_a_slot_follows_when_another_ends(service: Runtime, answers: Answers) -> None:
    answers.hold("other")
    with opened(service, "alone") as other:
        assert read(other, 1) == ["other"]
        with opened(service, "one", "two", "three") as stream:
            assert read(stream) == ["one", "two", "three"]


def test_one_choice_waits_in_line_and_the_others_follow_it(service: Runtime, answers: Answers) -> None:
    answers.hold("x")
    answers.hold("y")
    first, second = opened(service, "x"), opened(service, "y")
    assert read(first, 1) + read(second, 1) == ["x", "y"]
    with opened(service, "one", "two") as stream:
        (worker,) = service.local.models.workers()
        wait_until(lambda: worker.gate.waiting == 1, "a choice waits in line")
        with pytest.raises(Overloaded), opened(service, "three", "four") as refused:
            read(refused)
        first.close()
        second.close()
        assert read(stream) == ["one", "two"]


def test_a_cancel_ends_all_choices(service: Runtime, answers: Answers) -> None:
    answers.hold("a")
    answers.hold("b")
    cancel = Cancel()
    with opened(service, "one", "two", "never", cancel=cancel) as stream:
        read(stream, 2)
        cancel.set()
        with pytest.raises(Cancelled):
            read(stream)
    assert [asked.cancelled for asked in answers.asked] == [True, True], "the third was never asked"


def test_an_error_of_one_choice_ends_all(service: Runtime, answers: Answers) -> None:
    answers.hold("a")
    answers.fail("the engine broke", "b")
    with opened(service, "one", "two") as stream, pytest.raises(EngineError, match="broke"):
        read(stream)
    assert all(asked.ended.wait(5) for asked in answers.asked)


def test_more_copies_than_slots_are_refused_with_the_number(service: Runtime) -> None:
    check_copies(service.manager, "gpt", 2)
    check_copies(service.manager, "nobody", 3)
    with pytest.raises(InvalidRequest, match="2 slots") as raised:
        check_copies(service.manager, "gpt", 3)
    assert raised.value.errors[0]["field"] == "n"


def test_choices_of_a_worker_behind_a_gateway(tmp_path: Path, answers: Answers) -> None:
    store = f"sqlite:{tmp_path}/registry.db"
    tables = [table(answers, limit_model_concurrency=2, max_waiting=0)]
    with (
        in_process.service(tmp_path / "w", tables, role="worker", registry=store) as worker,
        in_process.service(tmp_path / "g", role="gateway", registry=store) as gateway,
    ):
        wait_until(lambda: gateway.manager.get_model_instances("gpt@llm"), "the worker is in view")
        answers.hold("a")
        answers.hold("b")
        with opened(gateway, "one", "two") as stream:
            assert sorted(read(stream, 2)) == ["a", "b"]
        wait_until(lambda: free_slots(worker) == 2, "the slots are free again")
        # The worker refuses what has no slot, and the gateway asks again when a choice has ended.
        answers.otherwise(lambda asked: asked.prompt)
        with opened(gateway, *"abcde") as stream:
            assert read(stream) == list("abcde")
        assert gateway.manager.load_of("gpt", WorkerType.LLM) is not None
        with pytest.raises(InvalidRequest):
            check_copies(gateway.manager, "gpt", 3)
        assert gateway.budget.held == 0


def test_what_several_choices_have_ready_leaves_in_one_write() -> None:
    header, requests = Header("chatcmpl-1", "gpt", 1), [GenerateRequest("gpt")] * 2
    events = ChatEvents(header, Usage(2), Generation(requests, 2, {}))
    burst = ChoiceBursts.of([(1, Burst(["x"])), (0, Burst(["y", "z"], "length"))])
    assert burst.pieces == ["x", "y", "z"]
    (write,) = events.encode(burst)
    choices = [event.partition(b'"choices":')[2] for event in write.split(b"\n\n")[:-1]]
    assert [choice[:11] for choice in choices] == [b'[{"index":1', *[b'[{"index":0'] * 3]
    assert events.end().count(b'"finish_reason":"stop"') == 1, "of the choice that has none yet"
