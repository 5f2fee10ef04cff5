"""Settings and hooks of gunicorn for the roles of modelyard, used by ``modelyard serve`` and gunicorn.conf.py.

They use gunicorn's documented settings and server hooks. They also read ``server.cfg`` (as gunicorn's examples do),
``server.app.wsgi()``, and the attributes ``wsgi``, ``sockets`` and ``age`` of a worker.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

from modelyard.errors import ConfigError, MissingLibrary
from modelyard.settings import loading
from modelyard.settings.settings import HOSTED, Settings

try:
    _settings: Settings = loading.load()
except ConfigError as error:
    sys.exit(f"modelyard: {error}")

if _settings.http_threads == "gevent":
    # Before ssl is imported: patched later, https recurses without end.
    from gevent import monkey

    monkey.patch_all()

from modelyard.access.networks import TrustedNetworks, parse_networks
from modelyard.access.token_store import TokenStore
from modelyard.cluster.membership import check_registry
from modelyard.server.runtime import Runtime

bind = _settings.address
workers = _settings.workers
worker_class = _settings.http_threads
threads = _settings.threads
# Under gthread, `threads` connections have a request, and 1,000 more may be idle between two requests.
worker_connections = _settings.threads + 1000
# More than the 60 s after which nginx closes its side.
keepalive = 75
timeout = 60
# Longer than the drain, as the master kills its workers after this time.
_DRAIN_MARGIN = 15
graceful_timeout = int(_settings.drain_timeout) + _DRAIN_MARGIN
errorlog = _settings.log_file or "-"
loglevel = _settings.log_level
proc_name = f"modelyard-{_settings.role}"
# A setting since gunicorn 25.1; versions before it ignore the name.
control_socket_disable = True

_BOOT_ERROR = 3
"""The exit status of a worker that can't boot: gunicorn starts no other worker, and ends with the same status."""
_LOG_FORMAT = "[%(asctime)s] [%(process)d] [%(levelname)s] %(message)s"

_failed_to_load = threading.Event()
"""Set in a worker that ends because a model did not start (``on_load_failure = "exit"``)."""


def on_starting(server: Any) -> None:
    """End the master with a message if the settings can't work: several processes with models, an open address."""
    overrides: dict[str, Any] = {}
    if server.cfg.workers != 1 and _settings.owns_models:
        if _settings.placement is not None:
            sys.exit(
                f"modelyard: {server.cfg.workers} workers (-w) would each load every model, and no limit would hold: "
                "leave --placement inline out, or run one, and raise --threads for more requests at once"
            )
        overrides["placement"] = HOSTED
    addresses = list(_addresses(server.cfg.bind))
    ports = [port for _, port in addresses if port is not None]
    if ports and ports[0] not in (0, _settings.port):
        # The folder of a service, which holds its registry, is named after the port.
        overrides["port"] = ports[0]
    if overrides:
        _override(server, overrides)
    try:
        TokenStore(_settings.tokens, _settings.tokens_file)
        check_registry(_settings)
        TrustedNetworks(_settings.trusted_networks)
        parse_networks(_settings.allowed_networks, "allowed_networks")
        for host, _ in addresses:
            replace(_settings, host=host).refuse_open_door()
    except (ConfigError, MissingLibrary) as error:
        sys.exit(f"modelyard: {error}")
    if ports and not (_settings.tokens or _settings.tokens_file or _settings.insecure):
        server.log.warning(
            "no token is set: every program on this machine may start and stop models, and so may what a proxy on it "
            "passes on without X-Forwarded-For: see docs/security.md"
        )


def _addresses(binds: list[str]) -> Iterator[tuple[str, int | None]]:
    """Yield host and port of each value of ``bind``; the port is None for a unix socket and an open file."""
    for text in binds:
        if text.startswith(("unix:", "fd://")):
            yield "unix:", None
        else:
            url = urlsplit(f"//{text.removeprefix('tcp://')}")
            yield url.hostname or "0.0.0.0", 8000 if url.port is None else url.port  # noqa: S104 - what gunicorn makes of it


def _override(server: Any, overrides: dict[str, Any]) -> None:
    """Pass the values of gunicorn's own command line on to the processes that are about to be forked."""
    for name, value in overrides.items():
        os.environ[f"MODELYARD_{name.upper()}"] = str(value)
    if not server.cfg.preload_app:
        return
    app = server.app.wsgi()
    runtime = getattr(app, "extensions", {}).get("modelyard")
    if isinstance(runtime, Runtime) and app.name == "modelyard":
        from modelyard.server.extension import create_app  # noqa: PLC0415 - without --preload the master does not need it

        replacement = create_app(replace(runtime.settings, **overrides))
        app.wsgi_app = replacement.wsgi_app
        app.extensions.update(replacement.extensions)


def post_worker_init(worker: Any) -> None:
    """Start the runtime, in the process that will own the models."""
    runtime = _runtime_of(worker)
    if runtime is None:
        return
    _configure_log(_settings)
    runtime.settings.host, runtime.settings.port = _address_of(worker) or (_settings.host, _settings.port)
    if worker.age > 1 and runtime.host is None:
        # --fresh forgets the state of earlier services, not what was set over HTTP at an earlier worker of this one.
        runtime.settings.fresh = False
    _drain_on_term(runtime)
    runtime.start(_end_service)


def worker_exit(server: Any, worker: Any) -> None:
    """Stop the models, after the last answer."""
    runtime = _runtime_of(worker)
    if runtime is not None:
        runtime.stop()
    if _failed_to_load.is_set():
        sys.exit(_BOOT_ERROR)


def _runtime_of(worker: Any) -> Runtime | None:
    extensions = getattr(getattr(worker, "wsgi", None), "extensions", {})
    runtime = extensions.get("modelyard")
    return runtime if isinstance(runtime, Runtime) else None


def _address_of(worker: Any) -> tuple[str, int] | None:
    """Return host and port of the first socket that the worker listens on."""
    for sock in worker.sockets:
        name = sock.getsockname()
        if isinstance(name, tuple):
            return str(name[0]), int(name[1])
        if isinstance(name, str):
            return f"unix:{name}", 0
    return None


def _configure_log(settings: Settings) -> None:
    """Send the log and the access lines to ``log_file``, or to standard error. Raises OSError."""
    root = logging.getLogger("modelyard")
    access = logging.getLogger("modelyard.access")
    tracing = logging.getLogger("opentelemetry")
    for logger, text in ((root, _LOG_FORMAT), (access, "%(message)s"), (tracing, _LOG_FORMAT)):
        handler = logging.FileHandler(settings.log_file) if settings.log_file else logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(text, "%Y-%m-%d %H:%M:%S %z"))
        logger.handlers[:] = [handler]
        logger.propagate = False
    root.setLevel(settings.log_level.upper())
    access.setLevel("DEBUG" if settings.log_level == "debug" else "INFO")
    # This logger reports every try of every batch; modelyard.telemetry.export logs a failure once, with the reason.
    logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)


def _end_service(reason: str) -> None:
    """End this worker as a SIGTERM does; its exit status then ends the master."""
    print(f"modelyard: a model did not start, and on_load_failure is exit: {reason}", file=sys.stderr)
    _failed_to_load.set()
    os.kill(os.getpid(), signal.SIGTERM)


def _drain_on_term(runtime: Runtime) -> None:
    """Drain when SIGTERM comes, and call gunicorn's handler after the drain.

    Our handler only sets an event, as the code that it interrupts may hold any lock.
    """
    term = threading.Event()
    gunicorn_handler = signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:
        term.set()

    def drain() -> None:
        term.wait()
        runtime.drain()
        if callable(gunicorn_handler):
            gunicorn_handler(signal.SIGTERM, None)
        if _settings.http_threads == "gevent":
            _quit_when_idle()

    threading.Thread(target=drain, name="modelyard-drain", daemon=True).start()
    signal.signal(signal.SIGTERM, handle)
    # signal.signal makes system calls end with EINTR; gunicorn had set the opposite.
    signal.siginterrupt(signal.SIGTERM, False)


# At SIGTERM gunicorn's gevent worker, unlike its gthread worker, waits until the last idle connection is closed, for
# graceful_timeout at most. SIGQUIT ends it at once, so it is sent when no request is being answered any more.

_requests: set[int] = set()
"""The requests that a gevent worker is answering. Its greenlets share one thread, so it needs no lock."""
_is_idle = threading.Event()
_is_idle.set()


def _begin_request(worker: Any, request: Any) -> None:
    _requests.add(id(request))
    _is_idle.clear()


def _end_request(worker: Any, request: Any, environ: Any, response: Any) -> None:
    _requests.discard(id(request))
    if not _requests:
        _is_idle.set()


if _settings.http_threads == "gevent":
    pre_request, post_request = _begin_request, _end_request


def _quit_when_idle() -> None:
    """Send SIGQUIT to this process when its last answer has been written; if that takes too long, gunicorn ends it."""
    if _is_idle.wait(_DRAIN_MARGIN):
        os.kill(os.getpid(), signal.SIGQUIT)
