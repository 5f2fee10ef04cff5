"""The operator's names of models: read from each source, checked with the entry at fault, and shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from modelyard.cli.examine import examine
from modelyard.errors import ConfigError
from modelyard.settings.loading import load
from modelyard.settings.names import Names
from modelyard.settings.settings import Settings
from modelyard.types import WorkerType

FILE = """
[service]
unknown_models = "default"

[service.aliases]
"gpt-4o" = "large"
"text-embedding-3-small" = "minilm"

[service.default_models]
llm = "large"

[service.fallbacks]
large = ["small", "tiny"]
small = ["large"]
"""
EXPECTED = Names(
    {"gpt-4o": "large", "text-embedding-3-small": "minilm"},
    {"llm": "large"},
    {"large": ["small", "tiny"], "small": ["large"]},
    serves_unknown=True,
)


def test_the_file_has_a_table_for_each(tmp_path: Path):
    path = tmp_path / "modelyard.toml"
    path.write_text(FILE)
    assert load({"config": str(path)}, {}).names == EXPECTED


def test_the_environment_has_them_as_text():
    environ = {
        "MODELYARD_ALIASES": "gpt-4o=large, text-embedding-3-small = minilm",
        "MODELYARD_DEFAULT_MODELS": "llm=large",
        "MODELYARD_FALLBACKS": "large=small+tiny,small=large",
        "MODELYARD_UNKNOWN_MODELS": "default",
    }
    assert load({}, environ).names == EXPECTED


def test_an_application_gives_them_as_dicts():
    options = {
        "aliases": dict(EXPECTED.aliases),
        "default_models": dict(EXPECTED.defaults),
        "fallbacks": dict(EXPECTED.fallbacks),
        "unknown_models": "default",
    }
    assert load(options, {}).names == EXPECTED


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"aliases": {"a": "a"}}, "aliases: 'a' names itself"),
        ({"aliases": {"a": "b", "b": "large"}}, "aliases: 'a': 'b' is an alias: name its model, 'large'"),
        ({"aliases": {"a": "b", "b": "a"}}, "aliases: 'a': 'b' is an alias"),
        ({"default_models": {"chat": "large"}}, "default_models: 'chat' is not one of llm, text2vec, reranker"),
        ({"aliases": {"a": "b"}, "default_models": {"llm": "a"}}, "default_models: 'llm': 'a' is an alias"),
        ({"fallbacks": {"large": ["large"]}}, "fallbacks: 'large' names itself"),
        ({"fallbacks": {"large": ["small", "small"]}}, "fallbacks: 'large' names a model twice: small, small"),
        ({"aliases": {"a": "b"}, "fallbacks": {"large": ["a"]}}, "fallbacks: 'large': 'a' is an alias"),
        ({"aliases": {"a": "b"}, "fallbacks": {"a": ["c"]}}, "fallbacks: 'a' is an alias: name its model, 'b'"),
        ({"unknown_models": "default"}, "unknown_models: default needs default_models"),
        ({"fallback_overloaded": True}, "fallback_overloaded needs fallbacks"),
    ],
)
def test_an_entry_that_leads_nowhere_is_refused_by_its_name(settings, fault):
    with pytest.raises(ConfigError, match=fault):
        Settings(**settings)


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        ('aliases = "a=b"', "aliases: must be a table, with a string for each name"),
        ('[service.aliases]\n"a" = ""', "aliases: 'a': neither the name nor a value may be empty"),
        ('[service.aliases]\n"" = "large"', "aliases: '': neither the name nor a value may be empty"),
        ('[service.aliases]\n"a" = ["large"]', "aliases: 'a': must be a string"),
        ('[service.fallbacks]\nlarge = "small"', "fallbacks: 'large': must be a list of strings"),
        ("[service.fallbacks]\nlarge = []", "fallbacks: 'large': neither the name nor a value may be empty"),
    ],
)
def test_a_table_of_another_shape_is_refused(tmp_path, table, fault):
    path = tmp_path / "modelyard.toml"
    path.write_text(f"[service]\n{table}\n")
    with pytest.raises(ConfigError, match=fault):
        load({"config": str(path)}, {})


def test_check_config_shows_them_and_all_of_their_faults(tmp_path):
    path = tmp_path / "modelyard.toml"
    path.write_text(FILE)
    report = examine({"config": str(path), "default_models": "llm=gpt-4o", "state_dir": str(tmp_path)}, [], {})
    assert report.values["aliases"].document() == {
        "value": "gpt-4o=large,text-embedding-3-small=minilm",
        "from": "file",
        "where": str(path),
    }
    assert report.values["fallbacks"].document()["value"] == "large=small+tiny,small=large"
    assert [fault for fault in report.faults if "alias" in fault] == [
        "default_models: 'llm': 'gpt-4o' is an alias: name its model, 'large'"
    ]


def test_without_tables_a_name_means_itself():
    assert not Names()
    assert (Names().model_of("a"), Names().with_fallbacks("a"), Names().default(WorkerType)) == ("a", ["a"], None)
