"""Settings: what they derive, and which of them contradict each other."""

from __future__ import annotations

from pathlib import Path

import pytest
from modelyard.errors import ConfigError
from modelyard.settings.settings import Settings


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


def test_with_gevent_models_are_hosted_and_inline_is_refused_in_words_for_every_command():
    assert Settings(http_threads="gevent").is_hosted
    with pytest.raises(ConfigError, match="leave the placement out") as refused:
        Settings(http_threads="gevent", placement="inline")
    assert "--" not in str(refused.value), "gunicorn does not have the options of modelyard"
