"""A service for tests: a script answers for an application's models, in this process and over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from flask import Flask
from werkzeug.serving import WSGIRequestHandler, make_server

from ..cluster.keys.ring import KeyRing
from ..engines.scripted import Answers, Scripted
from ..server.extension import KEY, attach
from ..server.runtime import Runtime
from ..settings.settings import INLINE, Settings
from ..types import JSONObject, WorkerType

START_TIMEOUT = 30.0
ENGINE = f"{Scripted.__module__}:{Scripted.__qualname__}"


def new_app() -> Flask:
    """Return an application that has the extension and nothing else, for code that calls a service over HTTP."""
    app = Flask("modelyard_testing", static_folder=None, template_folder=None)
    # Ignore the environment and the configuration file: they may describe other services.
    attach(app, Runtime(Settings(role="worker", placement=INLINE, models=[]), environ={}), probes_prefix="")
    return app


@contextmanager
def taken_over(app: Flask, models: Mapping[str, str], answers: Answers, folder: Path) -> Iterator[Runtime]:
    """Let ``answers`` answer for the models of ``app``, or for ``models`` (type by name) where given.

    The runtime of the application holds its models in this process meanwhile, without weights, registry or model host,
    and has API keys of its own, none at first.
    Its former state returns at the end. Raises RuntimeError if the application has no Modelyard, or no models.
    """
    runtime: Runtime | None = app.extensions.get(KEY)
    if runtime is None:
        raise RuntimeError(f"modelyard is not in the application {app.name!r}: Modelyard(app) first")
    tables = [_table(name, kind, answers) for name, kind in (models or _models_of(runtime)).items()]
    if not tables:
        raise RuntimeError(f"the application {app.name!r} names no models: say models={{'name': 'llm'}}")
    scripted = Runtime(_settings(runtime.settings, tables, folder), {}, runtime.after_start)
    with ExitStack() as stack:
        if runtime.keys is not None and scripted.keys is not None:
            stack.enter_context(_replaced(runtime.keys, scripted.keys))
            scripted.keys = runtime.keys
        stack.enter_context(_replaced(runtime, scripted))
        stack.callback(runtime.stop)
        stack.callback(answers.release)
        runtime.start()
        if not runtime.wait_loaded(START_TIMEOUT):
            raise RuntimeError(f"the models did not start within {START_TIMEOUT:g} s: {runtime.status()['reason']}")
        yield runtime


@contextmanager
def _replaced(held: Runtime | KeyRing, other: Runtime | KeyRing) -> Iterator[None]:
    """Give ``held`` the state of ``other`` meanwhile: the blueprints, and other holders, keep the same object."""
    former = held.__dict__
    held.__dict__ = other.__dict__
    try:
        yield
    finally:
        held.__dict__ = former


def _models_of(runtime: Runtime) -> dict[str, str]:
    entries = {name: runtime.catalog.get(name) for name in runtime.names}
    names = {name: str(entry.params.get("model_alias") or name) if entry else name for name, entry in entries.items()}
    kinds = {name: entry.worker_type if entry else None for name, entry in entries.items()}
    return {names[name]: kinds[name] or WorkerType.LLM.value for name in runtime.names}


def _table(name: str, kind: str, answers: Answers) -> JSONObject:
    return {
        "name": name,
        "engine": Scripted.name,
        "worker_class": ENGINE,
        "worker_type": WorkerType(kind).value,
        "script": answers.key,
    }


def _settings(settings: Settings, tables: Sequence[JSONObject], folder: Path) -> Settings:
    """Return the settings of an application without those that reach beyond the test."""
    return replace(
        settings,
        role="worker",
        placement=INLINE,
        workers=1,
        http_threads="gthread",
        registry=None,
        key_store="memory:",
        tracing=None,
        models=None,
        models_dirs=[str(folder / "models")],
        state_dir=str(folder / "state"),
        model_tables=tuple(tables),
        overrides=(),
        on_load_failure="stay",
    )


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *args: Any, **options: Any) -> None:
        """Log nothing."""


@contextmanager
def serving(app: Flask) -> Iterator[str]:
    """Serve ``app`` in threads on a free port of the loopback; yield its URL, without a path."""
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="modelyard-testing", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
