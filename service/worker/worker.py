"""ModelWorker: one engine with its state, and the gate in front of it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

from ..engines.base import CancelEvent, Engine, ModelParams, Vectors, rank_by_cosine
from ..engines.tool_calls import ToolCalls
from ..errors import (
    Cancelled,
    EngineError,
    InvalidRequest,
    ModelyardError,
    NotReady,
    StartTimeout,
)
from ..streams import TICK, Cancel, OutputStream, pumped, whole_answer
from ..telemetry.metrics import ENGINE, Metrics
from ..types import Burst, GenerateRequest, JSONObject, ModelMetadata, ModelOutput, WorkerType, worker_key
from .admission import Gate, Ticket
from .counting import CallCounts
from .health import HealthWatch
from .joint import JointTexts
from .spans import CallSpan
from .start import start_error, start_in_time

log = logging.getLogger(__name__)

STOP_TIMEOUT = 35.0
"""Seconds that cancelled answers get to release an engine before it is freed."""


class State(str, Enum):
    """The state of a model."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    UNHEALTHY = "unhealthy"
    """It runs and is called, although what computes its answers does not answer: `ModelWorker.shown_state` alone."""
    FAILED = "failed"
    STOPPING = "stopping"


class ModelWorker:
    """A model of this process. All calls block; those that compute hold a slot of the gate."""

    def __init__(
        self,
        engine: Engine,
        locate: Callable[[], Path | None] = lambda: None,
        health_changed: Callable[[ModelWorker], None] = lambda worker: None,
        metrics: Metrics | None = None,
    ) -> None:
        """Hold ``engine``, which is not started yet; ``locate`` finds its weights at the start.

        ``health_changed`` is called in a thread of its own when `is_healthy` changes while the model is ready. Calls
        are counted in ``metrics``.
        """
        self.engine = engine
        self._locate = locate
        self._health_changed = health_changed
        self._watch: HealthWatch | None = None
        self.params: ModelParams = engine.params
        self.name = self.params.registered_name
        self.worker_type = WorkerType(self.params.worker_type)
        self.key = worker_key(self.name, self.worker_type)
        self._counts = CallCounts(metrics or Metrics(), ENGINE, self.name, self.worker_type.value)
        self.state = State.STOPPED
        self.reason = ""
        """Why it is in that state: the progress of a start, or the cause of a failure."""
        self.started_in = 0.0
        self._lock = threading.Lock()
        self._active: set[Cancel] = set()
        self.gate = self._new_gate()
        params = self.params
        self._joint = JointTexts(self._embed, params.joint_texts, params.joint_letters, params.joint_delay / 1000)

    def _new_gate(self) -> Gate:
        params = self.params
        return Gate(self.name, params.limit_model_concurrency, params.max_waiting, params.queue_timeout)

    # Life

    def start(self) -> None:
        """Load the model within ``start_timeout``. Raises StartFailed; then the state is failed, with the reason."""
        with self._lock:
            if self.state in (State.STARTING, State.READY, State.STOPPING):
                raise NotReady(f"model {self.name!r} is {self.state.value}: it can't be started now")
            self.state, self.reason = State.STARTING, "waiting to load"
        began = time.monotonic()
        try:
            self._start_engine()
        except BaseException as error:
            failure = start_error(error, self.name)
            self.state, self.reason = State.FAILED, str(failure)
            is_clear = failure is error or failure.code != "start_failed"  # else a traceback helps
            log.warning("model %s did not start: %s", self.key, failure, exc_info=not is_clear)
            self._counts.start_failed(failure)
            raise failure from error
        self.started_in = time.monotonic() - began
        self.gate = self._new_gate()
        self.state, self.reason = State.READY, ""
        self._watch_health()
        self._counts.started(self.started_in)
        log.info("model %s is ready after %.1f s", self.key, self.started_in)

    def _start_engine(self) -> None:
        engine, limit = self.engine, self.params.start_timeout
        engine.path = self._locate()
        if not start_in_time(engine, self._progress, self.name, limit):
            # The late engine may still start at any time, so the next start uses a new one.
            self._renew_engine()
            raise StartTimeout(f"model {self.name!r} did not start within {limit:g} s (start_timeout)")

    def _watch_health(self) -> None:
        if self.engine.health_interval is not None:
            self._watch = HealthWatch(self.engine, self.key, lambda: self._health_changed(self))
            self._watch.start()

    @property
    def trouble(self) -> str:
        """Why a model that is ready can't answer now; empty if it can, or the model is not ready."""
        return self._watch.trouble if self._watch is not None and self.state is State.READY else ""

    @property
    def is_healthy(self) -> bool:
        """Whether it is ready, and can answer now."""
        return self.state is State.READY and not self.trouble

    @property
    def shown_state(self) -> tuple[State, str]:
        """The state and reason for people."""
        trouble = self.trouble
        return (State.UNHEALTHY, trouble) if trouble else (self.state, self.reason)

    def _renew_engine(self) -> None:
        self.engine = type(self.engine)(self.engine.params, self.engine.path)

    def _progress(self, sentence: str) -> None:
        self.reason = sentence
        log.info("model %s: %s", self.key, sentence)

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """Refuse new work, cancel running answers, and free the engine. A model that does not run is only marked.

        Raises NotReady while it starts or stops, and EngineError if the engine does not end its answers (the model is
        ready again) or its stop raises (the model is failed, with the reason; the next start uses a new engine).
        """
        with self._lock:
            if self.state in (State.STOPPED, State.FAILED):
                self.state, self.reason = State.STOPPED, ""
                return
            if self.state is not State.READY:
                raise NotReady(f"model {self.name!r} is {self.state.value}: it can't be stopped now, try again")
            self.state, self.reason = State.STOPPING, "stopping"
            active = list(self._active)
        if self._watch is not None:
            self._watch.stop()
            self._watch = None
        self.gate.close(lambda: NotReady(f"model {self.name!r} was stopped"))
        for cancel in active:
            cancel.set(NotReady(f"model {self.name!r} was stopped"))
        if not self.gate.wait_idle(timeout):
            self.state, self.reason = State.READY, ""
            self.gate = self._new_gate()
            self._watch_health()
            raise EngineError(f"model {self.name!r} did not stop: its engine does not end {len(active)} answers")
        try:
            self.engine.stop()
        except BaseException as error:
            failure = EngineError(f"model {self.name!r} did not stop in order: {type(error).__name__}: {error}")
            log.warning("%s", failure, exc_info=error)
            self._renew_engine()
            self.state, self.reason = State.FAILED, str(failure)
            raise failure from error
        self.state, self.reason = State.STOPPED, ""
        log.info("model %s is stopped", self.key)

    def quarantine(self) -> None:
        """Mark it as failed, because its process died too often during its load. A start by hand tries again."""
        self.state = State.FAILED
        self.reason = (
            "quarantined: the process died each of the last times that it loaded; "
            f"see the log, then start it by hand: modelyard models start {self.name}"
        )

    # Calls

    def generate_stream(self, request: GenerateRequest, cancel: Cancel, *, wait: bool = True) -> OutputStream:
        """Admit the request and return its stream, which owns the slot or the place in line. Close it.

        Raises InvalidRequest for options that the engine does not take, Overloaded if the line is full, and NotReady.
        The stream raises these, Cancelled, and the errors of the engine.
        """
        if request.options:
            self._check_options(request.options)
        span = CallSpan("generate", self.params)
        try:
            ticket = self._admit(cancel, wait=wait, batch=request.batch)
        except BaseException as error:
            span.end(error)
            self._counts.failed(error)
            raise
        answer = self._answer(request, cancel, ticket, span)
        stream = OutputStream(answer, cancel, lambda: self._let_go(cancel, ticket), load=self.gate.load())
        stream.when_closed(partial(self._counts.answered, stream))
        if span.recording:
            stream.when_closed(span.end)
        return stream

    def _check_options(self, options: JSONObject) -> None:
        message = f"is not supported by model {self.name!r}: leave it out"
        fields = sorted(options.keys() - self.engine.options)
        if fields:
            raise InvalidRequest.of_fields([{"field": field, "message": message} for field in fields])

    def _answer(
        self, request: GenerateRequest, cancel: Cancel, ticket: Ticket, span: CallSpan
    ) -> Iterator[Burst | None]:
        """Yield None while the request waits in line, then the engine's bursts. Foreign errors become ours."""
        while not ticket.wait(TICK):
            yield None
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

    def generate(self, request: GenerateRequest, cancel: Cancel, *, wait: bool = True) -> ModelOutput:
        """Return the whole answer; raises like `generate_stream`."""
        with self.generate_stream(replace(request, whole=True), cancel, wait=wait) as stream:
            return whole_answer(stream)

    def embeddings(
        self,
        texts: Sequence[str],
        cancel: Cancel,
        *,
        wait: bool = True,
        extra: JSONObject | None = None,
        batch: bool = False,
    ) -> Vectors:
        """Return one row for each text; ``extra`` has the caller's other fields, for an engine that passes them on.

        Raises Overloaded, NotReady, Cancelled, InputTooLong, EngineError.
        """
        if not texts:
            self.check_ready()
            return []
        more = self._keywords(extra)
        embed = partial(self.engine.embed, texts, cancel, **more) if more else partial(self._joint.embed, texts, cancel)
        return self._computed("embeddings", embed, texts, cancel, wait=wait, batch=batch)

    def _embed(self, texts: Sequence[str], cancel: CancelEvent) -> Vectors:
        return self.engine.embed(texts, cancel)  # of the engine now: a failed stop renews it

    def rerank(
        self,
        query: str,
        texts: Sequence[str],
        cancel: Cancel,
        *,
        wait: bool = True,
        extra: JSONObject | None = None,
        batch: bool = False,
    ) -> Sequence[float]:
        """Return a score for each text; an embedding model scores by cosine. Takes and raises like `embeddings`."""
        if not texts:
            self.check_ready()
            return []
        if self.worker_type is WorkerType.RERANKER:
            operation, rank = "rerank", partial(self.engine.rerank, query, texts, cancel, **self._keywords(extra))
        else:
            embed = partial(self._joint.embed, cancel=cancel)
            operation, rank = "embeddings", partial(rank_by_cosine, embed, query, texts)
        scores: Sequence[float] = self._computed(operation, rank, [query, *texts], cancel, wait=wait, batch=batch)
        return scores

    def _keywords(self, extra: JSONObject | None) -> JSONObject:
        return {"extra": extra} if extra and self.engine.passes_on else {}

    def count_token(self, prompt: str) -> int:
        """Return the number of tokens of ``prompt``; never waits in line."""
        self.check_ready()
        try:
            return self.engine.count_token(prompt)
        except BaseException as error:
            raise self.engine_error(error) from error

    @property
    def context_length(self) -> int | None:
        """The context length in the metadata of a model that is ready; None without one."""
        try:
            return self.metadata().context_length
        except NotReady:
            return None
        except Exception as error:  # noqa: BLE001 - the engine's: a list of models, or a heartbeat, goes on without it
            log.warning("model %s: its metadata can't be read: %s", self.key, error)
            return None

    def metadata(self) -> ModelMetadata:
        """Return the metadata of the model; never waits in line."""
        self.check_ready()
        return self.engine.metadata()

    def _computed(
        self, operation: str, call: Callable[[], Any], texts: Sequence[str], cancel: Cancel, *, wait: bool, batch: bool
    ) -> Any:
        in_slot = partial(self._computed_in_slot, operation, call, texts, cancel, wait=wait, batch=batch)
        return self._counts.computed(texts, cancel, in_slot)

    def _computed_in_slot(
        self, operation: str, call: Callable[[], Any], texts: Sequence[str], cancel: Cancel, *, wait: bool, batch: bool
    ) -> Any:
        with CallSpan(operation, self.params) as span:
            ticket = self._admit(cancel, wait=wait, batch=batch)
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

    def _admit(self, cancel: Cancel, *, wait: bool, batch: bool) -> Ticket:
        self.check_ready()
        ticket = self.gate.request(cancel, wait=wait, batch=batch)
        with self._lock:
            self._active.add(cancel)
            ready = self.state is State.READY
        if not ready:
            self._let_go(cancel, ticket)
            self.check_ready()
        return ticket

    def _let_go(self, cancel: Cancel, ticket: Ticket) -> None:
        with self._lock:
            self._active.discard(cancel)
        ticket.release()

    def check_ready(self) -> None:
        """Raise NotReady, with the reason, unless it is ready."""
        if self.state is State.READY:
            return
        why = f" ({self.reason})" if self.reason else ""
        raise NotReady(f"model {self.name!r} is {self.state.value}{why}", retry_after=5)

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
