"""TextStream: an answer of a service, piece by piece as it comes."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from types import TracebackType

from ..errors import EngineError, ModelyardError, WorkerLost, WorkerSilent, WorkerUnreachable
from ..sessions.faults import reason_of
from ..sessions.response import Response
from ..types import JSONObject, ModelOutput
from ..wire.decoder import ChunkDecoder, WholeText
from ..wire.errors import error_of_output
from ..wire.messages import output_from_wire


class TextStream:
    """An iterator over the pieces of an answer, for one thread; no piece is empty.

    Read it to its end, use it in a ``with``, or `close` it: that ends the connection, and the service stops computing.
    Any thread may call `close`; the reader's loop then ends. A stream without references is closed too.

    It raises the error that the service reports, WorkerLost where the answer breaks off, and WorkerUnreachable where it
    breaks off before its first piece; the pieces before the error are returned first. `output` is the answer so far,
    and after the loop the whole answer.
    """

    def __init__(self, response: Response, where: str) -> None:
        """Read ``response``, whose status is 200; ``where`` is the address of the service, for messages."""
        self._response = response
        self._pid = os.getpid()
        self._where = where
        self._reading = threading.Lock()
        self._ended = False
        self._failure: ModelyardError | None = None
        self._decoder = ChunkDecoder()
        self._chunks = 0
        self._whole = WholeText()
        self._ready: deque[str] = deque()
        self._pieces: list[str] = []
        self._last = ModelOutput()

    # The answer so far

    @property
    def output(self) -> ModelOutput:
        """The answer: ``text``, and at its end ``finish_reason``, ``usage`` and, if requested, ``metrics``."""
        last = self._last
        return ModelOutput(
            "".join(self._pieces), finish_reason=last.finish_reason, usage=last.usage, metrics=last.metrics
        )

    @property
    def text(self) -> str:
        """The pieces that were returned, joined."""
        return "".join(self._pieces)

    @property
    def finish_reason(self) -> str | None:
        """The reason of the end, ``stop`` or ``length``; None before the end."""
        return self._last.finish_reason

    @property
    def usage(self) -> JSONObject | None:
        """An object with ``prompt_tokens``, ``completion_tokens`` and ``total_tokens``; None before the end."""
        return self._last.usage

    # Reading

    def __iter__(self) -> TextStream:
        return self

    def __next__(self) -> str:
        while True:
            with contextlib.suppress(IndexError):
                piece = self._ready.popleft()
                self._pieces.append(piece)
                return piece
            self._wait()
            if self._ended and not self._ready:
                if self._failure is not None:
                    raise self._failure
                raise StopIteration

    def begin(self) -> None:
        """Wait for the first bytes of the answer, which need not hold a piece. Raises the refusal of the service."""
        self._wait()
        if self._failure is not None and not self._ready:
            raise self._failure

    def _wait(self) -> None:
        """Read the next bytes, unless the answer has ended."""
        if self._ended:
            return
        with self._reading:
            self._read()
        if self._ended:  # or another thread called `close` while this one was reading
            self._response.close()

    def _read(self) -> None:
        try:
            while (data := self._response.read1()) is None:
                pass
        except WorkerUnreachable as error:
            self._fail(self._broken(error))
            return
        try:
            if data:
                self._take(data)
            else:
                self._finish()
        except ValueError as error:
            self._fail(self._broken(error))
        except ModelyardError as error:
            self._fail(error)

    def _take(self, data: bytes) -> None:
        for chunk in self._decoder.split(data):
            self._note(self._decoder.parse(chunk))

    def _note(self, chunk: JSONObject) -> None:
        self._chunks += 1
        if chunk.get("error_code"):
            raise error_of_output(chunk, self._response.headers)
        output = output_from_wire(chunk)
        if piece := output.text if output.incremental else self._whole.new_in(output.text):
            self._ready.append(piece)
        self._last.finish_reason = output.finish_reason or self._last.finish_reason
        self._last.usage = output.usage or self._last.usage
        self._last.metrics = output.metrics or self._last.metrics

    def _finish(self) -> None:
        self._decoder.flush()
        if not self._chunks and not self._ended:
            raise EngineError(f"{self._where} sent an empty answer")
        self._ended = True

    def _fail(self, error: ModelyardError) -> None:
        # After another thread's `close` this is the end, not a failure.
        if not self._ended:
            self._failure = error
            self._ended = True

    def _broken(self, error: Exception) -> ModelyardError:
        kind = WorkerLost if self._pieces or self._ready else WorkerUnreachable
        if isinstance(error, WorkerSilent):
            return kind(f"{self._where} stopped sending in the middle of its answer")
        return kind(f"{self._where} broke off its answer: {reason_of(error)}")

    # The end

    def close(self) -> None:
        """End the answer and its connection at once. A second call does nothing."""
        self._ready.clear()
        if self._ended:
            return
        self._ended = True
        if self._pid == os.getpid():  # a forked process would end the connection of its parent
            self._response.hang_up()
        if self._reading.acquire(blocking=False):
            try:
                self._response.close()
            finally:
                self._reading.release()

    def __enter__(self) -> TextStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # A loop may be left early, without a `with`.
        if not getattr(self, "_ended", True):
            self.close()
