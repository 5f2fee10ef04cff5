"""Commands of a user who has neither an entry in the password database nor HOME."""

from __future__ import annotations

import pwd
import tempfile
from pathlib import Path

import pytest
from commands import modelyard


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder for temporary files."""

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_check_config_shows_folders_below_the_temporary_one(temporary: Path) -> None:
    ran = modelyard("check-config", "-m", "echo", "--json")
    assert ran.status == 0
    for name in ("state_dir", "models_dirs"):
        assert Path(ran.json["settings"][name]["value"]).is_relative_to(temporary)


def test_pull_lists_paths_below_the_temporary_folder(temporary: Path) -> None:
    ran = modelyard("pull", "--list", "--json")
    assert ran.status == 0
    assert all(Path(row["path"]).is_relative_to(temporary) for row in ran.json)


@pytest.mark.parametrize("words", [["check-config", "-m", "echo"], ["serve", "-m", "echo"], ["pull", "--list"]])
def test_where_that_belongs_to_others_one_line_names_the_option(temporary: Path, words: list[str]) -> None:
    Path(modelyard("check-config", "-m", "echo", "--json").json["settings"]["state_dir"]["value"]).chmod(0o777)
    ran = modelyard(*words)
    assert ran.status == 1
    assert "this user has no home folder" in ran.complaint
    assert "set --models-dirs" in ran.complaint


@pytest.mark.parametrize("words", [["check-config"], ["serve"], ["pull", "--list"]])
def test_a_path_in_the_home_folder_is_refused_in_one_line(words: list[str]) -> None:
    ran = modelyard(*words, "--models-dirs", "~/m")
    assert ran.status == 1
    assert "~/m: the home folder that ~ stands for is unknown" in ran.complaint
