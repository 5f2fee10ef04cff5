"""Images within messages: those that a decoder may be given, and what the others are refused for."""

from __future__ import annotations

import struct
import zlib
from types import SimpleNamespace
from typing import Any

import pytest
from modelyard.errors import InvalidRequest
from modelyard.wire import images
from modelyard.wire.images import MAX_PIXELS, check_images, text_of_parts
from pictures import data_url, png, question

GIF = b"GIF89a" + struct.pack("<HH", 3, 2) + bytes(20)
BMP = b"BM" + bytes(12) + struct.pack("<Iii", 40, 3, -2) + bytes(20)
JPEG = b"\xff\xd8\xff\xe0\0\4ab\xff\xff\xc0\0\x11\x08" + struct.pack(">HH", 2, 3) + bytes(10)


def fault_of(*urls: str, takes_images: bool = True) -> str:
    """Return what the last image of a chat is refused for; empty if it is not."""
    messages = [{"role": "system", "content": "see"}, question(*urls)]
    try:
        check_images(messages, "m", takes_images=takes_images)
    except InvalidRequest as error:
        (fault,) = error.errors
        assert fault["field"] == f"messages[1].content[{len(urls)}]"
        return fault["message"]
    return ""


@pytest.mark.parametrize("image", [png(), GIF, BMP, JPEG, png(width=5000, height=1)])
def test_images_of_four_formats_are_taken(image: bytes):
    assert fault_of(data_url(png()), data_url(image, "jpeg")) == ""


@pytest.mark.parametrize("url", ["http://127.0.0.1/a.png", "HTTPS://example.com/a.png"])
def test_an_address_is_never_fetched(url: str):
    message = "is an address, and images are never fetched from one here: send the image as data:"
    assert fault_of(url).startswith(message)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file:///etc/passwd", "begins with file:: send the image"),
        ("data:text/html;base64,aGk=", "begins with data:: send the image"),
        ("/etc/passwd", "is not a URL: send the image"),
        ("data:image/png;base64,%%%", "is not an image that can be read"),
        (data_url(b"<svg/>", "svg+xml"), "it is not PNG, JPEG, GIF or BMP"),
        (data_url(b""), "it is not PNG, JPEG, GIF or BMP"),
        (data_url(png()[:20]), "is not an image that can be read"),
        (data_url(JPEG[:9]), "is not an image that can be read"),
        (data_url(b"\xff\xd8" + b"\xff\xe0\0\4ab" + b"ab"), "it has no size"),
        (data_url(b"GIF89a" + bytes(10)), f"it has 0 x 0 pixels, 1 to {MAX_PIXELS:,} are taken"),
        (data_url(b"BM" + bytes(12) + struct.pack("<IHHI", 12, 65535, 65535, 0x10001)), "its header is of an old kind"),
        (data_url(GIF[:6] + b"\xff\xff\xff\xff" + bytes(20)), "it has 65535 x 65535 pixels"),
    ],
)
def test_what_is_not_an_image_is_refused_with_the_reason(url: str, message: str):
    assert message in fault_of(url)


def test_a_png_that_unpacks_to_more_than_its_size_needs_is_not_unpacked():
    bomb = png(width=8, height=8, data=bytes(50_000_000))
    assert len(bomb) < 60_000
    assert "it holds more than its size needs" in fault_of(data_url(bomb))


def test_a_png_has_its_size_first_as_decoders_skip_other_chunks():
    small, large = png(width=1, height=1), png(width=60_000, height=60_000, data=b"")
    disguised = small[:8] + small[8:33].replace(b"IHDR", b"CgBI") + large[8:]
    assert "its size does not come first" in fault_of(data_url(disguised))


def test_all_images_together_have_a_limit():
    large = data_url(GIF[:6] + struct.pack("<HH", 8000, 5000) + bytes(20))
    assert fault_of(*[large] * 4) == ""
    assert fault_of(*[large] * 4, data_url(GIF)).startswith("is one too many: 160,000,000 pixels are taken in all")


def test_what_follows_the_data_of_a_png_is_not_unpacked(monkeypatch: pytest.MonkeyPatch):
    calls = []

    class Unpacker:
        def __init__(self) -> None:
            self._unpacker = zlib.decompressobj()

        def decompress(self, data: bytes, most: int) -> bytes:
            calls.append(data)
            return self._unpacker.decompress(data, most)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._unpacker, name)

    monkeypatch.setattr(images, "zlib", SimpleNamespace(decompressobj=Unpacker, error=zlib.error))
    image, more = png(), struct.pack(">I", 1) + b"IDATx" + bytes(4)
    assert fault_of(data_url(image[:-12] + 100 * more + image[-12:])) == ""
    assert len(calls) == 1


def test_a_model_without_images_is_named_with_the_place():
    assert fault_of(data_url(png()), takes_images=False) == (
        "is an image, and model 'm' takes text alone: leave it out, or choose one that has vision"
    )


@pytest.mark.parametrize("part", [{"type": "input_audio", "input_audio": {}}, {"type": "video_url"}, {}, "text", None])
def test_parts_of_other_kinds_are_refused(part: Any):
    with pytest.raises(InvalidRequest, match=r"messages\[0\]\.content\[0\]: is of type .*: text and image_url are"):
        check_images([{"role": "user", "content": [part]}], "m", takes_images=True)


@pytest.mark.parametrize("part", [{"type": "image_url"}, {"type": "image_url", "image_url": {"url": 5}}])
def test_an_image_without_a_url_is_refused(part: Any):
    with pytest.raises(InvalidRequest, match=r"content\[0\]: has no URL"):
        check_images([{"role": "user", "content": [part]}], "m", takes_images=True)


@pytest.mark.parametrize("messages", [None, 5, "x", [None], [{"content": "x"}], [{}]])
def test_messages_of_any_form_are_left_to_the_engine(messages: Any):
    check_images(messages, "m", takes_images=False)


def test_the_text_beside_images():
    assert text_of_parts(question(data_url(png()))["content"]) == "what is this"
    assert text_of_parts("plain") == "plain"
