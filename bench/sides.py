"""Run both servers of a figure at the same time: the one that is not measured is idle."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from . import ours
from .models import EchoModel
from .peer import Peer
from .processes import Server


@contextlib.contextmanager
def both(models: Sequence[EchoModel], peer: Peer | None) -> Iterator[tuple[Server, Server | None]]:
    """Run our server and, if given, the peer with the same ``models``."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(ours.serving(models))
        other = stack.enter_context(peer.serving(models)) if peer else None
        yield server, other
