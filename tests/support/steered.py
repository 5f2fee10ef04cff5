"""An engine that tests steer from within the process: its start by parameters, its answers by the prompt."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from modelyard.engines.base import CancelEvent, Engine, ModelParams, OfTexts, Progress, Vectors
from modelyard.errors import Cancelled, PromptTooLong
from modelyard.settings.params import param
from modelyard.types import Burst, GenerateRequest, JSONObject, ModelMetadata, WorkerType
from modelyard.wire.messages import text_of_content

LIMIT = 30.0
_numbers = itertools.count(1)
PATH = "steered:Steered"

FAILURES: dict[str, Callable[[], BaseException]] = {
    "timeout": lambda: TimeoutError("the backend sleeps"),
    "network": lambda: ConnectionRefusedError("nobody listens"),
    "library": lambda: ModuleNotFoundError("No module named 'torch'"),
    "file": lambda: FileNotFoundError(2, "No such file", "weights.bin"),
    "other": lambda: RuntimeError("odd"),
    "memory": MemoryError,
    "exit": lambda: SystemExit(3),
}


@dataclass
class SteeredParams(ModelParams):
    """Parameters of `Steered`."""

    size: int = param(1, help="a number that may change", min=1, max=9)
    fail: str = param("", help="how the start fails", choices=["", *FAILURES])
    hold_start: bool = param(False, help="whether the start waits for `Steered.go`")
    token: str | None = param(None, help="a secret", tags=["privacy"])
    serial: str = param("s1", help="never changed", tags=["fixed"])
    images: bool = param(False, help="whether it takes images")


class Steered(Engine):
    """Answers with the words of its prompt; a few words have a meaning of their own (`generate_stream`)."""

    name = "steered"
    Params = SteeredParams
    worker_types: ClassVar[frozenset[WorkerType]] = frozenset(WorkerType)
    needs_weights = False
    made: ClassVar[list[Steered]] = []
    """Every instance since the last `reset`."""
    go: ClassVar[threading.Event] = threading.Event()
    """Lets starts that hold go on."""
    holding: ClassVar[int] = 0
    """Starts that hold, or held."""

    params: SteeredParams

    def __init__(self, params: Any, path: Path | None = None) -> None:
        super().__init__(params, path)
        self.starts = 0
        self.stops = 0
        self.number = 0
        """Of its last start, among all starts of all instances: another one after a restart."""
        self.generating = 0
        """Answers under way: what a cancelled one must bring down to zero."""
        Steered.made.append(self)

    @classmethod
    def reset(cls) -> None:
        cls.made = []
        cls.go = threading.Event()
        cls.holding = 0

    @classmethod
    def running(cls) -> list[Steered]:
        """Return the instances that were started and not stopped."""
        return [engine for engine in cls.made if engine.starts > engine.stops]

    def start(self, progress: Progress) -> None:
        progress("stretching")
        if self.params.hold_start:
            Steered.holding += 1
            assert self.go.wait(LIMIT)
        if self.params.fail:
            raise FAILURES[self.params.fail]()
        self.starts += 1
        self.number = next(_numbers)

    def stop(self) -> None:
        assert self.generating == 0, "stopped while it answers"
        self.stops += 1

    @property
    def takes_images(self) -> bool:
        return self.params.images

    def metadata(self) -> ModelMetadata:
        return ModelMetadata(
            self.params.registered_name, 128, metadata={"size": self.params.size, "start": self.number}
        )

    @property
    def options(self) -> frozenset[str]:
        return frozenset({"logprobs"})

    def generate_stream(self, request: GenerateRequest, cancel: CancelEvent) -> Iterator[Burst | None]:
        """Yield the words of the prompt, each a burst; with the option ``logprobs`` each with a delta that counts them.

        ``hold`` yields one piece and then waits for the cancel; ``silent`` waits at once; ``break`` fails after a
        piece, ``crash`` and ``refuse`` before one; ``usage`` tells one.
        """
        said = [message["content"] for message in request.messages]
        prompt = " ".join(map(text_of_content, said)) if request.uses_messages else request.prompt or ""
        self.generating += 1
        try:
            if prompt == "refuse":
                raise PromptTooLong("the prompt is too long")
            if prompt == "crash":
                raise RuntimeError("the inside of the engine")
            if prompt != "silent":
                for number, word in enumerate(prompt.split()):
                    deltas: list[JSONObject] = [{"logprobs": {"content": [number]}}]
                    yield Burst([f" {word}"], deltas=deltas if request.options.get("logprobs") else None)
            if prompt in ("hold", "silent"):
                assert cancel.wait(LIMIT)
                return
            if prompt == "break":
                raise RuntimeError("the inside of the engine")
            count = len(prompt.split())
            usage = {"prompt_tokens": count, "completion_tokens": count, "total_tokens": 2 * count}
            yield Burst([], "stop", usage, {"speed": 1.0} if request.metrics else None)
        finally:
            self.generating -= 1

    def embed(self, texts: Sequence[str], cancel: CancelEvent) -> Vectors:
        """Return the length of each text and 1; ``hold`` waits, ``break`` fails, ``cut`` counts as cut."""
        self._obey(texts, cancel)
        return OfTexts([[float(len(text)), 1.0] for text in texts], cut=list(texts).count("cut"))

    def rerank(self, query: str, texts: Sequence[str], cancel: CancelEvent) -> Sequence[float]:
        """Return how often each text has the query in it."""
        self._obey(texts, cancel)
        return [float(text.count(query)) for text in texts]

    def _obey(self, texts: Sequence[str], cancel: CancelEvent) -> None:
        self.generating += 1
        try:
            if "hold" in texts:
                assert cancel.wait(LIMIT)
                raise Cancelled("the client has gone")
            if "break" in texts:
                raise RuntimeError("the inside of the engine")
        finally:
            self.generating -= 1

    def count_token(self, prompt: str) -> int:
        if prompt == "break":
            raise RuntimeError("the inside of the engine")
        return len(prompt.split())


class AsyncSteered(Steered):
    """One that wants an event loop, which is refused."""

    async def generate_stream(self, request: GenerateRequest, cancel: CancelEvent) -> Any:  # type: ignore[override]
        yield Burst(["never"])


class AsyncStart(Steered):
    """One that starts asynchronously."""

    async def start(self, progress: Progress) -> None:  # type: ignore[override]
        pass


class NoEngine:
    """A class that is none."""


no_class = 5
