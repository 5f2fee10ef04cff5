"""One declaration gives the reading of text, the check of JSON and TOML, and the description."""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass

import pytest
from modelyard.engines.base import ModelParams
from modelyard.engines.echo import EchoParams
from modelyard.engines.llama_cpp import LlamaCppParams
from modelyard.errors import InvalidRequest
from modelyard.settings import params
from modelyard.settings.params import MASK, param
from modelyard.settings.settings import Settings


@dataclass
class Sample:
    """One parameter of each kind."""

    name: str = param(help="what it is called", tags=["fixed"])
    count: int = param(4, help="how many", min=1, max=10)
    share: float = param(0.5, help="how much", min=0, max=1, tags=["shared"])
    loud: bool = param(False, help="whether it shouts")
    mood: str = param("good", help="its mood", choices=["good", "bad"])
    note: str | None = param(None, help="a note")
    limit: int | None = param(None, help="a limit", min=0)
    table: dict[str, str] = param({}, help="a word for each name")
    lists: dict[str, list[str]] = param({"a": ["b", "c"]}, help="some words for each name")
    words: list[str] = param(["a", "b"], help="its words")
    more: list[str] | None = param(None, help="more of them")
    secret: str | None = param(None, help="a password", tags=["privacy"])
    keys: list[str] = param([], help="some keys", tags=["privacy"])
    code: str | None = param(None, help="a class", tags=["operator"])
    hidden: int = 7


def declared(name: str) -> params.Param:
    return params.params_of(Sample)[name]


# What text (environment, command line) stands for


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("name", " as it is ", " as it is "),
        ("count", " 7 ", 7),
        ("share", "0.25", 0.25),
        ("share", "1", 1.0),
        ("share", "1e-3", 0.001),
        ("loud", "TRUE", True),
        ("loud", "on", True),
        ("loud", "yes", True),
        ("loud", "1", True),
        ("loud", "0", False),
        ("loud", "No", False),
        ("loud", "off", False),
        ("mood", "bad", "bad"),
        ("note", "", None),
        ("note", "x=y", "x=y"),
        ("limit", "", None),
        ("limit", "3", 3),
        ("words", "x, y ,,z", ["x", "y", "z"]),
        ("words", "", []),
        ("table", "a=b, gpt-4o = x=y ,,", {"a": "b", "gpt-4o": "x=y"}),
        ("table", "", {}),
        ("lists", "a=b+c, d = e", {"a": ["b", "c"], "d": ["e"]}),
    ],
)
def test_text_becomes_the_declared_type(name, text, value):
    read = declared(name).parse(text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("count", "many", "'many' is not an integer"),
        ("count", "1.5", "not an integer"),
        ("count", "", "not an integer"),
        ("count", "0", "0 is less than 1"),
        ("count", "11", "11 is more than 10"),
        pytest.param("count", "9" * 5000, "not an integer", id="count-5000-digits"),
        pytest.param("count", "9" * 400, "64 bits", id="count-400-digits"),
        ("share", "nan", "must be a finite number"),
        ("share", "inf", "must be a finite number"),
        ("share", "-1e999", "must be a finite number"),
        ("share", "1.01", "is more than 1"),
        ("loud", "maybe", "neither true nor false"),
        ("loud", "", "neither true nor false"),
        ("mood", "odd", "'odd' is not one of good, bad"),
        ("mood", "good ", "not one of good, bad"),
        ("table", "a", "'a' is not NAME=VALUE"),
        ("table", "a=b,a=c", "'a' is there twice"),
        ("table", "a=", "'a': neither the name nor a value may be empty"),
        ("lists", "=a", "'': neither the name nor a value may be empty"),
        ("lists", "a=+", "'a': neither the name nor a value may be empty"),
    ],
)
def test_text_that_does_not_fit_is_refused_with_the_reason(name, text, why):
    with pytest.raises(ValueError, match=why):
        declared(name).parse(text)


# What JSON and TOML may say


@pytest.mark.parametrize(
    ("name", "value", "taken"),
    [
        ("count", 7, 7),
        ("share", 1, 1.0),
        ("share", 0.25, 0.25),
        ("loud", True, True),
        ("note", None, None),
        ("note", "", ""),
        ("words", [], []),
        ("more", None, None),
        ("more", ["x"], ["x"]),
        ("table", {"a": "b"}, {"a": "b"}),
        ("lists", {"a": ["b"]}, {"a": ["b"]}),
    ],
)
def test_a_value_of_the_right_type_is_taken(name, value, taken):
    checked = declared(name).check(value)
    assert checked == taken
    assert type(checked) is type(taken)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("count", "7", "must be an integer, not a string"),
        ("count", 7.0, "must be an integer, not a number"),
        ("count", True, "must be an integer, not true or false"),
        ("count", None, "must not be null"),
        ("count", [7], "must be an integer, not a list"),
        ("share", "0.5", "must be a number, not a string"),
        ("share", False, "must be a number, not true or false"),
        ("share", math.nan, "must be a finite number"),
        ("share", math.inf, "must be a finite number"),
        ("share", -math.inf, "must be a finite number"),
        pytest.param("share", 10**400, "64 bits", id="share-huge"),
        pytest.param("count", -(10**400), "64 bits", id="count-huge"),
        pytest.param("count", 10**5000, "64 bits", id="count-too-long-to-print"),
        ("loud", 1, "must be true or false, not an integer"),
        ("loud", "true", "must be true or false, not a string"),
        ("mood", "odd", "not one of"),
        ("note", 5, "must be a string, not an integer"),
        ("note", {}, "must be a string, not an object"),
        ("note", datetime.date(2020, 1, 1), "must be a string, not date"),
        ("words", "x,y", "must be a list of strings"),
        ("words", ["x", 1], "must be a list of strings"),
        ("words", None, "must not be null"),
    ],
)
def test_a_value_of_another_type_or_out_of_range_is_refused(name, value, why):
    with pytest.raises(ValueError, match=why):
        declared(name).check(value)


def test_the_bounds_themselves_are_within():
    assert [declared("count").check(n) for n in (1, 10)] == [1, 10]


def test_a_field_that_is_no_parameter_is_not_set_over_json():
    assert "hidden" not in params.params_of(Sample)
    assert params.from_json(Sample, {"hidden": 1}) == {}


def test_json_ignores_null_and_unknown_keys():
    assert params.from_json(Sample, {"count": 3, "note": None, "unknown": object(), "share": None}) == {"count": 3}


def test_json_takes_a_list_as_its_description_shows_it():
    shown = declared("words").shown(["x", "y=1"])
    assert params.from_json(Sample, {"words": shown}) == {"words": ["x", "y=1"]}
    assert params.from_json(Sample, {"words": ""}) == {"words": []}


def test_json_names_every_field_at_fault():
    with pytest.raises(InvalidRequest) as caught:
        params.from_json(Sample, {"count": "x", "share": 2, "mood": "good"})
    assert [e["field"] for e in caught.value.errors] == ["params.count", "params.share"]


def test_a_mask_that_is_sent_back_means_unchanged():
    assert params.from_json(Sample, {"secret": MASK, "note": MASK}) == {"note": MASK}


def test_what_the_operator_sets_may_be_sent_back_and_never_changed():
    assert params.from_json(Sample, {"code": "a:B"}, {"code": "a:B"}) == {}
    for current in ({"code": "a:C"}, {}):
        with pytest.raises(InvalidRequest, match=r"params\.code: can't be set over HTTP"):
            params.from_json(Sample, {"code": "a:B"}, current)


def test_the_default_of_what_the_operator_sets_counts_as_left_out():
    shown = params.params_of(EchoParams)["environment"].shown({})
    for value in ({}, shown):  # the second as DB-GPT's command line sends it
        assert params.from_json(EchoParams, {"environment": value}) == {}
    for value, current in (({"A": "b"}, {}), ({}, {"environment": {"A": "b"}})):
        with pytest.raises(InvalidRequest, match=r"params\.environment: can't be set over HTTP"):
            params.from_json(EchoParams, {"environment": value}, current)


# What people see


def test_a_description_has_the_keys_of_dbgpt():
    described = {d["param_name"]: d for d in params.describe(Sample)}
    assert list(described) == list(params.params_of(Sample))
    assert described["count"] == {
        "param_class": "builtins.Sample",
        "param_name": "count",
        "param_type": "int",
        "description": "how many",
        "default_value": 4,
        "required": False,
        "valid_values": None,
        "ext_metadata": {"min": 1, "max": 10},
    }
    assert described["name"]["required"] is True
    assert described["name"]["ext_metadata"] == {"tags": "fixed"}
    assert described["mood"]["valid_values"] == ["good", "bad"]
    assert (described["words"]["param_type"], described["words"]["default_value"]) == ("str", "a,b")
    assert [described[n]["param_type"] for n in ("share", "loud", "note", "limit", "more")] == [
        "float",
        "bool",
        "str",
        "int",
        "str",
    ]


def test_a_private_value_is_masked_wherever_it_is_shown():
    sample = Sample(name="n", secret="hunter2")
    assert params.shown(sample)["secret"] == MASK
    assert {d["param_name"]: d["default_value"] for d in params.describe(Sample, sample)}["secret"] == MASK
    assert "hunter2" not in str(params.describe(Sample, sample)) + str(params.shown(sample))


@pytest.mark.parametrize(
    ("secret", "keys", "shown"),
    [(None, [], (None, "")), ("", [], ("", "")), ("hunter2", ["a", "b"], (MASK, MASK))],
)
def test_a_private_value_is_masked_only_where_it_is_set(secret, keys, shown):
    found = params.shown(Sample(name="n", secret=secret, keys=keys))
    assert (found["secret"], found["keys"]) == shown


def test_the_values_of_an_instance_are_described_as_defaults():
    sample = Sample(name="n", count=9)
    assert {d["param_name"]: d["default_value"] for d in params.describe(Sample, sample)}["count"] == 9


@pytest.mark.parametrize("cls", [Settings, ModelParams, EchoParams, LlamaCppParams])
def test_every_default_of_the_package_passes_its_own_check(cls):
    for name, one in params.params_of(cls).items():
        assert one.help
        assert one.type in (str, int, float, bool, list, dict), name
        if not one.required:
            assert one.check(one.default) == one.default, name


@pytest.mark.parametrize("cls", [Settings, EchoParams, LlamaCppParams])
def test_every_number_of_the_package_has_a_range(cls):
    for one in params.params_of(cls).values():
        if one.type in (int, float):
            assert one.min is not None, one.name
            assert one.max is not None, one.name
