"""The load generator, a process of its own: ``python -m bench.load`` reads a `Job` and prints an `Outcome`.

One thread, raw sockets in an epoll, connections reused: about 25 microseconds a request, the same for every server.
"""

from __future__ import annotations

import gc
import json
import re
import select
import socket
import sys
import time
from collections import deque

from .answers import Answer, BrokenAnswer
from .jobs import Job, Outcome, Spread

READ = 262_144
MANY_FAILURES = 500
PAUSE_AFTER_FAILURE = 0.02
_CONTENT = re.compile(rb'"content": ?"[^"]')


class Connection:
    """A kept connection and the answer it waits for, if any."""

    def __init__(self, port: int) -> None:
        """Connect to the loopback."""
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=5)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setblocking(False)
        self.fd = self.sock.fileno()
        self.answer: Answer | None = None
        self.sent = self.first = self.piece = self.last = 0.0
        self.left = 0


class Load:
    """Runs one job to its end."""

    def __init__(self, job: Job) -> None:
        """Prepare; nothing is connected yet."""
        self._job = job
        self._request = job.request()
        self._mark = job.mark.encode()
        self._epoll = select.epoll()
        self._open: dict[int, Connection] = {}
        self._free: list[Connection] = []
        self._due: deque[tuple[float, int]] = deque()
        """When a connection of a closed loop begins (again), and how many answers it still wants."""
        self._running: deque[tuple[float, Connection]] = deque()
        """What was sent when, for deadlines; what was answered since is skipped."""
        self._outcome = Outcome()
        self._latencies: list[float] = []
        self._firsts: list[float] = []
        self._first_pieces: list[float] = []
        self._gaps: list[float] = []

    def run(self) -> Outcome:
        """Load until the job's bound, close everything, and return what became of it."""
        job, began = self._job, time.monotonic()
        end, next_arrival = began + job.seconds, began
        if not job.rate:
            step = job.spread / job.connections
            self._due.extend((began + number * step, job.answers) for number in range(job.connections))
        now = began
        while now < end and (job.rate or self._due or len(self._free) < len(self._open)):
            while job.rate and next_arrival <= now:
                self._arrive(now)
                next_arrival += 1 / job.rate
            while self._due and self._due[0][0] <= now:
                self._begin(now, self._due.popleft()[1])
            self._give_up_late(now)
            wake = min(end, next_arrival if job.rate else end, self._due[0][0] if self._due else end, now + 0.1)
            for fd, _ in self._epoll.poll(max(0.0, wake - now)):
                self._receive(self._open[fd])
            now = time.monotonic()
        for connection in list(self._open.values()):
            self._close(connection)
        self._outcome.seconds = now - began
        self._outcome.latency = Spread.of(self._latencies)
        self._outcome.first = Spread.of(self._firsts)
        self._outcome.first_piece = Spread.of(self._first_pieces)
        self._outcome.gaps = Spread.of(self._gaps)
        return self._outcome

    def _arrive(self, now: float) -> None:
        if self._free:
            self._send(self._free.pop())
        elif len(self._open) < self._job.connections:
            self._begin(now, 1)
        else:
            self._outcome.unsent += 1

    def _begin(self, now: float, answers: int) -> None:
        try:
            connection = Connection(self._job.port)
        except OSError:
            self._fail(now, answers)
            return
        connection.left = answers
        self._open[connection.fd] = connection
        self._epoll.register(connection.fd, select.EPOLLIN)
        self._send(connection)

    def _send(self, connection: Connection) -> None:
        connection.answer = Answer(self._job.tokens, self._mark)
        connection.sent = time.monotonic()
        connection.first = connection.piece = connection.last = 0.0
        if self._job.deadline:
            self._running.append((connection.sent, connection))
        try:
            connection.sock.sendall(self._request)
        except OSError:
            self._broke(connection)

    def _receive(self, connection: Connection) -> None:
        try:
            data = connection.sock.recv(READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        now = time.monotonic()
        answer = connection.answer
        if answer is None or not data:
            self._broke(connection)
            return
        connection.first = connection.first or now
        try:
            pieces = answer.feed(data)
        except BrokenAnswer:
            self._broke(connection)
            return
        self._outcome.received += len(data)
        if pieces:
            self._outcome.pieces += pieces
            if not connection.piece and (not self._job.content or _CONTENT.search(b"".join(answer.body))):
                connection.piece = now
            if self._job.gaps:
                if connection.last:
                    self._gaps.append(now - connection.last)
                connection.last = now
        if answer.done:
            self._ended(connection, answer, now)

    def _ended(self, connection: Connection, answer: Answer, now: float) -> None:
        outcome, job = self._outcome, self._job
        connection.answer = None
        if answer.status == 200:
            outcome.ok += 1
            self._latencies.append(now - connection.sent)
            self._firsts.append(connection.first - connection.sent)
            if connection.piece:
                self._first_pieces.append(connection.piece - connection.sent)
            outcome.tokens += _tokens(answer) if job.tokens else 0
        elif answer.status == 503:
            outcome.refused += 1
        else:
            outcome.failed += 1
        if answer.closes:
            self._close(connection)
        if not job.rate:
            if job.answers and connection.left <= 1:
                self._close(connection)
            elif answer.closes or answer.status != 200:
                self._close(connection)
                self._due.append((now + PAUSE_AFTER_FAILURE, connection.left - 1))
            else:
                connection.left -= 1
                self._send(connection)
        elif not answer.closes:
            self._free.append(connection)

    def _broke(self, connection: Connection) -> None:
        waited = connection.answer is not None
        self._close(connection)
        if waited:
            self._fail(time.monotonic(), connection.left)

    def _fail(self, now: float, answers: int) -> None:
        self._outcome.failed += 1
        if self._outcome.failed > MANY_FAILURES:
            raise SystemExit(f"{self._job.path}: {self._outcome.failed} requests failed")
        if not self._job.rate:
            self._due.append((now + PAUSE_AFTER_FAILURE, answers))

    def _give_up_late(self, now: float) -> None:
        while self._running and self._running[0][0] + self._job.deadline <= now:
            sent, connection = self._running.popleft()
            if connection.answer is not None and connection.sent == sent:
                self._outcome.late += 1
                self._close(connection)

    def _close(self, connection: Connection) -> None:
        connection.answer = None
        if connection in self._free:
            self._free.remove(connection)
        if self._open.pop(connection.fd, None) is not None:
            self._epoll.unregister(connection.fd)
            connection.sock.close()


def _tokens(answer: Answer) -> int:
    """Return the completion tokens of the last piece, or server-sent event, that has a usage."""
    body = b"".join(answer.body)
    events = [event.removeprefix(b"data: ") for event in body.split(b"\n\n")] if body[:1] != b"{" else []
    pieces = [event for event in events if event.startswith(b"{")] or [body.rstrip(b"\0").rsplit(b"\0", 1)[-1]]
    usages = (json.loads(piece).get("usage") for piece in reversed(pieces))
    return int(next((usage["completion_tokens"] for usage in usages if usage), 0))


def main() -> None:
    """Read a job from standard input, run it, print its outcome."""
    job = Job(**json.load(sys.stdin))
    gc.disable()
    sys.stdout.write(Load(job).run().dump())


if __name__ == "__main__":
    main()
