"""Names at a gateway over two workers, by the official client: routing to instances stays below fallbacks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import openai
import pytest
from in_process import SCRIPTED, service, url_of
from modelyard.engines.scripted import Answers
from modelyard.errors import NotReady, PromptTooLong
from modelyard.server.runtime import Runtime
from modelyard.types import JSONObject
from modelyard.worker.naming import NamingManager
from openai import OpenAI
from running import wait_until

HELLO: list[JSONObject] = [{"role": "user", "content": "a b"}]
NAMES = {"aliases": {"gpt-4o": "large"}, "fallbacks": {"large": ["small"]}}


class Yard:
    """A gateway with names, over two workers: both have ``large``, one has ``small``."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.large = [Answers(), Answers()]
        self.small = Answers()
        controller = stack.enter_context(service(folder / "c", role="controller", registry="memory:"))
        self.registry = url_of(controller)
        tables = [{"name": "large", "worker_class": SCRIPTED, "script": each.key} for each in self.large]
        tables[0]["context_length"], tables[1]["context_length"] = 8192, 4096  # type: ignore[assignment]
        small = {"name": "small", "worker_class": SCRIPTED, "script": self.small.key, "context_length": 2048}
        self.workers = [
            stack.enter_context(service(folder / "w0", [tables[0], small], role="worker", registry=self.registry)),
            stack.enter_context(service(folder / "w1", [tables[1]], role="worker", registry=self.registry)),
        ]
        self.gateway = stack.enter_context(service(folder / "g", role="gateway", registry=self.registry, **NAMES))
        assert isinstance(self.gateway.manager, NamingManager)
        self.client = stack.enter_context(client_of(self.gateway))
        wait_until(lambda: len(self.gateway.manager.get_all_model_instances()) == 3, "all are in view")


def client_of(runtime: Runtime) -> OpenAI:
    url = f"{url_of(runtime).removesuffix('/api')}/v1"
    return OpenAI(base_url=url, api_key="none", max_retries=0, timeout=30, _strict_response_validation=True)


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    with ExitStack() as stack:
        yield Yard(stack, tmp_path)


def test_an_alias_is_answered_under_its_own_name(yard: Yard) -> None:
    raw = yard.client.chat.completions.with_raw_response.create(model="gpt-4o", messages=HELLO)  # type: ignore[arg-type]
    answer = raw.parse()
    assert (answer.model, answer.choices[0].message.content) == ("gpt-4o", "a b")
    assert raw.headers["Modelyard-Model"] == "large"


def test_models_of_other_processes_have_a_context_length(yard: Yard) -> None:
    models = {model.id: model.to_dict() for model in yard.client.models.list()}
    assert {name: model["max_model_len"] for name, model in models.items()} == {
        "gpt-4o": 4096,
        "large": 4096,
        "small": 2048,
    }
    assert yard.client.models.retrieve("gpt-4o").to_dict()["alias_of"] == "large"


def test_a_fallback_answers_after_all_instances_have_refused(yard: Yard) -> None:
    for answers in yard.large:
        answers.fail(NotReady("it is being changed"))
    stream = yard.client.chat.completions.create(model="gpt-4o", messages=HELLO, stream=True)  # type: ignore[arg-type]
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "a b"
    assert {chunk.model for chunk in chunks} == {"gpt-4o"}
    assert stream.response.headers["Modelyard-Model"] == "small"
    assert [len(answers.asked) for answers in (*yard.large, yard.small)] == [1, 1, 1]


def test_a_fallback_answers_for_a_model_that_was_stopped(yard: Yard) -> None:
    assert yard.gateway.manager.worker_apply("large", "stop", None, {}).success
    answer = yard.client.chat.completions.create(model="gpt-4o", messages=HELLO)  # type: ignore[arg-type]
    assert (answer.model, answer.choices[0].message.content) == ("gpt-4o", "a b")
    assert [len(answers.asked) for answers in (*yard.large, yard.small)] == [0, 0, 1]

    def status() -> object:
        return yard.client.models.retrieve("gpt-4o").to_dict()["status"]

    wait_until(lambda: status() == {"value": "stopped"}, "the list has it")


def test_one_instance_that_refuses_is_no_reason_for_a_fallback(yard: Yard) -> None:
    yard.large[0].fail(NotReady("it is being changed"))
    for _ in range(4):
        answer = yard.client.chat.completions.create(model="gpt-4o", messages=HELLO)  # type: ignore[arg-type]
        assert answer.choices[0].message.content == "a b"
    assert yard.small.asked == []


def test_a_prompt_that_is_too_long_goes_on_at_once(yard: Yard) -> None:
    for answers in yard.large:
        answers.fail(PromptTooLong("9000 tokens"))
    answer = yard.client.chat.completions.create(model="large", messages=HELLO)  # type: ignore[arg-type]
    assert answer.choices[0].message.content == "a b"
    assert sum(len(answers.asked) for answers in yard.large) == 1
    assert len(yard.small.asked) == 1


def test_an_overflow_is_named_once_however_many_hops_it_has_come(yard: Yard, tmp_path: Path) -> None:
    # A second gateway has the first as the backend of its model.
    table = {
        "name": "far",
        "engine": "openai",
        "base_url": f"{url_of(yard.gateway).removesuffix('/api')}/v1",
        "backend_model": "small",
        "limit_model_concurrency": 8,
    }
    text = "9000 tokens, model 'small' has a context of 2048"
    with service(tmp_path / "far", [table], role="standalone") as far, client_of(far) as client:
        for at, model in ((yard.client, "small"), (client, "far")):
            for stream in (False, True):
                yard.small.fail(PromptTooLong(text))
                with pytest.raises(openai.BadRequestError) as caught:
                    at.chat.completions.create(model=model, messages=HELLO, stream=stream)  # type: ignore[call-overload]
                error = caught.value.body
                assert isinstance(error, dict)
                assert error["message"] == f"the prompt is too long (context_length_exceeded): {text}"
                assert error["code"] == "context_length_exceeded"
