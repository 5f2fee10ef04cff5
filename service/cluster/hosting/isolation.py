"""IsolatedEngine: an engine in a process of its own, behind the calls of every engine.

The process is the worker service for this one model (`server.isolated_process`), and is called over a unix socket as a
model of another machine is. It has no limits of its own: the gate of this process admits. Its end is that of its
requests alone; `worker.restarts` starts the model again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from ...engines.base import CancelEvent, Engine, Progress, Vectors
from ...errors import (
    EngineError,
    EngineLost,
    ModelyardError,
    NotReady,
    StartFailed,
    StartTimeout,
    WorkerLost,
    WorkerUnreachable,
)
from ...sessions.session import Session
from ...settings.loading import serialize
from ...settings.params import params_of
from ...settings.settings import INLINE, UNKNOWN_PORT, Settings
from ...streams import Cancel, following
from ...telemetry.tracing import HOST, outgoing_headers
from ...types import Burst, GenerateRequest, JSONObject, ModelMetadata, worker_key
from ...wire.errors import error_of_document
from ...worker.states import State
from ..remote_model import RemoteModelWorker
from .child import ChildProcess

LOOK_INTERVAL = 5.0
"""Seconds between two looks whether the process answers."""
SILENCE = 86_400.0
"""Seconds of silence until a call fails: the look finds a process that hangs, and an answer may take long."""
PROGRESS_INTERVAL = 0.5
"""Seconds between two looks at the progress of a load."""
PROGRESS_TIMEOUT = (0.5, 2.0)
EXIT_TIMEOUT = 1.0
"""Seconds between the break of a connection and the end of the process that caused it, at most."""
THREADS = 10_000
MAX_BODY = 1024**3
"""Bytes: this process has checked the body of its client already."""
FIRST_OUTPUT_TIMEOUT = 0.5
"""Seconds until the headers of a stream come, so that its silences can be seen."""


def isolated(engine: Engine, settings: Settings) -> Engine:
    """Return the engine to call for ``engine``: itself, or one in a process of its own where ``isolation`` says so."""
    return IsolatedEngine(engine, settings) if engine.params.isolation == "process" else engine


class IsolatedEngine(Engine):
    """An engine whose `start` starts a process, and whose `stop` ends it."""

    name = "isolated"
    ticks = True

    def __init__(self, engine: Engine, settings: Settings) -> None:
        """Run an engine like ``engine``, which is never started; ``settings`` are those of this process."""
        super().__init__(engine.params, engine.path)
        self._engine = engine
        self._settings = settings
        self.passes_on = engine.passes_on
        self._key = worker_key(self.params.registered_name, self.params.worker_type)
        self._session = Session(settings.connect_timeout, SILENCE, current_headers=outgoing_headers)
        self._child: ChildProcess | None = None
        self._starting: ChildProcess | None = None
        self._is_given_up = False
        self._model: RemoteModelWorker | None = None
        self._options = engine.options
        self._takes_images = engine.takes_images
        self._metadata = ModelMetadata(self.params.registered_name)
        self._heard = 0.0
        """When the process has answered a look last."""

    @property
    def file_names(self) -> Sequence[str]:
        """The files that parameters name beside ``model_path``. Raises StartFailed."""
        return self._engine.file_names

    @property
    def fills_memory(self) -> bool:
        """Whether it takes what is free at its start."""
        return self._engine.fills_memory

    def memory_needed(self) -> int:
        """Return the bytes that the model takes while it is loaded. Raises BadModelFile."""
        self._engine.path, self._engine.files = self.path, self.files
        return self._engine.memory_needed()

    def renewed(self) -> Engine:
        """Return a new engine for the same model, not started."""
        return IsolatedEngine(type(self._engine)(self.params, self.path), self._settings)

    @property
    def pid(self) -> int:
        """The process of the model; 0 without one."""
        return 0 if self._child is None else self._child.pid

    # Life

    def start(self, progress: Progress) -> None:
        """Start the process, and wait until it has loaded the model.

        Raises the error of the load, StartTimeout, and StartFailed with the last lines of a process that ends.
        """
        progress("starting its process")
        child = self._starting = ChildProcess(self._key, self.params.memory_limit, self.params.environment)
        if self._is_given_up:
            self.give_up()
        try:
            url = f"http+unix://{quote(str(child.folder.socket), safe='')}"
            child.start(self._order(child))
            loaded = self._loaded(child, url, progress)
        except BaseException:
            child.stop()
            self._session.close()
            raise
        self._options, self._takes_images = frozenset(loaded["options"]), loaded["takes_images"]
        self._metadata = ModelMetadata(**loaded["metadata"])
        self._child, self._model = child, RemoteModelWorker(self._key, f"{url}/api", self._session)
        self._heard = time.monotonic()

    def give_up(self) -> None:
        """Kill the process that loads the model, also one that is not started yet."""
        self._is_given_up = True
        if self._starting is not None:
            self._starting.kill("was killed: its start was given up")

    def _loaded(self, child: ChildProcess, url: str, progress: Progress) -> JSONObject:
        """Return what the process says of the model that it has loaded."""
        limit = self.params.start_timeout
        deadline = time.monotonic() + limit
        sentence = ""
        while (line := child.answer(PROGRESS_INTERVAL)) is None:
            if time.monotonic() >= deadline:
                raise StartTimeout(f"model {self.params.registered_name!r} did not start within {limit:g} s")
            reason = self._progress_at(url)
            if reason and reason != sentence:
                progress(reason)
            sentence = reason
        if not line:
            raise StartFailed(f"{child.why_ended(EXIT_TIMEOUT)} while it loaded; its last lines: {child.last_lines}")
        answer: JSONObject = json.loads(line)
        if "error" in answer:
            raise error_of_document(StartFailed.status, {}, answer["error"], self._key)
        return answer

    def _progress_at(self, url: str) -> str:
        try:
            model = self._status(url, PROGRESS_TIMEOUT)
        except ModelyardError:
            return ""  # it does not listen yet
        return str(model["reason"] or "") if model.get("state") == State.STARTING else ""

    def _status(self, url: str, timeout: tuple[float, float], cancel: Cancel | None = None) -> JSONObject:
        """Return the entry of the model in the status of the process; empty while it has none."""
        with self._session.request("GET", f"{url}/readyz", timeout=timeout, cancel=cancel) as response:
            models = json.loads(response.content)["models"]
        return dict(models[0]) if models else {}

    def _order(self, child: ChildProcess) -> JSONObject:
        return {
            "settings": serialize(self._settings_of(child)),
            "model": self.params.model_name,
            "worker_type": self.params.worker_type,
            "socket": str(child.folder.socket),
            "memory_limit": self.params.memory_limit,
        }

    def _settings_of(self, child: ChildProcess) -> Settings:
        """Return the settings of the process: one model, no registry, no tokens, and nothing that outlives it."""
        changed: dict[str, Any] = {
            "role": "worker",
            "placement": INLINE,
            "workers": 1,
            "http_threads": "gthread",
            "threads": THREADS,
            "host": f"unix:{child.folder.socket}",
            "port": UNKNOWN_PORT,
            "prefix": "/api",
            "state_dir": str(child.folder.path),
            "instance": "isolated",
            "fresh": False,
            "config": None,
            "memory_budget": None,
            "registry": None,
            "advertise": None,
            "aliases": {},
            "default_models": {},
            "fallbacks": {},
            "models": [],
            "model_tables": (self._table(),),
            "overrides": (),
            "passthrough": (),
            "insecure": False,
            "tokens": [],
            "tokens_file": None,
            "token": None,
            "token_file": None,
            "remote_headers": [],
            "trusted_networks": [],
            "key_store": "none",
            "access_log": False,
            "metrics": "off",
            "on_load_failure": "stay",
            "max_body_bytes": MAX_BODY,
            "first_output_timeout": FIRST_OUTPUT_TIMEOUT,
            "log_file": None,
            # The provider of an application's spans is in the process of the application alone.
            "tracing": None if self._settings.tracing == HOST else self._settings.tracing,
        }
        if self.path is not None:
            folders = [*self._settings.models_paths, self.path.parent, *(file.parent for file in self.files.values())]
            changed["models_dirs"] = list(map(str, folders))
        return replace(self._settings, **changed)

    def _table(self) -> JSONObject:
        """Return the model as a table of a configuration file has it, with all of its parameters."""
        engine, params = type(self._engine), self.params
        values = {name: getattr(params, name) for name in params_of(type(params)) if getattr(params, name) is not None}
        # What is for the process that admits requests, and starts this one.
        for name in ("model_name", "keep_alive", "max_waiting", "queue_timeout", "environment"):
            values.pop(name, None)
        return {
            **values,
            "name": params.model_name,
            "worker_class": f"{engine.__module__}:{engine.__qualname__}",
            **({} if self.path is None else {"model_path": str(self.path)}),
            "max_waiting": 10_000,
            "queue_timeout": 3600.0,
            "isolation": "none",
        }

    def stop(self) -> None:
        """End the process; a second call does nothing."""
        child, self._child, self._model = self._child, None, None
        if child is not None:
            child.stop()
        self._session.close()

    def when_lost(self, callback: Callable[[str], None]) -> None:
        """Call ``callback`` once with the reason when the process ends, unless `stop` ends it."""

        def lose(reason: str) -> None:
            self._session.close()
            callback(reason)

        if self._child is not None:
            self._child.when_ended(lose)

    @property
    def health_interval(self) -> float | None:
        """Seconds between two looks whether the process answers."""
        return min(self._engine.health_interval or LOOK_INTERVAL, LOOK_INTERVAL)

    def health(self, cancel: CancelEvent) -> str:
        """Return why the model can't answer now; empty if it can.

        A process that has not answered for ``read_timeout`` seconds is killed.
        """
        assert isinstance(cancel, Cancel)
        child, model, limit = self._child, self._model, self._settings.read_timeout
        if child is None or model is None:
            return ""
        try:
            timeout = (self._settings.connect_timeout, limit)
            status = self._status(model.url.removesuffix("/api"), timeout, cancel)
        except WorkerUnreachable as error:
            if time.monotonic() - self._heard >= limit and not cancel.is_set():
                child.kill(f"did not answer for {limit:g} s, and was killed")
            return child.why_ended(EXIT_TIMEOUT) or str(error)
        self._heard = time.monotonic()
        return str(status["reason"]) if status.get("state") == State.UNHEALTHY else ""

    # What it says of itself

    @property
    def joint_texts(self) -> int:
        """0: its process puts the texts of waiting requests together."""
        return 0

    @property
    def options(self) -> frozenset[str]:
        """The names of `GenerateRequest.options` that the model takes."""
        return self._options

    @property
    def takes_images(self) -> bool | None:
        """Whether messages may have images; None where another server knows."""
        return self._takes_images

    def metadata(self) -> ModelMetadata:
        """Return the metadata of the model, as it was after its start."""
        return self._metadata

    # Calls

    def generate_stream(self, request: GenerateRequest, cancel: CancelEvent) -> Iterator[Burst | None]:
        """Yield the bursts of the process."""
        # This process has admitted it, so it never waits there, unless a slot is just being given back.
        terms = replace(request.terms, wait=True, batch=False)
        request = replace(request, model=self.params.registered_name, terms=terms)
        with self._called(cancel) as (model, part), model.generate_stream(request, part) as stream:
            yield from stream

    def embed(self, texts: Sequence[str], cancel: CancelEvent, extra: JSONObject | None = None) -> Vectors:
        """Return one row of floats for each text."""
        with self._called(cancel) as (model, part):
            return model.embeddings(texts, part, extra=extra)

    def rerank(
        self, query: str, texts: Sequence[str], cancel: CancelEvent, extra: JSONObject | None = None
    ) -> Sequence[float]:
        """Return a score for each text."""
        with self._called(cancel) as (model, part):
            return model.rerank(query, texts, part, extra=extra)

    def count_token(self, prompt: str) -> int:
        """Return the number of tokens of ``prompt``."""
        with self._called(Cancel()) as (model, _):
            return model.count_token(prompt)

    @contextmanager
    def _called(self, cancel: CancelEvent) -> Iterator[tuple[RemoteModelWorker, Cancel]]:
        """Give the model in its process, and a cancel for one call: the end of an answer sets that of its stream.

        Raises EngineLost where the process ends before the first piece of an answer, EngineError after it: with the
        errors of a remote worker, routers would avoid all models of this service.
        """
        assert isinstance(cancel, Cancel)
        child, model = self._child, self._model
        if child is None or model is None:
            raise NotReady(f"model {self.params.registered_name!r} has no process")
        with following(cancel) as part:
            try:
                yield model, part
            except (WorkerUnreachable, WorkerLost) as error:
                why = child.why_ended(EXIT_TIMEOUT) or f"the process of model {self._key} does not answer: {error}"
                is_begun = isinstance(error, WorkerLost)
                raise (EngineError(why) if is_begun else EngineLost(why)) from error
