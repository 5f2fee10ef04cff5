"""The reader of GGUF headers: it understands real files, and no file can harm it."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import tiny_gguf
from modelyard.errors import BadModelFile
from modelyard.models import gguf_header
from modelyard.models.gguf_reader import Omitted
from modelyard.types import WorkerType

UINT32, STRING, ARRAY = 4, 8, 9


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def header(*pairs: bytes, tensors: int = 0, version: int = 3, keys: int | None = None) -> bytes:
    count = len(pairs) if keys is None else keys
    return b"GGUF" + struct.pack("<IQQ", version, tensors, count) + b"".join(pairs)


def tensor(name: bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dimensions + struct.pack("<IQ", kind, offset)


@pytest.fixture
def file_of(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        path = tmp_path / "made.gguf"
        path.write_bytes(content)
        return path

    return write


FileOf = Callable[[bytes], Path]


@pytest.mark.parametrize(
    ("kind", "told", "worker_type"),
    [
        ("llama", ("llama", "tiny-llama", None), WorkerType.LLM),
        ("embed", ("bert", "tiny-bert-embed", "mean"), WorkerType.TEXT2VEC),
        ("rank", ("bert", "tiny-bert-rank", "rank"), WorkerType.RERANKER),
    ],
)
def test_it_tells_what_a_model_is(
    tmp_path: Path, kind: str, told: tuple[str, str, str | None], worker_type: WorkerType
) -> None:
    path = tiny_gguf.make(tmp_path / "tiny.gguf", kind, context=256)
    found = gguf_header.read(path)
    assert (found.architecture, found.name, found.pooling_type) == told
    assert (found.context_length, found.embedding_length) == (256, tiny_gguf.WIDTH)
    assert found.size == path.stat().st_size
    assert found.guess_worker_type() is worker_type
    assert found.unusable_because is None


def test_only_a_chat_model_has_a_template_and_every_model_a_vocabulary(tmp_path: Path) -> None:
    llama = gguf_header.read(tiny_gguf.make(tmp_path / "a.gguf", "llama"))
    embed = gguf_header.read(tiny_gguf.make(tmp_path / "b.gguf", "embed"))
    assert llama.chat_template is not None
    assert "<|im_start|>" in llama.chat_template
    assert llama.metadata["tokenizer.ggml.tokens"] == Omitted("array of strings", 259)
    assert embed.chat_template is None


def test_it_agrees_with_the_reader_of_the_gguf_package(tmp_path: Path) -> None:
    path = tiny_gguf.make(tmp_path / "tiny.gguf", "embed")
    found, theirs = gguf_header.read(path), gguf.GGUFReader(path)
    assert found.tensor_count == len(theirs.tensors)
    compared = 0
    for key, value in found.metadata.items():
        if isinstance(value, str | int | float):
            assert value == theirs.fields[key].contents()
            compared += 1
    assert compared > 15


@pytest.mark.parametrize(
    ("number", "expected"), [(1, "text2vec"), (2, "text2vec"), (3, "text2vec"), (4, "reranker"), (0, "llm")]
)
def test_pooling_of_a_decoder_decides_what_it_is_for(file_of: FileOf, number: int, expected: str) -> None:
    path = file_of(
        header(
            pair(b"general.architecture", STRING, text(b"qwen3")),
            pair(b"qwen3.pooling_type", UINT32, struct.pack("<I", number)),
        )
    )
    assert gguf_header.read(path).guess_worker_type() == expected


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (b"general.architecture", b"clip", "projects images"),
        (b"general.type", b"adapter", "LoRA"),
        (b"general.type", b"model", "no weights"),
    ],
)
def test_a_file_that_is_no_model_by_itself_says_why(file_of: FileOf, key: bytes, value: bytes, reason: str) -> None:
    found = gguf_header.read(file_of(header(pair(key, STRING, text(value)))))
    assert found.unusable_because is not None
    assert reason in found.unusable_because


def test_values_of_the_wrong_type_count_as_absent(file_of: FileOf) -> None:
    path = file_of(
        header(
            pair(b"general.architecture", STRING, text(b"llama")),
            pair(b"general.name", UINT32, struct.pack("<I", 7)),
            pair(b"llama.context_length", STRING, text(b"many")),
        )
    )
    found = gguf_header.read(path)
    assert (found.name, found.context_length) == (None, None)


def test_bytes_that_are_no_unicode_do_no_harm(file_of: FileOf) -> None:
    found = gguf_header.read(file_of(header(pair(b"general.name", STRING, text(b"caf\xe9")))))
    assert found.name == "caf\ufffd"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"not a GGUF file \(it is empty\)"),
        (b"PK\x03\x04rest", r"not a GGUF file \(it starts with b'PK\\x03\\x04'\)"),
        (b"GG", r"not a GGUF file \(it starts with b'GG'\)"),
        (b"GGUF", "truncated"),
        (header(version=1), "version 1, not 2 or 3"),
        (header(version=99), "version 99"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (header(keys=2**63), "announces 9223372036854775808 keys"),
        (header(tensors=2**40), "announces 1099511627776 tensors"),
        (header(keys=5), "truncated or damaged"),
        (header(struct.pack("<Q", 2**62)), "truncated or damaged"),
        (header(pair(b"k", STRING, struct.pack("<Q", 2**64 - 1))), "truncated or damaged"),
        (header(pair(b"k", 77, b"")), "unknown type 77"),
        (header(pair(b"k", ARRAY, struct.pack("<IQ", UINT32, 2**62))), "truncated or damaged"),
        (header(pair(b"k", ARRAY, struct.pack("<IQ", STRING, 2**62))), "strings in one array"),
        (header(pair(b"k", ARRAY, struct.pack("<IQ", STRING, 2) + text(b"a"))), "truncated or damaged"),
        (header(pair(b"k", ARRAY, struct.pack("<IQQ", STRING, 1, 2**62))), "truncated or damaged"),
        (header(pair(b"k", ARRAY, struct.pack("<IQ", ARRAY, 1))), "holds arrays"),
        (header(pair(b"general.alignment", UINT32, struct.pack("<I", 0))), "aligned to 0 bytes"),
        (header(pair(b"general.alignment", UINT32, struct.pack("<I", 33))), "aligned to 33 bytes"),
        (header(tensor(b"t", (1, 1, 1, 1, 1)), tensors=1, keys=0), "a tensor has 5 dimensions"),
        (header(tensor(b"t", (2**64 - 1,) * 4), tensors=1, keys=0), "truncated: its header has 1 tensors"),
        (
            header(tensor(b"t", (1,), offset=2**64 - 1), tensors=1, keys=0),
            "truncated: its header has 1 tensors",
        ),
        (header(tensor(b"t", (1,), kind=9999, offset=64), tensors=1, keys=0), "truncated: its header has 1"),
    ],
)
def test_a_hostile_or_broken_file_is_refused_with_the_reason(file_of: FileOf, content: bytes, reason: str) -> None:
    path = file_of(content)
    started = time.monotonic()
    with pytest.raises(BadModelFile, match=reason) as refused:
        gguf_header.read(path)
    assert str(path) in str(refused.value)
    assert time.monotonic() - started < 1


def test_weights_that_were_cut_off_are_found_without_loading_them(tmp_path: Path) -> None:
    path = tiny_gguf.make(tmp_path / "tiny.gguf")
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - 1000)
    with pytest.raises(BadModelFile) as refused:
        gguf_header.read(path)
    assert f"truncated: its header has 21 tensors that end at byte {size}" in str(refused.value)
    assert f"the file has {size - 1000} bytes" in str(refused.value)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    cut = tiny_gguf.make(tmp_path / "tiny.gguf")
    for length in [*range(0, 6000, 7), *range(6000, cut.stat().st_size, 9973)][::-1]:
        os.truncate(cut, length)
        with pytest.raises(BadModelFile):
            gguf_header.read(cut)


def test_no_flipped_byte_in_a_header_raises_anything_else(tmp_path: Path) -> None:
    bent = tiny_gguf.make(tmp_path / "tiny.gguf")
    refused = 0
    with bent.open("r+b", buffering=0) as file:
        for place in range(0, 6000, 3):
            kept = os.pread(file.fileno(), 1, place)
            os.pwrite(file.fileno(), bytes([kept[0] ^ 0xFF]), place)
            try:
                gguf_header.read(bent).guess_worker_type()
            except BadModelFile:
                refused += 1
            os.pwrite(file.fileno(), kept, place)
    assert refused > 100


def test_a_huge_vocabulary_is_skipped_in_little_time_and_memory(file_of: FileOf) -> None:
    words = struct.pack("<IQ", STRING, 300_000) + b"".join(text(b"w%d" % i) for i in range(300_000))
    path = file_of(header(pair(b"tokenizer.ggml.tokens", ARRAY, words), pair(b"x", UINT32, struct.pack("<I", 5))))
    started = time.monotonic()
    found = gguf_header.read(path)
    assert time.monotonic() - started < 2
    assert found.metadata["tokenizer.ggml.tokens"] == Omitted("array of strings", 300_000)
    assert found.number("x") == 5


def test_a_very_long_text_is_left_out(file_of: FileOf) -> None:
    path = file_of(header(pair(b"huge", STRING, text(b"a" * (2 << 20))), pair(b"x", UINT32, struct.pack("<I", 5))))
    found = gguf_header.read(path)
    assert found.text("huge") is None
    assert found.number("x") == 5


def test_a_file_that_is_gone_is_a_bad_model_file_too(tmp_path: Path) -> None:
    with pytest.raises(BadModelFile, match="No such file"):
        gguf_header.read(tmp_path / "gone.gguf")
