"""Check the state of sockets without reading from them, also under gevent's patches of `select`."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import select
import socket
import stat
import struct
import sys
import termios
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL
"""The events of poll for a socket whose other end has closed or shut down its side."""


HELD = "modelyard.held"
"""The key, in the environment of a request, of the list of sockets whose held writes leave when its answer has ended.

Absent under a server that does not say when that is.
"""


@cache
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


def hold_writes(sock: Any) -> bool:
    """Let what is written to ``sock`` wait for `send_held`, so that it leaves in one packet; return whether it waits.

    Only TCP can, and of Linux. The kernel waits for 200 ms at most.
    """
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    except (OSError, AttributeError):
        return False
    return True


def send_held(sock: Any) -> None:
    """Send what `hold_writes` has held back."""
    with contextlib.suppress(OSError):  # it is closed
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)


def is_quiet(fileno: int) -> bool:
    """Return whether the other end of a socket has neither closed it nor sent anything that is not read yet."""
    poll = original("poll")()
    poll.register(fileno, select.POLLIN | select.POLLRDHUP)
    return not poll.poll(0)


class TCPInfo(NamedTuple):
    """Facts of a TCP connection."""

    has_ended: bool
    """Whether this end has sent its FIN."""
    silence: float
    """Seconds since bytes came last; since the connection was made, where none came yet."""


_TCP_INFO_SIZE = 56
_LAST_DATA_RECEIVED = 52
"""The place of ``tcpi_last_data_recv``, milliseconds, in Linux's ``struct tcp_info``; its first byte is the state."""
_ENDED_STATES = (4, 5, 11)
"""FIN_WAIT1, FIN_WAIT2 and CLOSING."""


def tcp_info(sock: socket.socket) -> TCPInfo | None:
    """Return the facts of a TCP connection; None for another socket."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    data = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
    (milliseconds,) = struct.unpack_from("I", data, _LAST_DATA_RECEIVED)
    return TCPInfo(data[0] in _ENDED_STATES, milliseconds / 1000)


def has_unread(sock: socket.socket) -> bool:
    """Return whether bytes have come that nobody has read yet."""
    count = array.array("i", [0])
    fcntl.ioctl(sock.fileno(), termios.FIONREAD, count)
    return count[0] > 0


def is_listening(sock: socket.socket) -> bool:
    """Return whether connections are accepted from a socket."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def open_sockets(without: Collection[int] = ()) -> Iterator[tuple[int, socket.socket]]:
    """Yield the inode of each socket that this process has open, and a duplicate of it, closed afterwards.

    Inodes in ``without`` are left out. A duplicate is the same connection: it can be shut down while another thread
    reads from the original or closes it. Raises OSError if the open files can't be listed.
    """
    for file in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            number = int(file.name)
            info = os.fstat(number)
            if not stat.S_ISSOCK(info.st_mode) or info.st_ino in without:
                continue
            with socket.socket(fileno=os.dup(number)) as sock:
                yield os.fstat(sock.fileno()).st_ino, sock


def listening_addresses() -> list[tuple[str, int] | str]:
    """Return the addresses that this process listens on: host and port, or the path of a unix socket."""
    addresses: list[tuple[str, int] | str] = []
    for _, sock in open_sockets():
        if is_listening(sock):
            name = sock.getsockname()
            addresses.append((str(name[0]), int(name[1])) if isinstance(name, tuple) else os.fsdecode(name))
    return addresses
