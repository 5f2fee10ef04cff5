"""Encode and decode the stream of model outputs: each is a JSON object followed by one NUL byte.

DB-GPT's clients get the whole text so far in every chunk; clients that accept `DELTA_TYPE` get only the new piece.
Either way a chunk has one piece of the engine, and the pieces of a burst leave in one write.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import orjson

from ..types import Burst, JSONObject, ModelOutput
from .decoder import MAX_CHUNK, NUL, ChunkDecoder

STREAM_TYPE = "application/octet-stream"
ROUTE_HEADER = "Modelyard-Route"
ROUTE_LOCAL = "local"
"""Sent by a router to a worker: answer with the models of this process, and do not send the request on."""

CUT_HEADER = "Modelyard-Truncated"
"""The number of texts that were cut before they were embedded or ranked; absent if none was."""

LOAD_HEADER = "Modelyard-Load"
"""The slots of a model, those that are free, and its waiting requests."""

MODEL_HEADER = "Modelyard-Model"
"""The model that answers, percent-encoded, where the request has another name; absent elsewhere."""

TOKENS_HEADER = "Modelyard-Tokens"
"""The number of tokens of the texts that were embedded or ranked; absent if the engine has not reported it."""

EMPTY_CHUNK = NUL

WRITE_SIZE = 64 * 1024
"""About the most bytes of one write. Larger writes are slower: their memory is mapped each time."""

_HEAD = b'{"text": "'
_MIDDLE = {
    False: b'", "error_code": 0, "incremental": false, "model_context": null',
    True: b'", "error_code": 0, "incremental": true, "model_context": null',
}
_UNFINISHED = b', "finish_reason": null, "usage": null, "metrics": null}\0'
_BETWEEN = b'","'
"""The bytes between two strings of a JSON list, so that one call escapes or parses a list of pieces."""

_DELTA_END = _MIDDLE[True] + _UNFINISHED
_DELTA_SEAM = _DELTA_END + _HEAD
_DELTA_TEXT = slice(len(_HEAD), 1 - len(_DELTA_END))
"""The position of the text in such a chunk without its NUL."""


class ChunkEncoder:
    """Turns the bursts of one answer into bytes. Keeps the text so far, already escaped."""

    def __init__(self, *, delta: bool = False) -> None:
        self._delta = delta
        self._so_far = bytearray()
        self._seam = _MIDDLE[delta] + _UNFINISHED + _HEAD

    def encode(self, burst: Burst) -> Iterable[bytes]:
        """Return the writes for ``burst``, mostly one: a chunk for each piece, or an empty chunk if it has only an end.

        Take them all before the next burst. Each write is made when it is taken, as all together may be large.

        An end without a piece is two chunks of the whole text, first with the reason and then with the usage: a server
        of DB-GPT 0.8 repeats a ``finish_reason`` that comes with a usage and without new text.
        """
        if not self._delta and not burst.pieces and burst.finish_reason is not None and burst.usage:
            reason, usage = Burst([], burst.finish_reason), burst._replace(finish_reason=None)
            return [self._write([""], reason) + self._write([""], usage)]
        ends = burst.finish_reason is not None or burst.usage is not None or burst.metrics is not None
        if burst.deltas and self._delta:
            return [_with_deltas(burst.pieces, burst.deltas, burst if ends else None)]
        pieces = burst.pieces if burst.pieces or not ends else [""]
        step = self._pieces_a_write()
        if len(pieces) <= step:
            return [self._write(pieces, burst if ends else None)] if pieces else []
        return self._in_turn(pieces, burst if ends else None)

    def _in_turn(self, pieces: list[str], ending: Burst | None) -> Iterator[bytes]:
        first = 0
        while first < len(pieces):
            part = pieces[first : first + self._pieces_a_write()]
            first += len(part)
            yield self._write(part, ending if first == len(pieces) else None)

    def _pieces_a_write(self) -> int:
        return 1024 if self._delta else max(1, WRITE_SIZE // (len(self._so_far) + 256))

    def _write(self, pieces: list[str], ending: Burst | None) -> bytes:
        text = join_escaped(pieces, self._seam) if self._delta else self._seam.join(self._texts(pieces))
        rest = _UNFINISHED if ending is None else _ending(ending, ending.usage if self._delta else ending.counts)
        return b"".join((_HEAD, text, _MIDDLE[self._delta], rest))

    def _texts(self, pieces: list[str]) -> Iterable[bytes | bytearray | memoryview]:
        escaped = [_escape(piece) for piece in pieces]
        if len(escaped) == 1:
            self._so_far += escaped[0]
            return (self._so_far,)
        # The text so far after each piece is a prefix of the text after the last: slices, copied once, by join.
        ends = []
        for piece in escaped:
            self._so_far += piece
            ends.append(len(self._so_far))
        whole = memoryview(bytes(self._so_far))
        return [whole[:end] for end in ends]


def _with_deltas(pieces: list[str], deltas: list[JSONObject], ending: Burst | None) -> bytes:
    """Return a chunk for each piece, with its delta as the ``model_context``."""
    parts: list[bytes] = []
    for number, (piece, delta) in enumerate(zip(pieces, deltas, strict=True), 1):
        context = orjson.dumps({"delta": delta} if delta else None)
        rest = _ending(ending, ending.usage) if ending is not None and number == len(pieces) else _UNFINISHED
        parts += (_HEAD, _escape(piece), _MIDDLE[True].removesuffix(b"null"), context, rest)
    return b"".join(parts)


def join_escaped(pieces: list[str], seam: bytes) -> bytes:
    """Return the pieces as JSON strings without their quotes, with ``seam`` between two of them."""
    try:
        text = orjson.dumps(pieces)[2:-2]
    except orjson.JSONEncodeError:
        text = b""
    # A piece that ends with a quote and a comma would look like the end of a string.
    if not text or b"\\" + _BETWEEN in text:
        return seam.join([_escape(piece) for piece in pieces])
    return text.replace(_BETWEEN, seam)


def _escape(piece: str) -> bytes:
    # Engines may return half of a surrogate pair, which UTF-8 does not have.
    try:
        return orjson.dumps(piece)[1:-1]
    except orjson.JSONEncodeError:
        return orjson.dumps(piece.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))[1:-1]


def _ending(burst: Burst, usage: JSONObject | None) -> bytes:
    return b"".join(
        (
            b', "finish_reason": ',
            orjson.dumps(burst.finish_reason),
            b', "usage": ',
            orjson.dumps(usage),
            b', "metrics": ',
            orjson.dumps(burst.metrics),
            b"}\0",
        )
    )


def encode_output(output: ModelOutput) -> bytes:
    """Return ``output`` as JSON without the NUL."""
    return orjson.dumps(output)


class PieceDecoder(ChunkDecoder):
    """A decoder that reads chunks with a piece only, as `ChunkEncoder` writes them, in a third of the time."""

    def __init__(self, limit: int = MAX_CHUNK) -> None:
        """Refuse a chunk of over ``limit`` bytes."""
        super().__init__(orjson.loads, limit)

    def feed_pieces(self, data: bytes) -> tuple[list[str], list[JSONObject]]:
        """Return the pieces of the first chunks, which have nothing else, and the objects of the chunks after them.

        Raises like `feed`.
        """
        if NUL not in data:
            return [], self.feed(data)
        if self._buffer:
            data, self._buffer = bytes(self._buffer + data), bytearray()
        end = data.rfind(_DELTA_END) + len(_DELTA_END)
        pieces = _plain_pieces(data[:end])
        return pieces, self.feed(data[end:] if pieces else data)


def _plain_pieces(chunks: bytes) -> list[str]:
    """Return the pieces of ``chunks`` if each chunk has a piece and nothing else; otherwise an empty list."""
    texts = [chunk[_DELTA_TEXT] for chunk in chunks.split(NUL)[:-1]]
    # Only then do their texts make the same bytes again.
    if not texts or _HEAD + _DELTA_SEAM.join(texts) + _DELTA_END != chunks:
        return []
    try:
        pieces: list[str] = orjson.loads(b'["' + _BETWEEN.join(texts) + b'"]')
    except orjson.JSONDecodeError:
        return []
    # A bare quote in one of them would make two of it.
    return pieces if len(pieces) == len(texts) else []
