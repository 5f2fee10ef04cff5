"""Weights are found within the models folders, and nowhere else."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from modelyard.errors import BadModelFile
from modelyard.models import weights

NOBODY = 65534


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    return first, second


Folders = tuple[Path, Path]


def test_a_relative_path_is_looked_for_in_each_folder_in_order(folders: Folders) -> None:
    (folders[1] / "a.gguf").write_bytes(b"second")
    assert weights.resolve("a.gguf", folders) == folders[1] / "a.gguf"
    (folders[0] / "a.gguf").write_bytes(b"first")
    assert weights.resolve("a.gguf", folders) == folders[0] / "a.gguf"


def test_an_absolute_path_within_a_folder_is_taken(folders: Folders) -> None:
    path = folders[1] / "deep" / "a.gguf"
    path.parent.mkdir()
    path.touch()
    assert weights.resolve(str(path), folders) == path


def test_a_missing_file_names_where_it_was_looked_for_and_the_next_step(folders: Folders) -> None:
    with pytest.raises(BadModelFile) as refused:
        weights.resolve("a.gguf", folders, hint="modelyard pull a")
    assert f"looked in {folders[0]}, {folders[1]}" in str(refused.value)
    assert str(refused.value).endswith("fetch it with: modelyard pull a")
    with pytest.raises(BadModelFile, match="add it, or correct model_path"):
        weights.resolve("a.gguf", folders)


@pytest.mark.parametrize("path", ["../secret.gguf", "x/../../secret.gguf", "/etc/passwd", "/", ".."])
def test_a_path_out_of_the_folders_is_refused_whether_or_not_it_exists(folders: Folders, path: str) -> None:
    (folders[0].parent / "secret.gguf").touch()
    with pytest.raises(BadModelFile, match="is outside of the models folders"):
        weights.resolve(path, folders)


def test_a_link_that_leads_out_is_refused_and_one_that_stays_is_followed(folders: Folders) -> None:
    outside = folders[0].parent / "secret.gguf"
    outside.touch()
    (folders[0] / "out.gguf").symlink_to(outside)
    (folders[1] / "real.gguf").touch()
    (folders[0] / "in.gguf").symlink_to(folders[1] / "real.gguf")
    with pytest.raises(BadModelFile, match=r"is outside .* at .*secret\.gguf"):
        weights.resolve("out.gguf", folders)
    assert weights.resolve("in.gguf", folders) == folders[1] / "real.gguf"


def test_a_models_folder_may_be_a_link_itself(folders: Folders) -> None:
    (folders[0] / "a.gguf").touch()
    link = folders[0].parent / "link"
    link.symlink_to(folders[0])
    assert weights.resolve("a.gguf", [link]) == folders[0] / "a.gguf"
    assert weights.scan([link]) == [folders[0] / "a.gguf"]


def test_a_folder_beside_with_the_same_beginning_is_outside(folders: Folders) -> None:
    twin = folders[0].with_name("first-secret")
    twin.mkdir()
    (twin / "a.gguf").touch()
    with pytest.raises(BadModelFile, match="is outside"):
        weights.resolve(str(twin / "a.gguf"), folders)


def test_a_folder_is_no_model_file(folders: Folders) -> None:
    (folders[0] / "model").mkdir()
    for path in ("model", "."):
        with pytest.raises(BadModelFile, match="is a folder"):
            weights.resolve(path, folders)


def make_hf_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (path / "model.safetensors").touch()
    return path


def test_a_folder_of_hugging_face_is_a_model_and_is_not_searched(folders: Folders) -> None:
    path = make_hf_folder(folders[0] / "publisher" / "model")
    (path / "beside.gguf").touch()
    assert weights.resolve("publisher/model", folders) == path
    assert weights.scan(folders) == [path]


def test_a_folder_of_hugging_face_with_a_link_that_leads_out_is_refused(folders: Folders) -> None:
    outside = folders[0].parent / "outside"
    outside.touch()
    path = make_hf_folder(folders[0] / "model")
    (path / "inner").mkdir()
    (path / "inner" / "tokenizer.json").symlink_to(path / "config.json")
    assert weights.resolve("model", folders) == path
    (path / "inner" / "other.json").symlink_to(outside)
    with pytest.raises(BadModelFile, match=r"inner/other\.json is a link that leads out"):
        weights.resolve("model", folders)


def test_a_pipe_is_refused_and_never_opened(folders: Folders) -> None:
    os.mkfifo(folders[0] / "pipe.gguf")
    with pytest.raises(BadModelFile, match="not a regular file"):
        weights.resolve("pipe.gguf", folders)


def test_a_link_in_a_circle_is_refused(folders: Folders) -> None:
    (folders[0] / "loop.gguf").symlink_to(folders[0] / "loop.gguf")
    with pytest.raises(BadModelFile):
        weights.resolve("loop.gguf", folders)
    assert weights.scan(folders) == []


@pytest.mark.parametrize("path", ["", "a\0b", "\ud800.gguf", "a" * 5000])
def test_what_can_be_no_path_is_refused(folders: Folders, path: str) -> None:
    with pytest.raises(BadModelFile):
        weights.resolve(path, folders)


def test_an_unreadable_file_names_the_permission() -> None:
    folder = Path(tempfile.mkdtemp())  # Not below tmp_path, where others can't even look.
    folder.chmod(0o755)
    path = folder / "a.gguf"
    path.touch(mode=0o000)
    if os.geteuid() == 0:  # Root reads everything: be nobody for a while.
        os.seteuid(NOBODY)
    try:
        with pytest.raises(BadModelFile, match="Permission denied; check its permissions"):
            weights.resolve("a.gguf", [folder])
    finally:
        os.seteuid(os.getuid())
        path.unlink()
        folder.rmdir()


def test_a_search_finds_files_three_levels_deep_each_once(folders: Folders) -> None:
    deep = folders[0] / "publisher" / "model"
    deep.mkdir(parents=True)
    found = [folders[0] / "b.gguf", folders[0] / "publisher" / "A.GGUF", deep / "c.gguf"]
    for path in found:
        path.touch()
    (deep / "deeper").mkdir()
    (deep / "deeper" / "d.gguf").touch()
    (folders[0] / "readme.txt").touch()
    assert sorted(weights.scan([folders[0], folders[0] / "publisher", folders[0]])) == sorted(
        [*found, deep / "deeper" / "d.gguf"]
    )
    assert sorted(weights.scan([folders[0]])) == sorted(found)


def test_a_search_leaves_out_what_is_hidden_foreign_or_a_later_part(folders: Folders) -> None:
    outside = folders[0].parent / "outside"
    outside.mkdir()
    (outside / "x.gguf").touch()
    (folders[0] / "link.gguf").symlink_to(outside / "x.gguf")
    (folders[0] / "folder").symlink_to(outside)
    (folders[0] / ".pull-x").mkdir()
    (folders[0] / ".pull-x" / "half.gguf").touch()
    (folders[0] / "big-00001-of-00002.gguf").touch()
    (folders[0] / "big-00002-of-00002.gguf").touch()
    Path(os.fsdecode(bytes(folders[0]) + b"/\xff.gguf")).touch()
    assert weights.scan(folders) == [folders[0] / "big-00001-of-00002.gguf"]


def test_a_search_ends_in_a_folder_of_any_size(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        (folders[0] / f"{number:02}.gguf").touch()
    monkeypatch.setattr(weights, "MAX_FILES", 7)
    assert len(weights.scan(folders)) == 7
    monkeypatch.setattr(weights, "MAX_ENTRIES", 5)
    assert len(weights.scan(folders)) == 5


def test_a_models_folder_that_is_not_there_counts_as_empty(tmp_path: Path) -> None:
    assert weights.scan([tmp_path / "gone"]) == []
