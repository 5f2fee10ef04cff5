"""Settings come from options, environment and file, in that order; what does not fit is named with its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from modelyard.errors import ConfigError
from modelyard.settings import settings as settings_module
from modelyard.settings.params import params_of
from modelyard.settings.settings import (
    HANDED_VARIABLE,
    SET_VARIABLE,
    Settings,
    handed_over,
    load,
    read_config,
    split_override,
    taken_over,
)


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
        ({}, {"MODELYARD_PORT": "http"}, r"environment, MODELYARD_\*: port: 'http' is not an integer"),
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


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[service", "not valid TOML"),
        ("[servce]", r"unknown table 'servce': expected \[service\] and \[\[models\]\]"),
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


@pytest.mark.parametrize(("given", "kept"), [("/api", "/api"), ("/ml/api/", "/ml/api"), ("", ""), ("/", "")])
def test_a_prefix_has_no_slash_at_its_end(given, kept):
    assert Settings(prefix=given).prefix == kept


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("localhost", True),
        ("::1", True),
        ("[::1]", True),
        ("unix:/run/x.sock", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.7", False),
        ("127.example.org", False),
        ("localhost.example.org", False),
        ("", False),
    ],
)
def test_loopback_is_what_only_this_machine_reaches(host, loopback):
    assert Settings(host=host).is_loopback is loopback


def test_overrides_are_handed_on_and_sorted_by_model():
    environ = {SET_VARIABLE: json.dumps(["a.n_ctx=1", "b.c.n_ctx=2", "a.reply=x=y"])}
    found = load({}, environ)
    assert found.overrides_of("a") == {"n_ctx": "1", "reply": "x=y"}
    assert found.overrides_of("b.c") == {"n_ctx": "2"}
    assert found.overrides_of("b") == {}


@pytest.mark.parametrize("item", ["", "a", "a.b", "a=b", ".b=c", "a.=c", "=", "."])
def test_an_override_that_names_no_model_and_parameter_is_refused(item):
    with pytest.raises(ConfigError, match="expected MODEL"):
        split_override(item)


def test_folders_are_absolute_and_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    found = Settings(models_dirs=["~/m", "n"], state_dir="s")
    assert found.models_paths == (tmp_path / "m", tmp_path / "n")
    assert found.state_path == tmp_path / "s"


def test_the_default_folders_follow_the_desktop_specification(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Settings().models_paths == (tmp_path / ".local/share/modelyard/models",)
    assert Settings().state_path == tmp_path / ".local/state/modelyard"
    monkeypatch.setenv("XDG_DATA_HOME", "/srv/data")
    monkeypatch.setenv("XDG_STATE_HOME", "/srv/state")
    assert Settings().models_paths == (Path("/srv/data/modelyard/models"),)
    assert Settings().state_path == Path("/srv/state/modelyard")


def test_each_role_and_port_has_a_state_folder_of_its_own():
    assert Settings(role="worker", port=9).instance_name == "worker-9"
    assert Settings(instance="mine").instance_name == "mine"


def test_settings_are_read_from_the_module_without_a_side_effect(monkeypatch):
    monkeypatch.delenv("MODELYARD_CONFIG", raising=False)
    assert load({}, {}) == settings_module.load({}, {})


def other_than_default(name: str) -> object:
    """Return a value of a setting that is not its default."""
    special = {
        "role": "worker",
        "placement": "hosted",
        "http_threads": "gevent",
        "on_load_failure": "exit",
        "log_level": "debug",
        "tracing": "file:/tmp/spans",
        "prefix": "/ml/api",
        "reserve": 9,
        "tracing_sample": 0.5,
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
    found = taken_over(handed_over(settings))
    assert found == settings
    assert (found.token, found.registry) == (settings.token, settings.registry)
    for name in said:
        assert getattr(found, name) == said[name] != getattr(Settings(), name), name


def test_what_was_handed_over_wins_over_all_else(file):
    settings = Settings(port=7003, models=[])
    environ = {"MODELYARD_PORT": "7004", "MODELYARD_CONFIG": str(file), HANDED_VARIABLE: handed_over(settings)}
    assert load({"port": 7005}, environ) == settings
