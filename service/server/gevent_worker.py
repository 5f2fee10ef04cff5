"""A gevent worker for gunicorn that ends when its last answer has, and not when the last kept connection does."""

from __future__ import annotations

from types import FrameType, TracebackType
from typing import Any

import gevent
from gunicorn.workers import ggevent


class GeventWorker(ggevent.GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's ``worker_class`` for gateways and controllers: a greenlet a connection."""

    def init_process(self) -> None:
        """Make what the greenlets share, in the worker process."""
        self._idle: dict[_Idle, Any] = {}
        super().init_process()

    def timeout_ctx(self) -> _Idle:
        """Bound the wait of a connection for its next request."""
        return _Idle(self.cfg.keepalive if self.alive else 0.001, self._idle)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End: requests that have come are answered, connections without one are closed."""
        super().handle_exit(sig, frame)
        for timeout, greenlet in list(self._idle.items()):
            gevent.kill(greenlet, timeout)


class _Idle(gevent.Timeout):  # type: ignore[misc]  # gevent's are incomplete
    """A wait that ends silently, in time or when it is thrown into its greenlet."""

    def __init__(self, seconds: float, among: dict[_Idle, Any]) -> None:
        super().__init__(seconds, False)
        self._among = among

    def __enter__(self) -> _Idle:
        self._among[self] = gevent.getcurrent()
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._among.pop(self, None)
        found: bool | None = super().__exit__(kind, error, trace)
        return found
