"""Tracing: of one process, off by default, and free then. What it keeps goes where the setting says.

With tracing off, what a caller said of its own trace is still passed on to the next hop. OpenTelemetry is loaded when
tracing is on, and not before.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar

from ..errors import ConfigError, MissingLibrary, ModelyardError
from ..settings.settings import Settings
from ..streams import OutputStream
from ..types import GenerateRequest
from ..version import __version__
from . import resource as facts
from .dbgpt import Caller
from .spans import INTERNAL, NOTHING, Attributes, PassedOn, Span, current, outgoing_headers

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from .recording import Recorder

__all__ = ["Traced", "Tracing", "current", "outgoing_headers", "spanned"]

P = ParamSpec("P")
R = TypeVar("R")
log = logging.getLogger(__name__)

HOST = "host"
"""The setting that hands the spans to the provider that the process has anyway: a host application's."""


class Tracing:
    """Where the spans of one process are made. `start` it after a fork, and `stop` it."""

    def __init__(self, settings: Settings | None = None) -> None:
        """Be off until the start; without settings for good.

        Raises MissingLibrary where OpenTelemetry is wanted and not there, ConfigError for a class that is none.
        """
        self._settings = settings or Settings()
        self._recorder: Recorder | None = None
        self._provider: TracerProvider | None = None
        self._exporter: type[Any] | None = None
        """The class that the operator named."""
        self.on = False
        wanted = self._settings.tracing
        if wanted is None:
            return
        _look_for("opentelemetry.trace" if wanted == HOST else "opentelemetry.sdk.trace")
        if wanted.partition(":")[0] == "otlp":
            _look_for("opentelemetry.exporter.otlp.proto.http")
        elif wanted != HOST and not wanted.startswith("file:"):
            self._exporter = _exporter_class(wanted)

    def start(self) -> None:
        """Begin to trace, if the setting says so. What goes wrong is logged, and nothing is traced then."""
        if self._settings.tracing is None or self.on:
            return
        try:
            self._recorder = self._open(self._settings.tracing)
        except Exception as error:
            known = isinstance(error, ModelyardError)
            log.error("nothing is traced: %s", error, exc_info=None if known else error)  # noqa: TRY400 - see there
            return
        self.on = True

    def _open(self, wanted: str) -> Recorder:
        from opentelemetry import trace  # noqa: PLC0415 - only who traces needs it

        from .recording import Recorder  # noqa: PLC0415

        settings = self._settings
        if wanted == HOST:
            tracer = trace.get_tracer("modelyard", __version__)
        else:
            from .export import provider  # noqa: PLC0415

            self._provider = provider(settings, self._exporter)
            tracer = self._provider.get_tracer("modelyard", __version__)
        return Recorder(tracer, content=settings.tracing_content, sample=settings.tracing_sample, join=wanted == HOST)

    def stop(self) -> None:
        """Send off what is left, for a few seconds at most, and end. A second call does nothing."""
        self.on = False
        provider, self._provider = self._provider, None
        if provider is not None:
            provider.shutdown()

    def span(self, name: str, attributes: Attributes | None = None, kind: str = INTERNAL) -> Span:
        """Return a new span below the `current` one, or at the top of a trace of its own. Its maker ends it."""
        here = current()
        if here is not NOTHING:
            return here.child(name, attributes, kind)
        return self._recorder.begin(name, attributes, kind) if self.on and self._recorder else NOTHING

    def service_start(self) -> Span:
        """Return the span over the start of this process and its models."""
        return self.span("service.start", facts.of_service(self._settings)) if self.on else NOTHING

    def arrived(self, name: str, attributes: Attributes, caller: Caller | None, began: int) -> Span:
        """Return the span of a call that came over HTTP at ``began``, in nanoseconds since 1970."""
        if self.on and self._recorder:
            return self._recorder.arrived(name, attributes, caller, began)
        return NOTHING if caller is None else PassedOn(caller)


def _look_for(module: str) -> None:
    """Raise MissingLibrary where ``module`` is not installed."""
    try:
        found = importlib.util.find_spec(module)
    except ImportError:
        found = None
    if found is None:
        raise MissingLibrary(f"tracing needs {module}: pip install 'modelyard[otel]', or leave the setting out")


def _exporter_class(path: str) -> type[Any]:
    """Return the class at ``module:Class``, which the operator wrote. Raises ConfigError."""
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # a module may raise anything while it is imported
        raise ConfigError(f"tracing {path!r} can't be imported: {error}") from error
    if not isinstance(found, type) or not callable(getattr(found, "export", None)):
        raise ConfigError(f"tracing {path!r} is no SpanExporter of opentelemetry.sdk.trace.export")
    return found


class Traced(Protocol):
    """Whatever has a tracing."""

    tracing: Tracing


T = TypeVar("T", bound=Traced)


def spanned(method: Callable[Concatenate[T, P], R]) -> Callable[Concatenate[T, P], R]:
    """Put a span over each call of a manager's method; over a stream until it is closed."""
    name = f"manager.{method.__name__}"

    @functools.wraps(method)
    def call(self: T, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if not self.tracing.on:
            return method(self, *args, **kwargs)
        span = self.tracing.span(name, _called(type(self).__name__, args, kwargs))
        try:
            with span.active():
                answer = method(self, *args, **kwargs)
        except BaseException as error:
            span.end(error)
            raise
        if isinstance(answer, OutputStream):
            answer.when_closed(span.end)
        else:
            span.end()
        return answer

    return call


def _called(manager: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Attributes:
    first = args[0] if args else kwargs.get("model", kwargs.get("request"))
    name = first.model if isinstance(first, GenerateRequest) else first
    return {"modelyard.manager": manager, "gen_ai.request.model": name if isinstance(name, str) else None}
