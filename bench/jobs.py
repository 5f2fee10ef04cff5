"""The task of the load generator, and its result: plain values that pass a pipe as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(kw_only=True)
class Job:
    """One load. Times are seconds.

    Closed loop: each of ``connections`` sends its next request when its answer has ended, until ``seconds`` are over
    or it has ``answers``. With a ``rate``, so many requests are sent each second instead, on at most ``connections``
    at once, whether they are answered or not.
    """

    port: int
    path: str
    body: Any = None
    """Sent as JSON by POST; None is a GET."""
    accept: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    """Headers that are sent in addition."""
    mark: str = "\0"
    """What ends a piece: a NUL byte, or an empty line for server-sent events."""
    connections: int = 1
    seconds: float = 1.0
    """The longest duration of the job."""
    answers: int = 0
    """The answers of each connection; 0: no limit."""
    rate: float = 0.0
    spread: float = 0.0
    """Seconds over which the connections of a closed loop begin, one after the other."""
    deadline: float = 0.0
    """Seconds after which an answer is abandoned, and its connection closed; 0: none."""
    gaps: bool = False
    """Whether the time between two arrivals of pieces in one answer is noted."""
    tokens: bool = False
    """Whether ``usage.completion_tokens`` of each answer's last piece is added up."""
    content: bool = False
    """Whether a piece counts as the first only once an answer has content, as OpenAI's deltas do; needs ``tokens``."""
    keep: bool = True
    """Whether connections are used again; else each request has its own, with ``Connection: close``."""

    def request(self) -> bytes:
        """Return the bytes of one request."""
        body = b"" if self.body is None else json.dumps(self.body).encode()
        lines = [
            f"{'GET' if self.body is None else 'POST'} {self.path} HTTP/1.1",
            f"Host: 127.0.0.1:{self.port}",
            *([f"Accept: {self.accept}"] if self.accept else []),
            *(f"{name}: {value}" for name, value in self.headers.items()),
            *([] if self.keep else ["Connection: close"]),
            *(["Content-Type: application/json", f"Content-Length: {len(body)}"] if body else []),
        ]
        return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass
class Spread:
    """Percentiles of durations, in seconds; all 0 without any duration."""

    count: int = 0
    p50: float = 0.0
    p99: float = 0.0
    most: float = 0.0

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the percentiles of ``values``, by the nearest rank."""
        if not values:
            return cls()
        ordered = sorted(values)
        last = len(ordered) - 1
        return cls(len(ordered), ordered[round(0.5 * last)], ordered[round(0.99 * last)], ordered[-1])


@dataclass
class Outcome:
    """The result of a `Job`. Requests that were running at its end count in ``pieces`` and ``received`` only."""

    seconds: float = 0.0
    """From the first request to the end of the last answer, or of the time given."""
    ok: int = 0
    refused: int = 0
    """Answers with status 503."""
    failed: int = 0
    """Other statuses, and connections that broke."""
    late: int = 0
    unsent: int = 0
    """Requests of a rate for which no connection was left."""
    pieces: int = 0
    received: int = 0
    tokens: int = 0
    latency: Spread = field(default_factory=Spread)
    """Of whole answers that were ok."""
    first: Spread = field(default_factory=Spread)
    """To the first byte, of the same."""
    first_piece: Spread = field(default_factory=Spread)
    """To the first piece, of those that have pieces."""
    gaps: Spread = field(default_factory=Spread)

    @property
    def per_second(self) -> float:
        """Answers that were ok, a second."""
        return self.ok / self.seconds if self.seconds else 0.0

    @property
    def pieces_per_second(self) -> float:
        """Pieces a second, those of unfinished answers included."""
        return self.pieces / self.seconds if self.seconds else 0.0

    @property
    def bytes_per_answer(self) -> float:
        """Bytes received for each answer that was ok, heads included."""
        return self.received / self.ok if self.ok else 0.0

    def dump(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> Outcome:
        """Return what `dump` gave."""
        values = json.loads(text)
        for name in ("latency", "first", "first_piece", "gaps"):
            values[name] = Spread(**values[name])
        return cls(**values)
