"""scripted: an engine that does what the prompt says, and keeps a journal of what it did, for tests to read."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from modelyard.engines.base import CancelEvent, Engine, ModelParams, Progress, Vectors
from modelyard.settings.params import param
from modelyard.types import Burst, GenerateRequest, WorkerType


@dataclass
class ScriptedParams(ModelParams):
    """Parameters of `Scripted`."""

    journal: str | None = param(None, help="file that gets a line for everything it does")
    start_when: str | None = param(None, help="the start waits until this file is there")
    die_while: str | None = param(None, help="the start kills the process while this file is there")
    fail_while: str | None = param(None, help="the start raises while this file is there")
    flavour: str = param("plain", help="nothing but a parameter that may change")
    secret: str = param("", help="nothing but a parameter that nobody may see", tags=["privacy"])


class Scripted(Engine):
    """Follows the prompt, which is JSON: ``name``, ``pieces``, ``size`` and ``fail_at``, and what it waits for.

    It waits ``before`` the first piece and before ``each``, computes for ``burn`` seconds without waiting, and takes
    ``megabytes`` of memory for a moment. With ``abort`` it ends the process as a failed check of C does.
    The last piece comes when the file ``until`` is there. A burst has ``at_once`` pieces.
    """

    name = "scripted"
    Params = ScriptedParams
    worker_types: ClassVar[frozenset[WorkerType]] = frozenset(WorkerType)
    needs_weights = False
    ticks = True

    params: ScriptedParams

    def start(self, progress: Progress) -> None:
        self._note("start", os.getpid())
        progress("reading the script")
        if _is_there(self.params.die_while):
            os.kill(os.getpid(), signal.SIGKILL)
        if _is_there(self.params.fail_while):
            raise RuntimeError("the script says so")
        while self.params.start_when and not _is_there(self.params.start_when):
            time.sleep(0.02)

    def stop(self) -> None:
        self._note("stop", os.getpid())

    def generate_stream(self, request: GenerateRequest, cancel: CancelEvent) -> Iterator[Burst | None]:
        plan = _plan(request.prompt or request.messages[-1]["content"])
        name, pieces = plan.get("name", "?"), plan.get("pieces", request.max_new_tokens or 1)
        self._note("begin", name)
        bytes(plan.get("megabytes", 0) * 1_000_000)
        if plan.get("abort"):
            os.abort()
        computed = 0
        try:
            yield from _pause(plan.get("before", 0), cancel)
            for number in range(pieces):
                yield from _pause(plan.get("each", 0), cancel)
                if number == pieces - 1:
                    yield from _wait_for(plan.get("until"), cancel)
                _burn(plan.get("burn", 0))
                if cancel.is_set():
                    return
                if number == plan.get("fail_at"):
                    raise RuntimeError("the script says so")
                computed += 1
                self._note("piece", name)
                yield Burst(["x" * plan.get("size", 1)] * plan.get("at_once", 1))
            usage = {"prompt_tokens": 1, "completion_tokens": computed, "total_tokens": computed + 1}
            yield Burst([], "stop", usage)
        finally:
            self._note("end", name, computed)

    def embed(self, texts: Sequence[str], cancel: CancelEvent) -> Vectors:
        plan = _plan(texts[0])
        self._note("begin", plan.get("name", "?"))
        for _ in _pause(plan.get("before", 0), cancel):
            pass
        if plan.get("fail_at") is not None:
            raise RuntimeError("the script says so")
        self._note("cancelled" if cancel.is_set() else "computed", plan.get("name", "?"))
        return [[1.0, 0.0] for _ in texts]

    def count_token(self, prompt: str) -> int:
        return len(prompt)

    def _note(self, *words: object) -> None:
        if self.params.journal is not None:
            with Path(self.params.journal).open("a") as file:
                file.write(" ".join(map(str, words)) + "\n")


class Blocking(Scripted):
    """The same, but it yields nothing while it has nothing: a thread of its own drives it."""

    ticks = False

    def generate_stream(self, request: GenerateRequest, cancel: CancelEvent) -> Iterator[Burst | None]:
        return (burst for burst in super().generate_stream(request, cancel) if burst is not None)


class Stubborn(Scripted):
    """Its start never ends."""

    def start(self, progress: Progress) -> None:
        progress("thinking")
        threading.Event().wait()


def _plan(text: str) -> dict[str, Any]:
    try:
        plan = json.loads(text)
    except ValueError:
        return {}
    return plan if isinstance(plan, dict) else {}


def _pause(seconds: float, cancel: CancelEvent) -> Iterator[None]:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not cancel.wait(min(left, 0.1)):
        yield None


def _wait_for(path: str | None, cancel: CancelEvent) -> Iterator[None]:
    while path is not None and not _is_there(path) and not cancel.wait(0.02):
        yield None


def _burn(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def _is_there(path: str | None) -> bool:
    return path is not None and Path(path).exists()
