"""ModelWorker: one model of this process with its calls."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ..engines.base import CancelEvent, Vectors, rank_by_cosine
from ..engines.tool_calls import ToolCalls
from ..errors import Cancelled, EngineError, FieldError, InvalidRequest, ModelyardError, NotReady
from ..pump import pumped
from ..streams import TICK, Cancel, OutputStream, whole_answer
from ..types import DEFAULT_TERMS, Burst, GenerateRequest, JSONObject, ModelMetadata, ModelOutput, Terms, WorkerType
from ..wire.images import check_images
from .admission import Ticket
from .life import ModelLife
from .spans import CallSpan
from .states import State

log = logging.getLogger(__name__)


class ModelWorker(ModelLife):
    """A model of this process. All calls block; those that compute hold a slot of the gate."""

    def generate_stream(self, request: GenerateRequest, cancel: Cancel) -> OutputStream:
        """Admit the request and return its stream, which owns the slot or the place in line. Close it.

        Raises InvalidRequest for options that the engine does not take, Overloaded if the line is full, and NotReady.
        The stream raises these, Cancelled, and the errors of the engine.
        """
        is_loaded = self.state is State.READY  # else the engine does not know yet what it takes
        if is_loaded:
            self._check_options(request.options)
        span = CallSpan("generate", self.params)
        try:
            ticket = self._admit(cancel, request.terms)
        except BaseException as error:
            span.end(error)
            self._counts.failed(error)
            raise
        answer = self._answer(request, cancel, ticket, span, is_checked=is_loaded)
        stream = OutputStream(answer, cancel, lambda: self._let_go(cancel, ticket), load=self.gate.load())
        stream.when_closed(partial(self._counts.answered, stream))
        if span.recording:
            stream.when_closed(span.end)
        return stream

    def _check_options(self, options: JSONObject) -> None:
        if not options:
            return
        if "messages" in options:
            check_images(options["messages"], self.name, takes_images=self.engine.takes_images is not False)
        fields = options.keys() - self.engine.options
        if "tools" in fields:  # the others come with them, whether the client has sent them or not
            fields -= {"tool_choice", "parallel_tool_calls"}
        if fields:
            faults = [FieldError(field=field, message=self._not_taken(field)) for field in sorted(fields)]
            raise InvalidRequest.of_fields(faults)

    def _not_taken(self, option: str) -> str:
        if option == "messages":
            return f"have calls of tools, or what these have returned, and model {self.name!r} takes text alone"
        if option == "tools":
            return f"is not supported by model {self.name!r}: leave it out, or choose a model that takes tools"
        return f"is not supported by model {self.name!r}: leave it out"

    def _answer(
        self, request: GenerateRequest, cancel: Cancel, ticket: Ticket, span: CallSpan, *, is_checked: bool
    ) -> Iterator[Burst | None]:
        """Yield None while the request waits in line, then the engine's bursts. Foreign errors become ours."""
        while not ticket.wait(TICK):
            yield None
        if not is_checked:
            self._check_options(request.options)
        watch = span.of_generation(request)
        failure: BaseException | None = None
        bursts: Iterator[Burst | None] = iter(())
        try:
            bursts = iter(self.engine.generate_stream(request, cancel))
            if not self.engine.ticks:
                bursts = pumped(bursts, cancel, f"generate-{self.name}")
            calls = ToolCalls()
            for given in bursts:
                burst = calls.tidied(given) if given is not None and (given.deltas or given.finish_reason) else given
                if watch is not None:
                    watch.note(burst)
                yield burst
            if cancel.is_set():  # a cancelled engine may end without an error
                failure = cancel.error
        except BaseException as error:
            failure = cancel.error if cancel.is_set() else error
            cancel.set()  # before the iterator is closed, which waits for the engine
            raise self.engine_error(error) from error
        finally:
            if watch is not None:
                watch.end(failure)
            if (close := getattr(bursts, "close", None)) is not None:
                close()

    def generate(self, request: GenerateRequest, cancel: Cancel) -> ModelOutput:
        """Return the whole answer; raises like `generate_stream`."""
        with self.generate_stream(replace(request, whole=True), cancel) as stream:
            return whole_answer(stream)

    def embeddings(
        self,
        texts: Sequence[str],
        cancel: Cancel,
        terms: Terms = DEFAULT_TERMS,
        *,
        extra: JSONObject | None = None,
    ) -> Vectors:
        """Return one row for each text; ``extra`` has the caller's other fields, for an engine that passes them on.

        Raises Overloaded, NotReady, Cancelled, InputTooLong, EngineError.
        """
        if not texts:
            self.check_available()
            return []
        more = self._keywords(extra)
        embed = partial(self._embed if more else self._joint.embed, texts, cancel, **more)
        return self._computed("embeddings", embed, texts, cancel, terms)

    def _rank(self, query: str, texts: Sequence[str], cancel: CancelEvent, **more: Any) -> Sequence[float]:
        return self.engine.rerank(query, texts, cancel, **more)

    def rerank(
        self,
        query: str,
        texts: Sequence[str],
        cancel: Cancel,
        terms: Terms = DEFAULT_TERMS,
        *,
        extra: JSONObject | None = None,
    ) -> Sequence[float]:
        """Return a score for each text; an embedding model scores by cosine. Takes and raises like `embeddings`."""
        if not texts:
            self.check_available()
            return []
        if self.worker_type is WorkerType.RERANKER:
            operation, rank = "rerank", partial(self._rank, query, texts, cancel, **self._keywords(extra))
        else:
            embed = partial(self._joint.embed, cancel=cancel)
            operation, rank = "embeddings", partial(rank_by_cosine, embed, query, texts)
        scores: Sequence[float] = self._computed(operation, rank, [query, *texts], cancel, terms)
        return scores

    def _keywords(self, extra: JSONObject | None) -> JSONObject:
        return {"extra": extra} if extra and self.engine.passes_on else {}

    def count_token(self, prompt: str, cancel: Cancel | None = None, terms: Terms = DEFAULT_TERMS) -> int:
        """Return the number of tokens of ``prompt``; it waits in line only for a model that is not loaded."""
        self.check_available()
        cancel = cancel or Cancel()
        ticket = self.gate.beside() or self._admit(cancel, terms)
        try:
            ticket.wait()
            return self.engine.count_token(prompt)
        except BaseException as error:
            raise self.engine_error(error) from error
        finally:
            self._let_go(cancel, ticket)

    @property
    def context_length(self) -> int | None:
        """The context length in the metadata of a model that is available; None without one."""
        try:
            return self.metadata().context_length
        except NotReady:
            return None
        except Exception as error:  # noqa: BLE001 - the engine's: a list of models, or a heartbeat, goes on without it
            log.warning("model %s: its metadata can't be read: %s", self.key, error)
            return None

    @property
    def takes_images(self) -> bool:
        """Whether it is available, and known to take images."""
        return self.is_available and self.engine.takes_images is True

    def metadata(self) -> ModelMetadata:
        """Return the metadata of the model, of one that is not loaded what was known last; never waits in line."""
        self.check_available()
        ticket = self.gate.beside()
        if ticket is None:
            return self._last_metadata
        try:
            return self.engine.metadata()
        finally:
            ticket.release()
            self._room.notice()

    def _computed(
        self, operation: str, call: Callable[[], Any], texts: Sequence[str], cancel: Cancel, terms: Terms
    ) -> Any:
        in_slot = partial(self._computed_in_slot, operation, call, texts, cancel, terms)
        return self._counts.computed(texts, cancel, in_slot)

    def _computed_in_slot(
        self, operation: str, call: Callable[[], Any], texts: Sequence[str], cancel: Cancel, terms: Terms
    ) -> Any:
        with CallSpan(operation, self.params) as span:
            ticket = self._admit(cancel, terms)
            try:
                ticket.wait()
                if not span.recording:
                    return call()
                span.note_slot()
                with span.running_engine(operation, texts):
                    return call()
            except BaseException as error:
                # The engine raises Cancelled; the cancel has the reason.
                reason = cancel.error if isinstance(error, Cancelled) and cancel.is_set() else self.engine_error(error)
                raise reason from error
            finally:
                self._let_go(cancel, ticket)

    def _admit(self, cancel: Cancel, terms: Terms) -> Ticket:
        self.check_available()
        ticket = self.gate.request(cancel, wait=terms.wait, batch=terms.batch)
        with self._lock:
            self._active.add(cancel)
            state = self.state
        if state is State.READY:
            return ticket
        try:
            self.check_available()
            if state is State.UNLOADED:
                self._keeper.wanted(self)
        except BaseException:
            self._let_go(cancel, ticket)
            raise
        return ticket

    def _let_go(self, cancel: Cancel, ticket: Ticket) -> None:
        with self._lock:
            self._active.discard(cancel)
        self.last_used = self._room.clock()
        ticket.release()
        self._room.notice()

    def engine_error(self, error: BaseException) -> BaseException:
        """Return ``error`` if clients may see it, else an EngineError with the name of its class."""
        if isinstance(error, ModelyardError) or not isinstance(error, Exception):
            return error
        log.error("engine of %s failed", self.key, exc_info=error)
        return EngineError(f"the engine of model {self.name!r} failed: {type(error).__name__}")

    @property
    def load(self) -> str:
        """The state of its gate now: the value of ``Modelyard-Load``."""
        return self.gate.load()
