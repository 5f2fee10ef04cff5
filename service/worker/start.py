"""The start of an engine within a time limit, and what its failure means."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable

import requests

from ..engines.base import Engine, Progress
from ..errors import BadModelFile, MissingLibrary, ModelyardError, NetworkFailure, StartFailed, StartTimeout
from ..streams import Cancel
from ..threads import start_thread

log = logging.getLogger(__name__)


def start_in_time(
    engine: Engine, progress: Progress, name: str, *, timeout: float, cancel: Cancel, when_gone: Callable[[], None]
) -> bool:
    """Start ``engine`` in a thread of its own; return False if it takes over ``timeout`` seconds, or is cancelled.

    Such a late engine is told by `Engine.give_up`, and stopped as soon as its start ends; then ``when_gone`` is called.
    It must not be used again. Raises the errors of the engine.
    """
    decided = threading.Event()
    failures: list[BaseException] = []
    deciding, has_ended, given_up = threading.Lock(), False, False

    def run() -> None:
        nonlocal has_ended
        try:
            engine.start(progress)
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
            failures.append(error)
        with deciding:
            has_ended = True
            decided.set()
        if not given_up:
            return
        try:
            if not failures:
                engine.stop()
        except Exception:
            log.exception("model %s started too late, and its engine did not stop in order", name)
        finally:
            when_gone()

    start_thread(threading.Thread(target=run, name=f"start-{name}", daemon=True))
    cancel.on_set(decided.set)
    decided.wait(timeout)
    cancel.forget(decided.set)
    with deciding:
        given_up = not has_ended
    if given_up:
        engine.give_up()
    if failures and not given_up:
        raise failures[0]
    return not given_up


def start_error(error: BaseException, model: str) -> ModelyardError:
    """Return our error for a failed start of ``model``; an error that is ours already is returned as it is."""
    if isinstance(error, ModelyardError):
        return error
    subject = f"model {model!r} did not start"
    if isinstance(error, ImportError):
        return MissingLibrary(f"{subject}: {error}; install the library, or the extra that brings it")
    if isinstance(error, requests.RequestException | ConnectionError | socket.gaierror):
        return NetworkFailure(f"{subject}: the network failed: {error}")
    if isinstance(error, TimeoutError):
        return StartTimeout(f"{subject}: {str(error) or 'a time limit passed'}")
    if isinstance(error, OSError):
        return BadModelFile(f"{subject}: {error}")
    if isinstance(error, MemoryError):
        return StartFailed(f"{subject}: not enough memory")
    return StartFailed(f"{subject}: {type(error).__name__}: {error}")
