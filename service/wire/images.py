"""Images within messages of a chat: always the image itself, as a ``data:`` URL. None is ever fetched from an address.

A decoder allocates what the header of an image says, and a few kilobytes may say gigabytes. So the header is read here,
and the data of a PNG is unpacked up to its size, before an engine sees it.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ..errors import InvalidRequest
from ..types import JSONObject

KIND = "image_url"
"""The type of an image among the parts of a content."""
MAX_PIXELS = 40_000_000
MAX_PIXELS_TOGETHER = 4 * MAX_PIXELS
"""The most pixels of all images of a chat: a body of a few megabytes could have minutes of unpacking."""
FORMATS = "PNG, JPEG, GIF or BMP"

_DATA = re.compile(r"data:image/[a-z0-9.+-]+;base64,", re.IGNORECASE)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_PNG = b"\x89PNG\r\n\x1a\n"
_FIRST_OF_PNG = b"\0\0\0\rIHDR"
_SMALLEST_BMP = 40
"""The bytes of a header whose sizes are of four bytes each; an older one has others."""
_JPEG_SIZES = frozenset({0xC0, 0xC1, 0xC2})
"""The markers of JPEG's headers that decoders know: baseline, extended and progressive."""
_JPEG_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_UNPACKED_STEP = 1 << 20


class _Damaged(ValueError):
    """An image that its format does not allow; the text says why."""


class _Found(NamedTuple):
    """An image of messages: its place among them, and its URL."""

    field: str
    url: str


def image_part(field: str, part: Mapping[str, Any]) -> JSONObject:
    """Return an image of a content as engines read it. Raises InvalidRequest unless it has a ``data:`` URL."""
    given = part.get(KIND)
    url = given.get("url") if isinstance(given, Mapping) else given
    if not isinstance(url, str):
        raise InvalidRequest.of_field(field, "has no URL: must be an image in base64, as data:image/png;base64,...")
    _content_of(field, url)
    return {"type": KIND, KIND: {"url": url}}


def _images_in(messages: Any) -> Iterator[_Found]:
    """Yield the images of the messages of a chat. Raises InvalidRequest for parts that are neither texts nor images."""
    for number, message in enumerate(messages if isinstance(messages, list) else ()):
        content = message.get("content") if isinstance(message, Mapping) else None
        for index, part in enumerate(content if isinstance(content, list) else ()):
            field = f"messages[{number}].content[{index}]"
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind == KIND:
                yield _Found(field, image_part(field, part)[KIND]["url"])
            elif kind != "text":
                raise InvalidRequest.of_field(field, f"is of type {kind!r}: text and {KIND} are taken")


def check_images(messages: Any, model: str, *, takes_images: bool) -> None:
    """Raise InvalidRequest for an image in ``messages`` that ``model`` does not take, or that can't be decoded safely.

    Messages that come from other processes may have any form: what can't have images is left to the engine.
    """
    left = MAX_PIXELS_TOGETHER
    for field, url in _images_in(messages):
        if not takes_images:
            message = f"is an image, and model {model!r} takes text alone: leave it out, or choose one that has vision"
            raise InvalidRequest.of_field(field, message)
        try:
            data = base64.b64decode(_content_of(field, url), validate=True)
            width, height = _size_of(data)
            left -= width * height
            if left >= 0 and data.startswith(_PNG):
                _check_unpacked(data, most=width * height * 8 + height * 16 + 1024)
        except (_Damaged, binascii.Error, struct.error, IndexError, zlib.error) as error:
            raise InvalidRequest.of_field(field, f"is not an image that can be read: {error}") from None
        if left < 0:
            message = (
                f"is one too many: {MAX_PIXELS_TOGETHER:,} pixels are taken in all: send fewer images, or smaller ones"
            )
            raise InvalidRequest.of_field(field, message)


def text_of_parts(content: Any) -> str:
    """Return the text of a content of a chat, a string or a list of parts, without its images."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part.get("type") != KIND)


def _content_of(field: str, url: str) -> str:
    """Return the base64 of a ``data:`` URL. Raises InvalidRequest."""
    match = _DATA.match(url)
    if match is None:
        scheme = _ADDRESS.match(url)
        what = f"begins with {scheme[0].lower()}" if scheme else "is not a URL"
        if scheme and scheme[0].lower() in ("http:", "https:"):
            what = "is an address, and images are never fetched from one here"
        raise InvalidRequest.of_field(field, f"{what}: send the image as data:image/png;base64,...")
    return url[match.end() :]


def _size_of(data: bytes) -> tuple[int, int]:
    """Return the width and height of an image. Raises _Damaged for another format, or more than `MAX_PIXELS`."""
    if data.startswith(_PNG):
        if data[8:16] != _FIRST_OF_PNG:  # decoders skip what stands before it, and read another size
            raise _Damaged("its size does not come first")
        width, height = struct.unpack_from(">II", data, 16)
    elif data.startswith(b"\xff\xd8"):
        width, height = _size_of_jpeg(data)
    elif data.startswith((b"GIF87a", b"GIF89a")):
        width, height = struct.unpack_from("<HH", data, 6)
    elif data.startswith(b"BM"):
        header, width, height = struct.unpack_from("<Iii", data, 14)
        if header < _SMALLEST_BMP:
            raise _Damaged("its header is of an old kind")
        width, height = abs(width), abs(height)
    else:
        raise _Damaged(f"it is not {FORMATS}")
    if not 1 <= width * height <= MAX_PIXELS:
        raise _Damaged(f"it has {width} x {height} pixels, 1 to {MAX_PIXELS:,} are taken")
    return width, height


def _size_of_jpeg(data: bytes) -> tuple[int, int]:
    place = 2
    while data[place] == 0xFF:
        marker = data[place + 1]
        if marker in _JPEG_SIZES:
            height, width = struct.unpack_from(">HH", data, place + 5)
            return width, height
        if marker == 0xFF or marker in _JPEG_ALONE:
            place += 1 if marker == 0xFF else 2
        else:
            place += 2 + max(2, struct.unpack_from(">H", data, place + 2)[0])
    raise _Damaged("it has no size")


def _check_unpacked(data: bytes, most: int) -> None:
    """Raise _Damaged if the data of a PNG unpacks to more than ``most`` bytes, which its size does not need."""
    unpacker, unpacked, place = zlib.decompressobj(), 0, 8
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        chunk = data[place + 8 : place + 8 + length] if kind == b"IDAT" else b""
        while chunk and not unpacker.eof:  # the unpacker would keep what follows, and copy it for each chunk
            unpacked += len(unpacker.decompress(chunk, _UNPACKED_STEP))
            if unpacked > most:
                raise _Damaged("it holds more than its size needs")
            chunk = unpacker.unconsumed_tail
        place += 12 + length
