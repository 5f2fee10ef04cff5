"""Run the load generator in a process of its own, so that it shares no interpreter with the server that it measures."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from types import TracebackType

from .jobs import Job, Outcome
from .places import ROOT

GRACE = 30.0


class LoadFailed(Exception):
    """The generator gave no outcome: a server that refuses every request, or does not answer."""


class Running:
    """A job under way. Use it as a context manager: the process ends with it."""

    def __init__(self, job: Job) -> None:
        """Start the process."""
        self._job = job
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.load"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(job)))
        self._process.stdin.close()
        self._process.stdin = None

    def outcome(self) -> Outcome:
        """Wait for the end. Raises LoadFailed."""
        try:
            out, err = self._process.communicate(timeout=self._job.seconds + GRACE)
        except subprocess.TimeoutExpired as error:
            self.stop()
            raise LoadFailed(f"{self._job.path}: the load did not end in time") from error
        if self._process.returncode:
            raise LoadFailed(err.strip().splitlines()[-1] if err.strip() else "the load generator died")
        return Outcome.load(out)

    def stop(self) -> None:
        """End it now; its connections close."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self.stop()


def run(job: Job) -> Outcome:
    """Run ``job`` and return its outcome. Raises LoadFailed."""
    with Running(job) as running:
        return running.outcome()
