"""A user without a home folder, as in a container: a private folder for temporary files, or one line that helps."""

from __future__ import annotations

import pwd
import stat
import tempfile
from pathlib import Path

import pytest
from flask import Flask
from modelyard import Modelyard
from modelyard.access.token_store import TokenStore
from modelyard.cluster.registry.address import sqlite_path
from modelyard.errors import ConfigError
from modelyard.settings.folders import expanded
from modelyard.settings.settings import Settings


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder for temporary files of a user who has no home folder."""

    def unknown(*args: object) -> None:
        raise KeyError("getpwuid(): uid not found")

    for name in ("HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("getpwuid", "getpwnam"):
        monkeypatch.setattr(pwd, name, unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_folders_are_private_ones_below_the_temporary_folder(temporary: Path) -> None:
    state, models = Settings().state_path, Settings().models_paths
    assert state.parent == temporary
    assert models == (state / "models",)
    assert stat.S_IMODE(state.stat().st_mode) == 0o700


def test_a_folder_that_others_made_first_is_refused_with_the_option(temporary: Path) -> None:
    Settings().state_path.chmod(0o777)
    with pytest.raises(ConfigError, match=r"no home folder, .* not a folder of this user alone.*: set --state-dir"):
        Settings().state_path  # noqa: B018 - reading it is what fails
    with pytest.raises(ConfigError, match="set --models-dirs"):
        Settings().models_paths  # noqa: B018 - reading it is what fails
    given = Settings(state_dir="/srv/s", models_dirs=["/srv/m"])
    assert (given.state_path, given.models_paths) == (Path("/srv/s"), (Path("/srv/m"),))


def test_a_path_in_an_unknown_home_folder_is_refused_wherever_it_is_given(temporary: Path) -> None:
    for path in ("~/x", "~nobody-of-that-name/x"):
        for use in (
            expanded,
            lambda path: Settings(state_dir=path).state_path,
            lambda path: Settings(models_dirs=[path]).models_paths,
            lambda path: TokenStore(file=path),
            lambda path: sqlite_path(f"sqlite:///{path}"),
        ):
            with pytest.raises(ConfigError, match="home folder that ~ stands for is unknown: write the whole path"):
                use(path)


def test_an_application_runs_without_a_home_folder(temporary: Path) -> None:
    app = Flask("homeless")
    Modelyard(app, models=["echo"], placement="inline")
    runtime = app.extensions["modelyard"]
    runtime.start()
    try:
        assert runtime.wait_loaded(30)
        assert app.test_client().get("/api/readyz").json["ready"] is True
    finally:
        runtime.stop()
    assert list(temporary.glob("modelyard-*/homeless-*/models.json"))
