"""The durations and repetitions of a run."""

from __future__ import annotations

from dataclasses import dataclass

from .gateways import PEERS, Gateway
from .peer import Peer


@dataclass(frozen=True)
class Plan:
    """Numbers of one run; times are seconds."""

    rounds: int = 5
    """Measurements of each side, in turns; the median counts."""
    seconds: float = 2.0
    """The duration of a closed loop."""
    clients: tuple[int, ...] = (1, 8, 32)
    paced: tuple[int, ...] = (8, 64, 200)
    paced_pieces: int = 60
    paced_rounds: int = 3
    pairs: int = 5
    """Measurements of SmolLM2 through HTTP and without."""
    tokens: int = 128
    """Tokens of one answer of SmolLM2."""
    overload_seconds: float = 8.0
    overload_rounds: int = 3
    probes: float = 6.0
    """Seconds of requests to a busy server."""
    requests: int = 20_000
    """Requests after which memory must not have grown."""
    recoveries: int = 3
    agents: int = 2
    """Conversations of an agent on each side."""
    peer: Peer | None = Peer()
    """The other side; None measures ours alone, without ratios."""
    gateways: tuple[Gateway, ...] = PEERS
    """The gateways beside ours."""
    gateway_rounds: int = 3
    gateway_seconds: float = 1.5


FULL = Plan()
QUICK = Plan(
    rounds=3,
    seconds=0.8,
    paced_pieces=30,
    paced_rounds=1,
    pairs=3,
    tokens=64,
    overload_seconds=4.0,
    overload_rounds=1,
    probes=3.0,
    recoveries=1,
    agents=1,
    gateway_rounds=1,
)
