"""Makes small images of one color, without a library for images."""

from __future__ import annotations

import base64
import struct
import zlib

RED, BLUE = (255, 0, 0), (0, 0, 255)


def png(color: tuple[int, int, int] = RED, width: int = 8, height: int = 8, data: bytes | None = None) -> bytes:
    """Return a PNG; ``data`` stands in place of its pixels."""
    pixels = b"".join(b"\0" + bytes(color) * width for _ in range(height)) if data is None else data
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def data_url(image: bytes, kind: str = "png") -> str:
    """Return the ``data:`` URL of an image."""
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def question(*urls: str, text: str = "what is this") -> dict[str, object]:
    """Return a message of a chat with a text, and images at ``urls``."""
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [{"type": "text", "text": text}, *images]}
