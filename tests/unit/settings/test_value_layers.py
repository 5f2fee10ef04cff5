"""Layers: values of one source with their origins, faults raised or collected, and which layer wins."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from modelyard.errors import ConfigError
from modelyard.settings.layers import (
    Faults,
    LayerName,
    Origin,
    build,
    environment_prefix,
    from_environ,
    from_plain,
    from_text,
    refuse_shared_prefixes,
)
from modelyard.settings.params import param


@dataclass
class Sample:
    """A parameter of each kind that layers treat differently."""

    name: str = param(help="what it is called", tags=["fixed"])
    count: int = param(4, help="how many", min=1, max=10)
    share: float = param(0.5, help="how much", min=0, max=1, tags=["shared"])
    loud: bool = param(False, help="whether it shouts")
    mood: str = param("good", help="its mood", choices=["good", "bad"])
    note: str | None = param(None, help="a note")
    words: list[str] = param(["a", "b"], help="its words")
    hidden: int = 7


# Faults


def test_faults_that_are_collected_leave_the_other_values():
    faults = Faults(collect=True)
    assert from_plain(Sample, {"count": 0, "loud": "x", "note": "fine"}, "file", faults) == {"note": "fine"}
    assert from_environ(Sample, "M", {"M_COUNT": "x", "M_MOOD": "bad"}, faults).values == {"mood": "bad"}
    assert faults.messages == [
        "file: count: 0 is less than 1",
        "file: loud: must be true or false, not a string",
        "environment, M_COUNT: count: 'x' is not an integer",
    ]


def test_an_error_in_a_guarded_body_is_collected_or_raised():
    faults = Faults(collect=True)
    with faults.caught():
        raise ConfigError("first")
    assert faults.messages == ["first"]
    with pytest.raises(ConfigError, match="second"), Faults().caught():
        raise ConfigError("second")


def test_an_error_that_is_not_ours_is_not_a_fault():
    with pytest.raises(ZeroDivisionError), Faults(collect=True).caught():
        raise ZeroDivisionError


def test_configuration_is_refused_with_its_place_and_every_fault():
    with pytest.raises(ConfigError) as caught:
        from_plain(Sample, {"count": 0, "loud": "x", "note": "fine"}, "file, model 'm'")
    assert str(caught.value).startswith("file, model 'm': ")
    assert "count: 0 is less than 1" in str(caught.value)
    assert "loud: must be true or false" in str(caught.value)


def test_a_misspelt_parameter_of_the_configuration_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"cuont: no such parameter \(did you mean count\?\)"):
        from_plain(Sample, {"cuont": 1}, "file")
    with pytest.raises(ConfigError, match=r"--set m: zzz: no such parameter$"):
        from_text(Sample, {"zzz": "1"}, "--set m")


def test_a_field_that_is_no_parameter_is_not_set_from_outside():
    with pytest.raises(ConfigError, match="hidden: no such parameter"):
        from_plain(Sample, {"hidden": 1}, "file")


# The environment


def test_the_environment_is_read_under_the_prefix_of_the_model():
    environ = {"M_7B_COUNT": "3", "M_7B_WORDS": "x,y", "OTHER_COUNT": "9", "M_7B_UNKNOWN": "1"}
    assert from_environ(Sample, "M_7B", environ).values == {"count": 3, "words": ["x", "y"]}


def test_a_shared_parameter_is_also_read_for_all_models_and_the_own_prefix_wins():
    environ = {"MODELYARD_SHARE": "0.1", "MODELYARD_COUNT": "2"}
    assert from_environ(Sample, "M", environ).values == {"share": 0.1}
    assert from_environ(Sample, "M", {**environ, "M_SHARE": "0.9"}).values == {"share": 0.9}


def test_a_variable_that_does_not_fit_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"environment, M_COUNT: count: 'x' is not an integer"):
        from_environ(Sample, "M", {"M_COUNT": "x"})


def test_each_value_of_the_environment_has_its_variable_as_origin():
    layer = from_environ(Sample, "M", {"MODELYARD_SHARE": "0.1", "M_COUNT": "2"})
    assert layer.origins == {
        "count": Origin(LayerName.ENVIRONMENT, "M_COUNT"),
        "share": Origin(LayerName.ENVIRONMENT, "MODELYARD_SHARE"),
    }


@pytest.mark.parametrize(
    ("model", "prefix"),
    [
        ("smollm2-135m", "SMOLLM2_135M"),
        ("publisher/Model.Q4", "PUBLISHER_MODEL_Q4"),
        ("--a--", "A"),
        ("a__b", "A_B"),
    ],
)
def test_the_prefix_of_a_model_is_its_name_in_capitals(model, prefix):
    assert environment_prefix(model) == prefix


def test_two_models_with_one_prefix_are_refused_by_name():
    refuse_shared_prefixes(["a-b", "a-b", "a-c"])
    with pytest.raises(ConfigError, match=r"'a-b' and 'A\.B' share the environment prefix A_B_"):
        refuse_shared_prefixes(["a-b", "c", "A.B"])


# Layers


def test_the_first_layer_that_names_a_parameter_wins():
    built = build(Sample, {"count": 1}, {"count": 2, "share": 0.2}, {"name": "n", "share": 0.3, "loud": True})
    assert (built.name, built.count, built.share, built.loud, built.mood) == ("n", 1, 0.2, True, "good")


def test_a_layer_may_say_false_or_nothing():
    built = build(Sample, {"loud": False, "note": None}, {"name": "n", "loud": True, "note": "x"})
    assert built.loud is False
    assert built.note is None


def test_a_required_parameter_that_no_layer_has_is_named():
    with pytest.raises(ConfigError, match="missing: name"):
        build(Sample, {"count": 1})


def test_instances_do_not_share_a_list():
    one, other = build(Sample, {"name": "a"}), build(Sample, {"name": "b"})
    one.words.append("c")
    assert other.words == ["a", "b"]
