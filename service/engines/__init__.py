"""The table of engines. Each engine is one module, imported when a model of it is declared."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from types import MappingProxyType

from ..errors import ConfigError
from .base import Engine

ENGINES: Mapping[str, str] = MappingProxyType(
    {
        "echo": "modelyard.engines.echo:Echo",
        "llama.cpp": "modelyard.engines.llama_cpp:LlamaCpp",
        "openai": "modelyard.engines.openai:OpenAI",
        "sentence-transformers": "modelyard.engines.sentence_transformers:SentenceTransformers",
        "transformers": "modelyard.engines.transformers:Transformers",
    }
)


def engine_class(name: str) -> type[Engine]:
    """Return the class of an engine of the table. Raises ConfigError, which lists the engines."""
    if name not in ENGINES:
        raise ConfigError(f"engine {name!r} is unknown: there are {', '.join(sorted(ENGINES))}")
    return load_class(ENGINES[name])


def load_class(path: str) -> type[Engine]:
    """Return the engine class at ``module:Class`` (or ``module.Class``), a path from the operator's configuration.

    Raises ConfigError if it can't be imported, is not a subclass of `Engine`, or has asynchronous calls.
    """
    module, _, attribute = path.partition(":") if ":" in path else path.rpartition(".")
    try:
        engine = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a module may raise anything while it is imported
        raise ConfigError(f"worker_class {path!r} can't be imported: {error}") from error
    if not isinstance(engine, type):
        raise ConfigError(f"worker_class {path!r} is not a class")
    refuse_asynchronous(engine, path)
    if not issubclass(engine, Engine):
        raise ConfigError(f"worker_class {path!r} is not a subclass of modelyard.engines.base.Engine")
    return engine


def refuse_asynchronous(engine: type, path: str) -> None:
    """Raise ConfigError if a method of ``engine`` is a coroutine: there is no event loop to await it."""
    for method in ("start", "stop", "generate_stream", "generate", "embed", "embeddings", "rerank", "count_token"):
        function = getattr(engine, method, None)
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigError(
                f"worker_class {path!r} is asynchronous: {method} is a coroutine, and modelyard runs threads, "
                "with no event loop to await it; give it a blocking method"
            )
