"""Make spans by OpenTelemetry's API: `Tracing` of one process, the current span, and the headers for the next hop.

Tracing is off by default. A span then keeps nothing, and a caller's span is still passed on to the next hop. The API's
context holds the current span while a call runs; code that runs later, or in another thread, attaches the context
again.

What tracing costs while it is off, in CPU a request (``make bench``, figure ``tracing``): 1 us for a model of this
process, and 5 us where the request goes on to another process: 0.2 % and 0.4 % of a ``generate`` of eight pieces.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.context import Context, attach, create_key, detach, get_current, get_value, set_value
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.trace import NonRecordingSpan, Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ..errors import ConfigError, MissingLibrary, ModelyardError
from ..settings.settings import Settings
from ..version import __version__
from . import resource
from .dbgpt import DBGPTPropagator

if TYPE_CHECKING:
    from .export import SpanExport

Attributes = Mapping[str, Any]

log = logging.getLogger(__name__)

HOST = "host"
"""The value of the setting that gives the spans to the global provider, which the application has set up."""

_TRACING = create_key("modelyard-tracing")
_FAILED = Status(StatusCode.ERROR)


class Tracing:
    """The spans of one process. `start` it after a fork, and `stop` it."""

    def __init__(self, settings: Settings | None = None) -> None:
        """Be off until `start`; without ``settings``, always.

        Raises MissingLibrary if OpenTelemetry's SDK is needed and not installed, ConfigError for a class that is not
        a SpanExporter.
        """
        self._settings = settings or Settings()
        self._propagator = propagator(self._settings.tracing_sample)
        self._tracer: trace.Tracer = trace.NoOpTracer()
        self._export: SpanExport | None = None
        self._exporter_class: type[Any] | None = None
        self.on = False
        self.content = self._settings.tracing_content
        """Whether prompts and answers may be put into spans."""
        target = self._settings.tracing
        self._joins = target == HOST
        if target is None or self._joins:
            return
        _require("opentelemetry.sdk.trace")
        if target.partition(":")[0] == "otlp":
            _require("opentelemetry.exporter.otlp.proto.http")
        elif not target.startswith("file:"):
            self._exporter_class = _exporter_class(target)

    def start(self) -> None:
        """Begin to trace, if the setting is given. After a failure, which is logged, nothing is traced."""
        if self._settings.tracing is None or self.on:
            return
        try:
            self._tracer = self._open()
        except Exception as error:
            is_expected = isinstance(error, ModelyardError)
            log.error("nothing is traced: %s", error, exc_info=None if is_expected else error)  # noqa: TRY400 - see there
            return
        self.on = True

    def _open(self) -> trace.Tracer:
        if self._joins:
            return trace.get_tracer("modelyard", __version__)
        from .export import SpanExport  # noqa: PLC0415 - it loads the SDK, which is in an extra

        self._export = SpanExport(self._settings, self._exporter_class)
        return self._export.provider.get_tracer("modelyard", __version__)

    def stop(self) -> None:
        """Export the spans that are left, within a few seconds, and end. A second call does nothing."""
        self.on = False
        export, self._export = self._export, None
        if export is not None:
            export.stop()

    # Spans

    def span(
        self,
        name: str,
        attributes: Attributes | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        *,
        context: Context | None = None,
        start_time: int | None = None,
    ) -> Span:
        """Return a new span below the span of ``context`` (default: the current one), which the caller ends.

        Attributes that are None are left out. ``start_time`` is in nanoseconds since 1970. While tracing is off, the
        span keeps nothing, and has the ids of the span above it.
        """
        if not self.on:
            return NonRecordingSpan(trace.get_current_span(context).get_span_context())
        if context is None:
            context = get_current()
            if not self._joins and get_value(_TRACING, context) is not self:
                # The application's spans go to another provider: as a parent, its span would be missing in the trace.
                context = Context()
        return self._tracer.start_span(name, context, kind, present(attributes or {}), start_time=start_time)

    def context_of(self, span: Span, context: Context | None = None) -> Context:
        """Return ``context`` (default: the current one) with ``span`` in it, so that new spans are below it."""
        return set_value(_TRACING, self, trace.set_span_in_context(span, context))

    @contextmanager
    def running(self, span: Span) -> Iterator[Span]:
        """Make ``span`` the current one, and end it with the body: as failed where the body raises."""
        token = attach(self.context_of(span))
        try:
            yield span
        except BaseException as error:
            end(span, error)
            raise
        else:
            end(span)
        finally:
            detach(token)

    def service_start(self) -> AbstractContextManager[Span]:
        """Return a context manager for the start of this process and its models: a span with `resource.of_service`."""
        return self.running(self.span("service.start", resource.of_service(self._settings) if self.on else None))

    def context_of_call(self, headers: Mapping[str, str]) -> Context:
        """Return the context in which a call with these ``headers`` is answered: its span is the caller's.

        A current span of the application has precedence, unless our spans go to a provider of their own.
        """
        context = Context() if self.on and not self._joins else get_current()
        return context if has_span(context) else self._propagator.extract(headers, context)


def propagator(sample: float = 1.0) -> CompositePropagator:
    """Return the propagator for W3C's and DB-GPT's headers; ``sample`` as for `DBGPTPropagator`."""
    return CompositePropagator([TraceContextTextMapPropagator(), DBGPTPropagator(sample)])


_OFF = Tracing()
_PROPAGATOR = propagator()


def current_tracing() -> Tracing:
    """Return the tracing that the current span belongs to; without one, a tracing that is off."""
    tracing = get_value(_TRACING)
    return tracing if isinstance(tracing, Tracing) else _OFF


def has_span(context: Context | None = None) -> bool:
    """Return whether ``context`` (default: the current one) has a valid span."""
    return trace.get_current_span(context).get_span_context().is_valid


def outgoing_headers() -> dict[str, str]:
    """Return the headers that name the current span to the next hop."""
    headers: dict[str, str] = {}
    _PROPAGATOR.inject(headers)
    return headers


@contextmanager
def attached(context: Context) -> Iterator[None]:
    """Make ``context`` the current one of this thread in the body of a ``with``."""
    token = attach(context)
    try:
        yield
    finally:
        detach(token)


def present(attributes: Attributes) -> dict[str, Any]:
    """Return the attributes that are not None."""
    return {name: value for name, value in attributes.items() if value is not None}


def end(span: Span, error: BaseException | str | None = None) -> None:
    """End a span; as failed with an ``error`` or its code. A second call does nothing.

    The span keeps the code of an error, and never its text, which may quote a prompt.
    """
    if not span.is_recording():
        return
    if error is not None:
        span.set_attribute("error.type", error if isinstance(error, str) else _code_of(error))
        span.set_status(_FAILED)
    span.end()


def _code_of(error: BaseException) -> str:
    """Return the code of one of our errors, or the class of another exception."""
    return error.code if isinstance(error, ModelyardError) else type(error).__qualname__


def _require(module: str) -> None:
    """Raise MissingLibrary if ``module`` is not installed."""
    try:
        spec = importlib.util.find_spec(module)
    except ImportError:
        spec = None
    if spec is None:
        raise MissingLibrary(f"tracing needs {module}: pip install 'modelyard[otel]', or leave the setting out")


def _exporter_class(path: str) -> type[Any]:
    """Return the class at ``module:Class``, which the operator's configuration names. Raises ConfigError."""
    module, _, name = path.partition(":")
    try:
        exporter = getattr(importlib.import_module(module), name)
    except Exception as error:  # a module may raise anything while it is imported
        raise ConfigError(f"tracing {path!r} can't be imported: {error}") from error
    if not isinstance(exporter, type) or not callable(getattr(exporter, "export", None)):
        raise ConfigError(f"tracing {path!r} is not a SpanExporter of opentelemetry.sdk.trace.export")
    return exporter
