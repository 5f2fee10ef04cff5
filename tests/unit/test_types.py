"""Plain values have exactly the keys that DB-GPT's clients accept."""

from __future__ import annotations

import pytest
from modelyard.types import (
    ApplyOutcome,
    GenerateRequest,
    ModelInstance,
    ModelMetadata,
    ModelOutput,
    SupportedModel,
    WorkerType,
    known,
    split_worker_key,
    worker_key,
)


@pytest.mark.parametrize(
    ("value", "keys"),
    [
        (ModelOutput(), "text error_code incremental model_context finish_reason usage metrics"),
        (ModelMetadata("m"), "model context_length chat_model metadata ext_metadata"),
        (
            ModelInstance("m@llm", "h", 1),
            "model_name host port weight check_healthy healthy enabled prompt_template last_heartbeat",
        ),
        (ApplyOutcome("m", True, 0.5), "message success timecost"),
        (
            SupportedModel("m", "p", "llm", True, False, True, []),
            "model path worker_type path_exist proxy enabled params",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_keys_are_those_of_the_wire_and_no_others(value, keys):
    assert list(value.to_dict()) == keys.split()


def test_the_metadata_tells_roles_separator_and_template():
    ext = ModelMetadata("m", prompt_chat_template="{{ messages }}").to_dict()["ext_metadata"]
    assert ext == {
        "prompt_roles": ["system", "human", "ai"],
        "prompt_sep": "\n",
        "prompt_chat_template": "{{ messages }}",
    }


@pytest.mark.parametrize("name", ["m", "a@b", "publisher/model-7b.q4", "模型"])
@pytest.mark.parametrize("kind", list(WorkerType))
def test_a_worker_key_splits_into_what_it_was_made_of(name, kind):
    assert split_worker_key(worker_key(name, kind)) == (name, kind)


@pytest.mark.parametrize("key", ["", "m", "@llm", "m@", "m@nothing"])
def test_what_is_no_worker_key_is_refused(key):
    with pytest.raises(ValueError, match=r"."):
        split_worker_key(key)


def test_a_worker_type_prints_as_its_value():
    assert f"{WorkerType.TEXT2VEC}" == "text2vec" == str(WorkerType("text2vec"))


@pytest.mark.parametrize(
    ("request_", "uses"),
    [
        (GenerateRequest("m", messages=[{"role": "human", "content": "a"}], prompt="b"), True),
        (GenerateRequest("m", messages=[{"role": "human", "content": "a"}], chat_model=True), True),
        (GenerateRequest("m", messages=[{"role": "human", "content": "a"}], prompt="b", chat_model=False), False),
        (GenerateRequest("m", messages=[], prompt="b"), False),
    ],
)
def test_messages_win_over_the_prompt_unless_empty_or_no_chat_model(request_, uses):
    assert request_.uses_messages is uses


@pytest.mark.parametrize(("code", "success"), [(0, True), (1, False), (500, False)])
def test_an_output_is_a_success_without_an_error_code(code, success):
    assert ModelOutput(error_code=code).success is success


def test_known_keeps_the_fields_of_a_class_that_are_not_null():
    values = {"text": "a", "usage": None, "content": "b", "error_code": 0}
    assert known(ModelOutput, values) == {"text": "a", "error_code": 0}


def test_two_outputs_share_no_mutable_default():
    one, other = GenerateRequest("m"), GenerateRequest("m")
    one.messages.append({})
    one.stop.append("x")
    assert other.messages == [] == other.stop
