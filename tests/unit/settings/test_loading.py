"""Settings come from options, environment and file, in that order; what does not fit is named with its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from modelyard.errors import ConfigError
from modelyard.settings.layers import Faults, Layer, LayerName, Origin
from modelyard.settings.loading import (
    HANDED_VARIABLE,
    SET_VARIABLE,
    Override,
    deserialize,
    load,
    load_layers,
    read_config,
    serialize,
)
from modelyard.settings.params import params_of
from modelyard.settings.settings import Settings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "modelyard.toml"
    path.write_text(
        """
        [service]
        port = 7001
        drain_timeout = 5
        log_level = "debug"
        models_dirs = ["a", "b"]

        [[models]]
        name = "smollm2-135m"
        n_ctx = 4096
        """
    )
    return path


def test_without_a_word_it_is_standalone_on_loopback():
    found = load({}, {})
    assert (found.role, found.host, found.port, found.prefix) == ("standalone", "127.0.0.1", 8000, "/api")
    assert found.models is None
    assert found.overrides == () == found.model_tables


def test_options_win_over_the_environment_and_that_over_the_file(file):
    environ = {"MODELYARD_CONFIG": str(file), "MODELYARD_DRAIN_TIMEOUT": "6", "MODELYARD_LOG_LEVEL": "error"}
    found = load({"log_level": "warning"}, environ)
    assert (found.port, found.drain_timeout, found.log_level) == (7001, 6.0, "warning")


def test_the_environment_of_the_process_is_read_when_none_is_given(monkeypatch):
    monkeypatch.setenv("MODELYARD_PORT", "7002")
    monkeypatch.setenv("MODELYARD_MODELS", "a,b")
    assert load().port == 7002
    assert load().models == ["a", "b"]


def test_an_empty_list_of_models_means_none_and_not_the_default():
    assert load({"models": []}, {}).models == []
    assert load({}, {"MODELYARD_MODELS": ""}).models == []


def test_the_models_of_the_file_are_kept_unchecked(file):
    assert load({"config": str(file)}, {}).model_tables == ({"name": "smollm2-135m", "n_ctx": 4096},)


@pytest.mark.parametrize(
    ("options", "environ", "why"),
    [
        ({"port": 0}, {}, r"options: port: 0 is less than 1"),
        ({"port": "8000"}, {}, r"options: port: must be an integer, not a string"),
        ({"prot": 1}, {}, r"options: prot: no such parameter \(did you mean port\?\)"),
        ({}, {"MODELYARD_PORT": "http"}, r"environment, MODELYARD_PORT: port: 'http' is not an integer"),
        ({}, {"MODELYARD_PORT": "65536"}, r"65536 is more than 65535"),
        ({}, {"MODELYARD_DRAIN_TIMEOUT": "nan"}, r"drain_timeout: must be a finite number"),
        ({}, {"MODELYARD_ROLE": "king"}, r"role: 'king' is not one of standalone, worker"),
        ({}, {"MODELYARD_HTTP_THREADS": "leader"}, r"http_threads: 'leader' was removed, as .*: use gthread"),
        ({"threads": 10, "reserve": 10}, {}, r"reserve \(10\) must be less than threads \(10\)"),
        ({"prefix": "api"}, {}, r"prefix 'api' must start with a slash"),
        ({"registry": "memory:", "workers": 2}, {}, r"registry memory: .* with several workers"),
        ({"registry": "memory:", "placement": "hosted"}, {}, r"registry memory: .* where models are hosted"),
        ({}, {SET_VARIABLE: "{"}, SET_VARIABLE),
        ({}, {SET_VARIABLE: '["a.b"]'}, r"--set a\.b: expected MODEL\.PARAM=VALUE"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(options, environ, why):
    with pytest.raises(ConfigError, match=why):
        load(options, environ)


def test_all_faults_of_a_source_are_in_one_error():
    with pytest.raises(ConfigError, match=r"MODELYARD_PORT: .*; environment, MODELYARD_RESERVE: "):
        load({}, {"MODELYARD_PORT": "http", "MODELYARD_RESERVE": "0"})


def test_faults_of_all_sources_are_collected_and_their_values_left_out(file):
    faults = Faults(collect=True)
    options = Layer.of({"config": str(file), "threads": 100}, LayerName.COMMAND_LINE)
    environ = {"MODELYARD_PORT": "http", "MODELYARD_RESERVE": "9", SET_VARIABLE: '["a.b", "a.b=1"]'}
    settings = load_layers(options, environ, faults)
    assert [message.partition(": ")[0] for message in faults.messages] == ["environment, MODELYARD_PORT", "--set a.b"]
    assert (settings.port, settings.threads, settings.reserve, settings.overrides) == (7001, 100, 9, ("a.b=1",))
    origins = settings.origins
    assert origins["port"] == origins["log_level"] == Origin(LayerName.FILE, str(file))
    assert origins["reserve"] == Origin(LayerName.ENVIRONMENT, "MODELYARD_RESERVE")
    assert origins["threads"] == Origin(LayerName.COMMAND_LINE)
    assert "host" not in origins


@pytest.mark.parametrize(
    ("values", "faults", "kept"),
    [
        ({"threads": 8, "reserve": 4}, [], {"threads": 8, "reserve": 4}),
        ({"role": "gateway", "registry": "memory:"}, [], {"role": "gateway", "registry": "memory:"}),
        ({"reserve": 400, "port": 9}, ["reserve (400) must be less"], {"reserve": 8, "port": 9}),
        ({"role": "gateway", "port": 9}, ["a gateway needs --registry"], {"role": "standalone", "port": 9}),
        (
            {"reserve": 400, "prefix": "api", "port": 9},
            ["prefix 'api' must start", "reserve (400) must be less"],
            {"reserve": 8, "prefix": "/api", "port": 9},
        ),
    ],
)
def test_of_values_that_contradict_each_other_only_those_are_left_out(values, faults, kept):
    collected = Faults(collect=True)
    settings = load_layers(Layer.of(values, LayerName.COMMAND_LINE), {}, collected)
    assert {name: getattr(settings, name) for name in kept} == kept
    assert len(collected.messages) == len(faults)
    for fault in faults:
        assert any(message.startswith(fault) for message in collected.messages)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[service", "not valid TOML"),
        ("[servce]", r"unknown table 'servce': expected \[service\], \[\[models\]\]"),
        ("[aliases]\na = 'b'", r"\[aliases\]: is a setting of the service: write \[service.aliases\]"),
        ("port = 9000", r"port: stands outside of a table: put it below \[service\]"),
        ("[[service]]", "expected"),
        ("[models]", "expected"),
        ("service = 1", "expected"),
        ("[[models]]\nname = 'a'\n[[models]]\nn_ctx = 1", r"\[\[models\]\] number 2 has no name"),
        ("[[models]]\nname = ''", "number 1 has no name"),
        ("[service]\nport = 'x'", r"\[service\]: port: must be an integer"),
        ("[service]\nport = true", "must be an integer, not true or false"),
        ("[service]\ndrain_timeout = inf", "must be a finite number"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_its_path(tmp_path, text, why):
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=why) as caught:
        load({"config": str(path)}, {})
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_or_no_text_is_refused_with_its_path(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.toml: No such file"):
        read_config(tmp_path / "nothing.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"b\.toml: not valid TOML"):
        read_config(tmp_path / "b.toml")


def test_overrides_are_handed_on_and_a_model_may_have_dots():
    environ = {SET_VARIABLE: json.dumps(["a.n_ctx=1", "b.c.n_ctx=2", "a.reply=x=y"])}
    assert [Override.parse(item) for item in load({}, environ).overrides] == [
        ("a", "n_ctx", "1"),
        ("b.c", "n_ctx", "2"),
        ("a", "reply", "x=y"),
    ]


@pytest.mark.parametrize("item", ["", "a", "a.b", "a=b", ".b=c", "a.=c", "=", "."])
def test_an_override_that_names_no_model_and_parameter_is_refused(item):
    with pytest.raises(ConfigError, match="expected MODEL"):
        Override.parse(item)


def other_than_default(name: str) -> object:
    """Return a value of a setting that is not its default."""
    special = {
        "role": "worker",
        "placement": "hosted",
        "http_threads": "gevent",
        "on_load_failure": "exit",
        "log_level": "debug",
        "tracing": "file:/tmp/spans",
        "cors_origins": ["https://a.example", "http://b:1"],
        "prefix": "/ml/api",
        "reserve": 9,
        "tracing_sample": 0.5,
        "aliases": {"gpt-4o": "large"},
        "default_models": {"llm": "large"},
        "fallbacks": {"large": ["small", "tiny"]},
        "unknown_models": "default",
        "pages_secret": "a secret of pages, \n" * 2,
    }
    default = getattr(Settings(), name)
    if name in special:
        return special[name]
    if isinstance(default, bool):
        return not default
    if isinstance(default, int | float):
        return default + 1
    return (
        [f"{name} with ümlaut", "two"] if isinstance(default, list) or name == "models" else f"a secret of {name}, \n"
    )


def test_all_settings_survive_being_handed_over_secrets_included():
    said = {name: other_than_default(name) for name in params_of(Settings)}
    settings = Settings(**said)
    settings.model_tables = ({"name": "a", "token": "hidden", "sizes": [1, 2.5, None], "deep": {"er": True}},)
    settings.overrides = ("a.n_ctx=1", "a.reply=x=y")
    found = deserialize(serialize(settings))
    assert found == settings
    assert (found.token, found.registry) == (settings.token, settings.registry)
    for name in said:
        assert getattr(found, name) == said[name] != getattr(Settings(), name), name


def test_what_was_handed_over_wins_over_all_else(file):
    settings = Settings(port=7003, models=[])
    environ = {"MODELYARD_PORT": "7004", "MODELYARD_CONFIG": str(file), HANDED_VARIABLE: serialize(settings)}
    assert load({"port": 7005}, environ) == settings
