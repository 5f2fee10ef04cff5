"""gunicorn's settings and hooks for the roles that are ours, used by ``modelyard serve`` and gunicorn.conf.py.

A process with models is one with many threads: it owns them, so that a limit is a limit. SIGTERM drains first.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from dataclasses import replace
from types import FrameType
from typing import Any

from modelyard.errors import ConfigError, MissingLibrary
from modelyard.server import log_setup
from modelyard.settings import loading
from modelyard.settings.settings import HOSTED, Settings

try:
    _settings: Settings = loading.load()
except ConfigError as error:
    sys.exit(f"modelyard: {error}")

if _settings.http_threads == "gevent":
    # Before anything imports ssl: patched later, https recurses for ever.
    from gevent import monkey

    monkey.patch_all()

from modelyard.access.networks import TrustedNetworks, parse_networks
from modelyard.access.token_store import TokenStore
from modelyard.cluster.membership import check_registry
from modelyard.server.runtime import Runtime

_WORKER_CLASSES = {
    "gthread": "gthread",
    "gevent": "modelyard.server.gevent_worker.GeventWorker",
}

bind = _settings.address
workers = _settings.workers
worker_class = _WORKER_CLASSES[_settings.http_threads]
threads = _settings.threads
worker_connections = _settings.threads + 1000
keepalive = 75
timeout = 60
graceful_timeout = int(_settings.drain_timeout) + 15
errorlog = _settings.log_file or "-"
loglevel = _settings.log_level
proc_name = f"modelyard-{_settings.role}"
control_socket_disable = True


_BOOT_ERROR = 3
"""What gunicorn takes for a worker that can't boot: it does not try another, and ends with that status itself."""


def on_starting(server: Any) -> None:
    """Refuse, in the master, what can't work: several processes that each hold models, an open door."""
    told: dict[str, Any] = {}
    if server.cfg.workers != 1 and _settings.owns_models:
        if _settings.placement is not None:
            sys.exit(
                f"modelyard: {server.cfg.workers} workers (-w) would each load every model, and no limit would hold: "
                "leave --placement inline out, or run one, and raise --threads for more requests at once"
            )
        told["placement"] = HOSTED
    ports = [address[1] for address in server.cfg.address if isinstance(address, tuple)]
    if ports and ports[0] not in (0, _settings.port):
        # The folder of a service, with its registry, is named after the port.
        told["port"] = ports[0]
    if told:
        _tell(server.app, told)
    try:
        TokenStore(_settings.tokens, _settings.tokens_file)
        check_registry(_settings)
        TrustedNetworks(_settings.trusted_networks)
        parse_networks(_settings.allowed_networks, "allowed_networks")
    except (ConfigError, MissingLibrary) as error:
        sys.exit(f"modelyard: {error}")
    for address in server.cfg.address:
        host = address[0] if isinstance(address, tuple) else "unix:"
        try:
            replace(_settings, host=host).refuse_open_door()
        except ConfigError as error:
            sys.exit(f"modelyard: {error}")


def _tell(application: Any, told: dict[str, Any]) -> None:
    """Tell the processes that are about to be forked what only gunicorn's command line has said."""
    for name, value in told.items():
        os.environ[f"MODELYARD_{name.upper()}"] = str(value)
    # With --preload our application is made already.
    made = application.callable
    runtime = getattr(made, "extensions", {}).get("modelyard")
    if isinstance(runtime, Runtime) and made.name == "modelyard":
        from modelyard.server.app import create_app  # noqa: PLC0415 - without --preload the master has no use for it

        application.callable = create_app(replace(runtime.settings, **told))


def post_worker_init(worker: Any) -> None:
    """Start the runtime, in the process that will own the models."""
    runtime = _runtime_of(worker)
    if runtime is None:
        return
    log_setup.configure(_settings)
    runtime.settings.host, runtime.settings.port = _address_of(worker) or (_settings.host, _settings.port)
    if worker.age > 1 and runtime.host is None:
        # What --fresh forgets was said before this service; what was said to an earlier worker is kept.
        runtime.settings.fresh = False
    runtime.on_fatal = lambda reason: _end_service(worker, reason)
    _drain_on_term(runtime)
    runtime.start()


def worker_exit(server: Any, worker: Any) -> None:
    """Stop the models, after the last answer."""
    runtime = _runtime_of(worker)
    if runtime is not None:
        runtime.stop()
    if getattr(worker, "failed_to_load", False):
        sys.exit(_BOOT_ERROR)


def _runtime_of(worker: Any) -> Runtime | None:
    extensions = getattr(getattr(worker, "wsgi", None), "extensions", {})
    runtime = extensions.get("modelyard")
    return runtime if isinstance(runtime, Runtime) else None


def _address_of(worker: Any) -> tuple[str, int] | None:
    """Return host and port that the worker really listens on, whatever said so."""
    for sock in worker.sockets:
        name = sock.getsockname()
        if isinstance(name, tuple):
            return str(name[0]), int(name[1])
        if isinstance(name, str):
            return f"unix:{name}", 0
    return None


def _end_service(worker: Any, reason: str) -> None:
    """End this worker as if it were told to; its exit status ends the master, with a status that tells a supervisor."""
    print(f"modelyard: a model did not start, and on_load_failure is exit: {reason}", file=sys.stderr)
    worker.failed_to_load = True
    os.kill(os.getpid(), signal.SIGTERM)


def _drain_on_term(runtime: Runtime) -> None:
    """Drain when SIGTERM comes, and only then let gunicorn have it.

    The handler sets an event and nothing else: what it interrupts may hold any lock.
    """
    term = threading.Event()
    gunicorns = signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:
        term.set()

    def drain() -> None:
        term.wait()
        runtime.drain()
        if callable(gunicorns):
            gunicorns(signal.SIGTERM, None)

    threading.Thread(target=drain, name="modelyard-drain", daemon=True).start()
    signal.signal(signal.SIGTERM, handle)
    # signal.signal makes system calls end with EINTR; gunicorn had asked for the opposite.
    signal.siginterrupt(signal.SIGTERM, False)
