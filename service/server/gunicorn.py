"""Settings and hooks of gunicorn for the roles of modelyard, used by ``modelyard serve`` and gunicorn.conf.py.

They use gunicorn's documented settings and server hooks, and ``server.log`` and ``server.cfg`` as gunicorn's examples
do. For three things it documents nothing: the application (``worker.wsgi``; with ``--preload``, ``server.app.wsgi()``),
and the exit status that ends the master with its worker.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
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
from modelyard.cluster.keys import check_key_store, keys_exist
from modelyard.cluster.membership import check_registry
from modelyard.server import logs
from modelyard.server.clients import Clients, connections_within, raise_file_limit
from modelyard.server.ending import Ending
from modelyard.server.runtime import Runtime
from modelyard.sockets import listening_addresses
from modelyard.threads import startable

bind = _settings.address
workers = _settings.workers
worker_class = _settings.http_threads
threads = _settings.threads
# A worker of gthread that can't open a file for a connection ends, so it accepts no more than it can.
worker_connections = connections_within(resource.getrlimit(resource.RLIMIT_NOFILE)[1], _settings.threads)
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

_INLINE_ADVICE = "run one process with the worker class gthread, and raise --threads for more requests at once"

_failed_to_load = threading.Event()
"""Set in a worker that ends because a model did not start (``on_load_failure = "exit"``)."""
_FULL_PASS_AFTER = 50
"""Passes of the collector over its middle generation before a full one; with the usual 10 the beginning of
1,000 streams brings several."""
_forks = 0
"""The workers that the master has begun to fork."""
_clients: Clients | None = None
"""The clients of this worker."""


def on_starting(server: Any) -> None:
    """End the master with a message if the settings can't work: models in its processes, an open address."""
    overrides: dict[str, Any] = {}
    if _settings.owns_models and (obstacle := _why_not_inline(server)):
        if _settings.placement is not None:
            sys.exit(f"modelyard: {obstacle}: leave the placement inline out, or {_INLINE_ADVICE}")
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
        settings = replace(_settings, **overrides)
        check_registry(settings)
        check_key_store(settings)
        TrustedNetworks(_settings.trusted_networks)
        parse_networks(_settings.allowed_networks, "allowed_networks")
        has_keys = settings.requires_keys and keys_exist(settings)
        for host, _ in addresses:
            replace(_settings, host=host).refuse_open_door(has_keys=has_keys)
    except (ConfigError, MissingLibrary) as error:
        sys.exit(f"modelyard: {error}")
    if ports and not (_settings.tokens or _settings.tokens_file or _settings.insecure or has_keys):
        server.log.warning(
            "no token is set: every program on this machine may start and stop models, and so may what a proxy on it "
            "passes on without X-Forwarded-For: see docs/security.md"
        )
    files = raise_file_limit()
    if worker_connections < connections_within(resource.RLIM_INFINITY, _settings.threads):
        server.log.warning(
            "%d open files are allowed (ulimit -Hn): a worker accepts %d connections and lets others wait",
            *(files, worker_connections),
        )
    if issubclass(server.cfg.worker_class, _gthread()):
        needed = server.cfg.workers * server.cfg.threads
        if (possible := startable(needed)) < needed:
            server.log.warning(
                "only %d of %d threads can be started (limit of tasks or memory): a worker that needs more ends; raise "
                "TasksMax or --pids-limit, or lower threads",
                *(possible, needed),
            )
    if _settings.role == "worker" and not _settings.registry and loading.HANDED_VARIABLE not in os.environ:
        server.log.info("no registry is set: this worker registers its models nowhere, and only its address finds them")


def _gthread() -> Any:
    from gunicorn.workers.gthread import ThreadWorker  # noqa: PLC0415 - after gevent's patches

    return ThreadWorker


def _why_not_inline(server: Any) -> str:
    """Return why the processes of the server can't have models; empty where its only one can."""
    from gunicorn.workers.sync import SyncWorker  # noqa: PLC0415

    if server.cfg.workers != 1:
        return f"{server.cfg.workers} workers (-w) would each load every model, and no limit would hold"
    worker = server.cfg.worker_class
    if not issubclass(worker, (_gthread(), SyncWorker)):
        return f"an engine would block the loop of the worker class {worker.__name__} (-k)"
    return ""


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
    if isinstance(runtime, Runtime) and _is_ours(app):
        from modelyard.server.extension import create_app  # noqa: PLC0415 - without --preload the master does not need it

        replacement = create_app(replace(runtime.settings, **overrides))
        app.wsgi_app = replacement.wsgi_app
        app.extensions.update(replacement.extensions)


def pre_fork(server: Any, worker: Any) -> None:
    """Count the workers, and share the memory of the program with them: their collectors leave it alone."""
    global _forks  # noqa: PLW0603 - gunicorn's hooks are functions of a module
    _forks += 1
    gc.freeze()


def post_worker_init(worker: Any) -> None:
    """Start the runtime, in the process that will own the models."""
    global _clients  # noqa: PLW0603
    runtime = _runtime_of(worker)
    if runtime is None:
        return
    if _is_ours(worker.wsgi):  # elsewhere the logging of the application counts first
        logs.configure(runtime.settings)
    runtime.listen_on(*_own_address())
    if _forks > 1 and runtime.host is None:
        # --fresh forgets the state of earlier services, not what was set over HTTP at an earlier worker of this one.
        runtime.settings.fresh = False
    _clients = Clients(_settings.receive_timeout, keepalive, worker_connections)
    worker.wsgi.wsgi_app = _clients.wrap(worker.wsgi.wsgi_app)
    _clients.start()
    Ending(runtime, _clients).start()
    runtime.start(_end_service)
    _collect_rarely()


def _collect_rarely() -> None:
    """Keep the program out of all later passes of the garbage collector, and let full ones be rare.

    A full pass over the program stops all answers for tens of milliseconds, one over 1,000 streams for 70.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*gc.get_threshold()[:2], _FULL_PASS_AFTER)


def post_request(worker: Any, request: Any, environ: Any, response: Any) -> None:
    """Note that a client has its answer."""
    if _clients is not None:
        _clients.end_request(environ)


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


def _is_ours(app: Any) -> bool:
    """Return whether an application with a runtime is that of `create_app`, and nobody else's."""
    return bool(app.name == "modelyard")


def _own_address() -> tuple[str, int]:
    """Return host and port of the first socket that this process listens on."""
    for address in listening_addresses():
        return (f"unix:{address}", 0) if isinstance(address, str) else address
    return _settings.host, _settings.port


def _end_service(reason: str) -> None:
    """End this worker as a SIGTERM does; its exit status then ends the master."""
    print(f"modelyard: a model did not start, and on_load_failure is exit: {reason}", file=sys.stderr)
    _failed_to_load.set()
    os.kill(os.getpid(), signal.SIGTERM)
