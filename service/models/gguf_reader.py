"""Reads the header of a GGUF file, byte by byte, and trusts nothing in it.

The file may be hostile or truncated: every length is compared with the file's size first, memory does not grow with the
vocabulary, and the work is bounded. The format is ggml's:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeAlias

from ..errors import BadModelFile

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_ENTRIES = 65_536
"""Metadata keys, and tensors: the largest models have a few thousand."""
MAX_STRINGS = 4_000_000
"""Strings in all arrays: the largest vocabularies have a few hundred thousand, and as many merges."""
MAX_TEXT = 1 << 20
"""Bytes of a text that is kept; a longer one (such as a whole tokenizer) is left out."""
MAX_TEXTS = 8 << 20
"""Bytes of all texts that are kept, names of tensors included."""
MAX_DIMENSIONS = 4

_STRING, _ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip

_TENSOR_TYPES = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110),
    22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8),
    29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip
"""Weights and bytes of a block of each ``enum ggml_type``; for a newer type only the start of its data is checked."""


@dataclass(frozen=True, slots=True)
class Omitted:
    """The place of a value that was skipped: an array, or a very long text."""

    kind: str
    count: int


Value: TypeAlias = str | int | float | bool | Omitted


class RawHeader(NamedTuple):
    """The values of a header; ``file_size`` is in bytes."""

    file_size: int
    version: int
    tensor_count: int
    metadata: dict[str, Value]
    shapes: dict[str, tuple[int, ...]]
    """The lengths of each tensor, by its name; the fastest running one first."""


def read_raw(path: Path) -> RawHeader:
    """Return the header of the file at ``path``. Raises BadModelFile with the reason."""
    try:
        with path.open("rb", buffering=1 << 18) as file:
            size = file.seek(0, 2)
            file.seek(0)
            return _Reader(path, file, size).read()
    except OSError as error:
        raise BadModelFile(f"{path} can't be read: {error.strerror or error}") from error


class _Reader:
    """A position in the file that only moves forward, and never past its end."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self._path = path
        self._file = file
        self._size = size
        self._left = size
        self._strings_left = MAX_STRINGS
        self._texts_left = MAX_TEXTS

    def read(self) -> RawHeader:
        """Return the header, checked against the file."""
        version = self._version()
        tensors = self._entries("tensors")
        keys = self._entries("keys")
        metadata = dict(self._pair() for _ in range(keys))
        shapes = self._tensors(tensors, metadata.get("general.alignment", 32))
        return RawHeader(self._size, version, tensors, metadata, shapes)

    def _version(self) -> int:
        start = self._file.read(4)
        if start != MAGIC:
            begins = f"it starts with {start!r}" if start else "it is empty"
            raise BadModelFile(f"{self._path} is not a GGUF file ({begins})")
        self._left -= 4
        version = self._number("<I")
        if version & 0xFFFF == 0 and version:
            raise BadModelFile(f"{self._path} is GGUF for big-endian machines: convert it for this one")
        if version not in VERSIONS:
            versions = " or ".join(str(v) for v in VERSIONS)
            raise BadModelFile(f"{self._path} has GGUF version {version}, not {versions}: convert it again")
        return version

    def _entries(self, what: str) -> int:
        count = self._number("<Q")
        if count > MAX_ENTRIES:
            raise self._damaged(f"its header announces {count} {what}")
        return count

    def _pair(self) -> tuple[str, Value]:
        key = self._string()
        if isinstance(key, Omitted):
            raise self._damaged(f"a key in its header is {key.count} bytes long")
        return key, self._value()

    def _value(self) -> Value:
        kind = self._number("<I")
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._skip_array()
        return self._unpack(self._scalar(kind))

    def _scalar(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise self._damaged(f"a value in its header is of the unknown type {kind}")
        return _SCALARS[kind]

    def _string(self) -> str | Omitted:
        length = self._number("<Q")
        if length > min(MAX_TEXT, self._texts_left):
            self._skip(length)
            return Omitted("string", length)
        self._texts_left -= length
        return self._take(length).decode("utf-8", "replace")

    def _skip_array(self) -> Omitted:
        kind, count = self._number("<I"), self._number("<Q")
        if kind == _STRING:
            self._skip_strings(count)
            return Omitted("array of strings", count)
        if kind == _ARRAY:  # The format allows it, but no model has it, and llama.cpp refuses it.
            raise self._damaged("an array in its header holds arrays")
        self._skip(count * struct.calcsize(self._scalar(kind)))
        return Omitted("array", count)

    def _skip_strings(self, count: int) -> None:
        if count > self._strings_left:
            raise self._damaged(f"its header announces {count} strings in one array")
        self._strings_left -= count
        # A vocabulary has a hundred thousand of them: the loop is flat, for speed.
        read, length_of, left = self._file.read, _LENGTH.unpack, self._left
        for _ in range(count):
            head = read(_LENGTH.size)
            if len(head) < _LENGTH.size:
                raise self._short()
            (length,) = length_of(head)
            left -= _LENGTH.size + length
            if left < 0:
                raise self._short()
            if length <= MAX_TEXT:
                read(length)
            else:
                self._file.seek(length, 1)
        self._left = left

    def _tensors(self, count: int, alignment: Value) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the tensors, whose weights are within the file."""
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._damaged(f"its weights are aligned to {alignment!r} bytes")
        shapes: dict[str, tuple[int, ...]] = {}
        end = max((self._tensor(shapes) for _ in range(count)), default=0)
        start = self._size - self._left
        end += start + -start % alignment
        if count and end > self._size:
            raise BadModelFile(
                f"{self._path} is truncated: its header has {count} tensors that end at byte {end}, "
                f"the file has {self._size} bytes: fetch it again"
            )
        return shapes

    def _tensor(self, shapes: dict[str, tuple[int, ...]]) -> int:
        """Note the shape of the next tensor; return the end of its weights, in bytes from the start of the first."""
        name = self._string()
        dimensions = self._number("<I")
        if dimensions > MAX_DIMENSIONS:
            raise self._damaged(f"a tensor has {dimensions} dimensions")
        shape = tuple(self._number("<Q") for _ in range(dimensions))
        if isinstance(name, str):
            shapes[name] = shape
        weights = prod(shape)
        block, size = _TENSOR_TYPES.get(self._number("<I"), (1, 0))
        return self._number("<Q") + weights // block * size

    def _number(self, layout: str) -> int:
        return int(self._unpack(layout))

    def _unpack(self, layout: str) -> int | float | bool:
        value: int | float | bool = struct.unpack(layout, self._take(struct.calcsize(layout)))[0]
        return value

    def _take(self, length: int) -> bytes:
        if length > self._left:
            raise self._short()
        data = self._file.read(length)
        if len(data) < length:  # The file shrank meanwhile.
            raise self._short()
        self._left -= length
        return data

    def _skip(self, length: int) -> None:
        if length > self._left:
            raise self._short()
        self._file.seek(length, 1)
        self._left -= length

    def _short(self) -> BadModelFile:
        return BadModelFile(
            f"{self._path} is truncated or damaged: its header continues after the end of the file "
            f"({self._size} bytes): fetch it again"
        )

    def _damaged(self, how: str) -> BadModelFile:
        return BadModelFile(f"{self._path} is damaged: {how}: fetch it again")
