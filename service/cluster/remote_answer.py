"""RemoteAnswer: the stream of an answer that another process sends over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..errors import EngineError, ModelyardError, WorkerLost, WorkerUnreachable
from ..sessions.response import Response
from ..streams import Cancel, OutputStream
from ..types import Burst, JSONObject
from ..wire.chunks import PieceDecoder
from ..wire.decoder import WholeText
from ..wire.errors import error_of_output, error_of_response, load_in
from ..wire.messages import output_from_wire
from ..wire.terms import queued_in


class RemoteAnswer(OutputStream):
    """The stream of an answer over HTTP.

    The request is sent at the first `next`. An answer that breaks off before its first piece is WorkerUnreachable,
    later it is WorkerLost, after the pieces that had come. The answer ends with the body of the response; a last chunk
    with a ``finish_reason`` is not required. A body without any chunk is an EngineError: its server can be reached.
    """

    def __init__(self, where: str, send: Callable[[], Response], cancel: Cancel) -> None:
        """Send the request by ``send``, which ``cancel`` ends; ``where`` names the server in messages."""
        super().__init__(self._received(send), cancel, self._close_response)
        self._where = where
        self._response: Response | None = None
        self._whole = WholeText()
        self._gave_pieces = False
        self._failure: ModelyardError | None = None

    def _received(self, send: Callable[[], Response]) -> Iterator[Burst | None]:
        self._response = response = send()
        self.load = load_in(response.headers)
        self.cancel.queued = queued_in(response.headers)
        if response.status_code != 200:
            raise error_of_response(response.status_code, response.headers, response.content, self._where)
        decoder, chunks_received = PieceDecoder(), 0
        while (data := self._read(response, decoder)) is not None:
            pieces, chunks = data
            chunks_received += len(pieces) + len(chunks)
            yield self._burst([piece for piece in pieces if piece], chunks, response.headers)
            if self._failure is not None:
                raise self._failure
        if chunks_received == 0:
            raise EngineError(f"{self._where} sent an empty answer")

    def _read(self, response: Response, decoder: PieceDecoder) -> tuple[list[str], list[JSONObject]] | None:
        """Return the pieces and chunks that have come: none after a second of silence, None at the end."""
        try:
            data = response.read1()
            if data == b"":
                decoder.flush()
                return None
            return decoder.feed_pieces(data) if data else ([], [])
        except (ValueError, WorkerUnreachable) as error:
            raise self._broken(error) from error

    def _burst(self, pieces: list[str], chunks: list[JSONObject], headers: Mapping[str, str]) -> Burst | None:
        """Return ``pieces`` and the pieces of ``chunks`` as one burst; None if they have nothing new."""
        finish_reason, usage, metrics = None, None, None
        deltas: dict[int, JSONObject] = {}
        for chunk in chunks:
            if chunk.get("error_code"):
                self._failure = error_of_output(chunk, headers)
                break
            text = chunk.get("text")
            if not isinstance(text, str):
                text = self._text_of(chunk)
            piece = text if chunk.get("incremental") else self._whole.new_in(text)
            if delta := _delta_of(chunk):
                deltas[len(pieces)] = delta
            if piece or delta:
                pieces.append(piece)
            finish_reason = _of(str, chunk.get("finish_reason"), finish_reason)
            usage = _usage(chunk.get("usage")) or usage
            metrics = _of(dict, chunk.get("metrics"), metrics)
        if not pieces and self._failure is not None:
            raise self._failure
        if not pieces and finish_reason is None and usage is None and metrics is None:
            return None
        self._gave_pieces = self._gave_pieces or bool(pieces)
        if deltas:
            every_delta = [deltas.get(index, {}) for index in range(len(pieces))]
            return Burst(pieces, finish_reason, usage, metrics, every_delta)
        return Burst(pieces, finish_reason, usage, metrics)

    def _text_of(self, chunk: JSONObject) -> str:
        try:
            return output_from_wire(chunk).text
        except ValueError as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> ModelyardError:
        if self.cancel.is_set():
            return self.cancel.error
        is_ours = isinstance(error, WorkerUnreachable)
        text = str(error) if is_ours else f"{self._where} sent an invalid answer: {error}"
        return WorkerLost(text) if self._gave_pieces else WorkerUnreachable(text)

    def _close_response(self) -> None:
        if self._response is not None:
            self._response.close()


def _delta_of(chunk: JSONObject) -> JSONObject:
    context = chunk.get("model_context")
    delta = context.get("delta") if isinstance(context, dict) else None
    return delta if isinstance(delta, dict) else {}


def _of(kind: type, value: Any, previous: Any) -> Any:
    return value if isinstance(value, kind) else previous


def _usage(value: Any) -> JSONObject | None:
    """Return a usage, None if one of its counts is not a number."""
    counts = ("prompt_tokens", "completion_tokens", "total_tokens")
    return value if isinstance(value, dict) and all(type(value.get(name) or 0) is int for name in counts) else None
