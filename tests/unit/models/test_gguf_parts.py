"""Models in several GGUF files are one model: listed once, complete or refused with the part that is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_gguf
from modelyard.errors import BadModelFile
from modelyard.models import gguf_header, weights
from modelyard.models.catalog import Catalog, CatalogEntry


def parts_of(folder: Path, parts: int = 3, name: str = "big") -> list[Path]:
    """Return the parts of a tiny model, which alone lie in ``folder``."""
    whole = tiny_gguf.make(folder / f"{name}.gguf")
    paths = tiny_gguf.split(whole, parts)
    whole.unlink()
    return paths


def listed(folder: Path) -> list[CatalogEntry]:
    return list(Catalog.load(package=False, models_dirs=[folder]).with_files())


def test_the_parts_have_one_header_with_the_tensors_of_all(tmp_path):
    whole = gguf_header.read(tiny_gguf.make(tmp_path / "whole.gguf"))
    paths = tiny_gguf.split(whole.path, 3)
    header = gguf_header.read(paths[0])
    assert (header.files, header.size) == (3, sum(path.stat().st_size for path in paths))
    assert (header.shapes, header.tensor_count) == (whole.shapes, whole.tensor_count)
    assert (header.parameters, header.chat_template) == (whole.parameters, whole.chat_template)


def test_they_are_listed_as_one_model(tmp_path):
    paths = parts_of(tmp_path)
    (entry,) = listed(tmp_path)
    assert (entry.name, entry.model_path, entry.worker_type, entry.enabled) == ("big", str(paths[0]), "llm", True)


def test_a_missing_part_is_named_until_it_is_there(tmp_path):
    paths = parts_of(tmp_path)
    paths[1].rename(tmp_path / "elsewhere")
    (entry,) = listed(tmp_path)
    assert (entry.enabled, entry.description) == (
        False,
        f"part 2 of 3 is missing: {paths[1]}: fetch it, and put it beside the first",
    )
    (tmp_path / "elsewhere").rename(paths[1])
    assert [entry.enabled for entry in listed(tmp_path)] == [True]


def cut(paths: list[Path]) -> None:
    paths[2].write_bytes(paths[2].read_bytes()[:-100])


def swap(paths: list[Path]) -> None:
    paths[2].write_bytes(paths[1].read_bytes())


def mix(paths: list[Path]) -> None:
    other = tiny_gguf.make(paths[0].with_name("other.gguf"), "embed")
    tiny_gguf.split(other, 3)[2].replace(paths[2])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut, "00003-of-00003.gguf is truncated"),
        (swap, "00003-of-00003.gguf is not part 3 of 3: fetch it again"),
        (mix, r"the 3 parts of .* have \d+ tensors, not 21: they are not of one model"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(tmp_path, spoil: Callable[[list[Path]], None], message: str):
    paths = parts_of(tmp_path)
    spoil(paths)
    with pytest.raises(BadModelFile, match=message):
        gguf_header.read(paths[0])


@pytest.mark.parametrize("name", ["big-00002-of-00003.gguf", "renamed.gguf"])
def test_a_part_that_is_not_the_first_names_it(tmp_path, name):
    second = parts_of(tmp_path)[1].rename(tmp_path / name)
    stem = name[:-5].partition("-")[0]
    with pytest.raises(BadModelFile, match=f"is a part of 3: name the first, {stem}-00001-of-00003.gguf"):
        gguf_header.read(second)


def test_links_to_files_without_names_are_followed_by_the_names_of_the_links(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    for number, path in enumerate(parts_of(tmp_path)):
        (snapshot / path.name).symlink_to(path.rename(blobs / str(number)))
    first = weights.resolve("snapshot/big-00001-of-00003.gguf", [tmp_path])
    assert gguf_header.read(first).files == 3
    assert [entry.name for entry in listed(tmp_path)] == ["big"]


def test_a_later_part_that_leads_out_of_the_models_folders_is_refused(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    paths = parts_of(folder)
    paths[2].rename(tmp_path / "outside")
    paths[2].symlink_to(tmp_path / "outside")
    with pytest.raises(BadModelFile, match=r"00003-of-00003\.gguf is a link that leads out of the models folders"):
        weights.resolve(paths[0].name, [folder])
