"""A data-plane call: the thread of the budget that it holds, its client, and its place in the limits of a key."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from flask import Request

from ...errors import Cancelled, EngineError, WorkerLost
from ...sockets import hold_writes, send_held
from ...streams import Cancel
from ...worker.protocol import ClientOfServer, Permit, Service
from .access_log import AccessLine, current_line
from .keys import prompt_tokens, reserved_tokens

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_HAS_BEGUN = (EngineError, WorkerLost, Cancelled)
"""Errors that come when a model may have computed something."""


class Call:
    """Holds a thread of the budget and watches the client, until it is closed.

    The constructor raises Overloaded, Draining or NotReady.
    """

    __slots__ = (
        *("_client", "_closed", "_is_holding", "_permit", "_prompt", "_service", "_sock", "_timed", "_used"),
        *("cancel", "line"),
    )

    def __init__(self, service: Service, line: AccessLine) -> None:
        """Begin the call of the request of ``line``."""
        service.check_open()
        service.budget.enter()
        self._service = service
        self.line = line
        self._closed = False
        self._timed = False
        self._is_holding = False
        self._permit: Permit | None = None
        self._prompt = 0
        self._used: Callable[[], int | None] = lambda: None
        self.cancel = Cancel()
        service.requests.add(self.cancel)
        self._sock = socket_of(line.request)
        self._client = _client_of(line.request.environ, self._sock)
        if self._client is not None:
            try:
                service.watcher.watch(self._client, self.cancel.set)
            except BaseException:  # its thread can't be started
                self.close()
                raise

    def note_queue(self) -> None:
        """Write down how long the request stood in line, and where it was sent."""
        self.line.queued = self.cancel.queued
        self.line.instance = self.cancel.instance

    def admit(
        self, characters: int, answers: Sequence[int | None] = (), used: Callable[[], int | None] = lambda: None
    ) -> None:
        """Take a request from the limits of the client's API key, if it has any. Raises RateLimited.

        The tokens are those of a prompt of so many ``characters``, and of ``answers``, each with its limit of tokens.
        At the end those count that ``used`` returns; where it returns None, the prompt and the pieces of the answer.
        """
        key, keys = self.line.api_key, self._service.keys
        if key is None or keys is None or not key.limits:
            return
        self._prompt = prompt_tokens(characters)
        self._used = used
        self._permit = keys.admit(key, reserved_tokens(key, self._prompt, answers))

    def count(self, tokens: int | None) -> None:
        """Note the tokens that a whole answer has used; None: not known."""
        self._used = lambda: tokens

    def finish(self, error: BaseException | None = None) -> None:
        """Give back what was taken from the limits of the key: the model has ended. A second call does nothing.

        No tokens count if an ``error`` came before a model had begun.
        """
        permit, self._permit = self._permit, None
        if permit is None:
            return
        used = self._used() if error is None or isinstance(error, _HAS_BEGUN) else 0
        if used is None:
            used = self._prompt + (self.line.pieces or 0)
        permit.close(used)

    def bound_writes(self, seconds: float) -> None:
        """Limit each write to the client to ``seconds``."""
        if self._sock is not None:
            self._timed = bound_writes(self._sock, seconds)

    def hold_writes(self) -> None:
        """Let writes to the client wait for `send_held`."""
        self._is_holding = hold_writes(self._sock)

    def send_held(self) -> None:
        """Send what `hold_writes` has held back."""
        if self._is_holding:
            self._is_holding = False
            send_held(self._sock)

    def close(self, error: BaseException | None = None) -> None:
        """Release the socket, the thread and the place of the key; a second call does nothing.

        ``error`` is what ended the call before an answer.
        """
        if self._closed:
            return
        self._closed = True
        self.send_held()
        self.note_queue()
        try:
            self.finish(error)
        finally:
            if self._timed:
                self._sock.settimeout(None)
            if self._client is not None:
                self._service.watcher.unwatch(self._client)
            self._service.requests.discard(self.cancel)
            self._service.budget.leave()


@contextlib.contextmanager
def called(service: Service) -> Iterator[Call]:
    """Give the call of the current request, for a body that computes its whole answer, and close it."""
    call = Call(service, current_line())
    try:
        yield call
    except BaseException as error:
        call.close(error)
        raise
    call.close()


def socket_of(request: Request) -> Any:
    """Return the socket of a request's client, where the server gives it; else None."""
    return request.environ.get("gunicorn.socket") or request.environ.get("werkzeug.socket")


def bound_writes(sock: Any, seconds: float) -> bool:
    """Limit each write to a client to ``seconds``; return whether its socket has to lose its timeout in the end."""
    with contextlib.suppress(OSError, AttributeError):
        if os.get_blocking(sock.fileno()):
            # The kernel's limit: a timeout of Python's socket would cost a poll for each write.
            timeval = struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
        else:
            # gevent waits in its hub, where the kernel's limit has no effect.
            sock.settimeout(seconds)
            return True
    return False


def _client_of(environ: WSGIEnvironment, sock: Any) -> ClientOfServer | None:
    """Return how the watcher sees the client: as the number of its socket, or as the server's function that tells.

    None if the server offers neither.
    """
    if sock is not None:
        fileno = int(sock.fileno())
        return fileno if fileno >= 0 else None
    if "uwsgi.version" in environ:
        return int(sys.modules["uwsgi"].connection_fd())
    is_gone: Callable[[], bool] | None = environ.get("waitress.client_disconnected")
    return is_gone
