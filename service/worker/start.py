"""The start of an engine within a time limit, and what its failure means."""

from __future__ import annotations

import logging
import socket
import threading

import requests

from ..engines.base import Engine, Progress
from ..errors import BadModelFile, MissingLibrary, ModelyardError, NetworkFailure, StartFailed, StartTimeout
from ..threads import start_thread

log = logging.getLogger(__name__)


def start_in_time(engine: Engine, progress: Progress, name: str, timeout: float) -> bool:
    """Start ``engine`` in a thread of its own; return False if that takes longer than ``timeout`` seconds.

    A late engine is stopped as soon as its start ends; it must not be used again. Raises the errors of the engine.
    """
    ended = threading.Event()
    failures: list[BaseException] = []
    deciding, given_up = threading.Lock(), False

    def run() -> None:
        try:
            engine.start(progress)
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
            failures.append(error)
        with deciding:
            ended.set()
        if given_up and not failures:
            try:
                engine.stop()
            except Exception:
                log.exception("model %s started too late, and its engine did not stop in order", name)

    start_thread(threading.Thread(target=run, name=f"start-{name}", daemon=True))
    ended.wait(timeout)
    with deciding:
        given_up = not ended.is_set()
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
