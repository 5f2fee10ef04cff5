"""Loads of chat for any gateway, and for the backend without one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ..client import LoadFailed, run
from ..jobs import Job, Outcome
from ..peer.environment import PeerMissing
from ..processes import Server, ServerFailed
from . import CHAT_PATH, Gateway, Ours, mock_backend
from .backend import EVENTS, MODEL, PIECES

_END_OF_EVENT = "\n\n"
_PROMPT = "Name the planets of the solar system, nearest first. "


def chat(way: str = EVENTS, *, stream: bool = False, prompt_bytes: int = 0) -> Job:
    """Return a load of one client, whose prompt has some ``prompt_bytes``; ``way`` is how the backend streams."""
    prompt = f"{way} " + _PROMPT * max(1, prompt_bytes // len(_PROMPT))
    body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "stream": stream}
    return Job(port=0, path=CHAT_PATH, body=body, mark=_END_OF_EVENT)


@dataclass(frozen=True)
class Side:
    """A server that answers chat: a gateway, or the backend itself."""

    server: Server
    headers: Mapping[str, str]

    def check(self) -> None:
        """Raise LoadFailed unless it gives a whole answer, at once and as a stream."""
        for stream in (False, True):
            outcome = self.measure(replace(chat(stream=stream), answers=1, seconds=10.0))
            if outcome.bytes_per_answer < PIECES * len(" token"):
                raise LoadFailed(f"{self.server.name} does not answer as it should: {outcome}")

    def measure(self, job: Job) -> Outcome:
        """Run ``job``. Raises LoadFailed if a request fails."""
        outcome = run(replace(job, port=self.server.port, headers=dict(self.headers)))
        if outcome.failed or outcome.refused or not (outcome.ok or outcome.pieces):
            counts = f"{outcome.ok} answers, {outcome.failed} failed, {outcome.refused} refused"
            raise LoadFailed(f"{self.server.name}: {counts}")
        return outcome

    def measured(self, job: Job) -> Callable[[], Outcome]:
        """Return a function that runs ``job``."""
        return lambda: self.measure(job)


@contextlib.contextmanager
def sides(peers: Sequence[Gateway], report: Callable[[str], object]) -> Iterator[dict[str, Side]]:
    """Run the mock backend, our gateway and ``peers`` before it, by their names; ``backend`` is the mock itself.

    A peer that does not start, or does not answer, is left out, with a ``report``.
    """
    with contextlib.ExitStack() as stack:
        backend = stack.enter_context(mock_backend())
        ours = Side(stack.enter_context(Ours().serving(backend.port)), {})
        running = {"backend": Side(backend, {}), Ours.name: ours}
        for side in running.values():
            side.check()
        for peer in peers:
            try:
                side = Side(stack.enter_context(peer.serving(backend.port)), peer.headers(backend.port))
                side.check()
            except (LoadFailed, ServerFailed, PeerMissing) as error:
                report(f"{peer.name} is left out: {error}")
            else:
                running[peer.name] = side
        yield running
