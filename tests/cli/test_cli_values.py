from __future__ import annotations

from typing import Any

import pytest
from modelyard.cli.failures import Misuse
from modelyard.cli.values import allowed, param_of, split_pair, typed
from modelyard.engines.echo import EchoParams
from modelyard.engines.llama_cpp import LlamaCppParams
from modelyard.settings import params
from modelyard.settings.layers import build

ECHO = params.describe(EchoParams)
LLAMA = params.describe(LlamaCppParams)
SECRET = {"param_name": "api_key", "param_type": "str", "valid_values": ["x"], "ext_metadata": {"tags": "privacy"}}


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("delay=1", 1.0),
        ("delay=0.5", 0.5),
        ("max_waiting=7", 7),
        ("register=off", False),
        ("register=true", True),
        ("reply=prompt", "prompt"),
        ("model_alias=12", "12"),
        ("model_alias=a=b", "a=b"),
    ],
)
def test_a_value_has_the_type_that_the_service_describes(pair: str, value: object):
    name, text = split_pair(pair)
    (found,) = typed({name: text}, ECHO, "echo").values()
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        ("delay=soon", "delay: 'soon' is not a number"),
        ("max_waiting=1.5", "max_waiting: '1.5' is not an integer"),
        ("register=maybe", "neither true nor false"),
        ("reply=both", "'both' is not one of token, prompt"),
        ("delay=-1", "less than 0"),
        ("delay=nan", "finite"),
        ("dealy=1", "did you mean delay?"),
        ("n_ctx=1", "see modelyard models params echo"),
    ],
)
def test_what_the_service_would_refuse_or_ignore_is_refused_here(pair: str, reason: str):
    with pytest.raises(Misuse) as caught:
        typed(dict([split_pair(pair)]), ECHO, "echo")
    assert reason in caught.value.message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("pair", ["delay", "=1", " =1", ""])
def test_a_word_that_is_no_pair_is_refused_with_an_example(pair: str):
    with pytest.raises(Misuse, match="expected PARAM=VALUE"):
        split_pair(pair)


def test_a_name_may_be_written_with_dashes():
    assert split_pair("max-waiting=3") == ("max_waiting", "3")


def test_a_private_value_that_does_not_fit_is_not_shown():
    with pytest.raises(Misuse) as caught:
        typed({"api_key": "hunter2"}, [SECRET], "m")
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "value"), [("1", 1), ("1.5", 1.5), ("true", True), ("x.gguf", "x.gguf"), ("[1]", "[1]"), ("null", "null")]
)
def test_without_descriptions_a_value_is_what_it_looks_like(text: str, value: object):
    assert typed({"a": text}, [], "m") == {"a": value}


@pytest.mark.parametrize("cls", [EchoParams, LlamaCppParams])
def test_a_description_tells_the_whole_declaration(cls: type[Any]):
    declared = params.params_of(cls)
    for description in params.describe(cls):
        told, own = param_of(description), declared[description["param_name"]]
        is_text = own.type in (list, dict)
        assert (told.type, told.choices, told.min, told.max, told.tags, told.words) == (
            str if is_text else own.type,
            own.choices,
            own.min,
            own.max,
            own.tags,
            own.words,
        )
        default = own.shown(own.default) if is_text else own.default
        assert (told.required, told.default, told.help) == (own.required, default, own.help)


def test_a_default_is_told_where_the_value_is_another():
    engine = build(EchoParams, {"model_name": "m", "engine": "echo", "delay": 2.0})
    told = {d["param_name"]: param_of(d).default for d in params.describe(EchoParams, engine)}
    assert (told["delay"], told["max_waiting"], told["model_alias"]) == (0.0, 32, None)


def test_what_a_parameter_takes_is_told_in_words():
    ranges = {d["param_name"]: allowed(param_of(d)) for d in LLAMA}
    assert ranges["worker_type"] == "llm | text2vec | reranker"
    assert ranges["n_gpu_layers"] == "-1 .. 10000"
    assert ranges["start_timeout"] == "0.1 .. 86400"
    assert ranges["memory_limit"] == "100.0 MB .. 1125.9 TB"
    assert ranges["model_path"] is None
