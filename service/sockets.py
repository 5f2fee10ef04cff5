"""Check the state of a connected socket without reading from it, also under gevent's patches of `select`."""

from __future__ import annotations

import select
import sys
from typing import Any

GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL
"""The events of poll for a socket whose other end has closed or shut down its side."""


def original(name: str) -> Any:
    """Return ``select.NAME`` as it was before gevent patched it; None if it does not exist."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("select"):
        return monkey.get_original("select", name)
    return getattr(select, name, None)


def is_patched() -> bool:
    """Return whether gevent has patched `select`."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("select"))


def has_gone(fileno: int) -> bool:
    """Return whether the client at the other end of a socket has closed or shut down its side."""
    poll = original("poll")()
    poll.register(fileno, select.POLLIN | select.POLLRDHUP)
    return any(event & GONE for _, event in poll.poll(0))


def is_quiet(fileno: int) -> bool:
    """Return whether the other end of a socket has neither closed it nor sent anything that is not read yet."""
    poll = original("poll")()
    poll.register(fileno, select.POLLIN | select.POLLRDHUP)
    return not poll.poll(0)


def wait_readable(fileno: int, seconds: float) -> bool:
    """Return whether a socket has something to read, or has ended; wait ``seconds`` at most until it has."""
    poll = original("poll")()
    poll.register(fileno, select.POLLIN)
    if not is_patched():
        return bool(poll.poll(seconds * 1000))
    if poll.poll(0):
        return True
    # gevent's poll costs twenty times as much, so it is used only for a wait.
    patched = select.poll()
    patched.register(fileno, select.POLLIN)
    return bool(patched.poll(seconds * 1000))
