"""scripted: an engine that says what a test told it to say, and remembers what it was asked. See docs/testing.md.

It is in no table of engines and no service offers it: `modelyard.testing` puts it in the place of others.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ..errors import EngineError, ModelyardError, Overloaded
from ..settings.params import param
from ..types import Burst, GenerateRequest, JSONObject, WorkerType
from ..wire.messages import text_of_content
from .base import CancelEvent, Vectors
from .echo import Echo, EchoParams

TICK = 0.2


@dataclass
class Asked:
    """One call of a model, as it came."""

    call: str
    """``generate``, ``embeddings`` or ``rerank``."""
    model: str
    prompt: str = ""
    """What the user said last, or the raw prompt; of `rerank` the query."""
    texts: list[str] = field(default_factory=list)
    """What is to be embedded or ranked."""
    request: GenerateRequest | None = None
    """All of it, where text is generated: messages, max_new_tokens, temperature ..."""
    cancelled: bool = False
    """Whether the answer was given up before its end: the client hung up, or closed the stream."""
    ended: threading.Event = field(default_factory=threading.Event)
    """Set when the answer is over, one way or the other."""


@dataclass
class _Step:
    pieces: tuple[str, ...] = ()
    delay: float = 0.0
    finish_reason: str = "stop"
    holds: bool = False
    error: ModelyardError | None = None

    @property
    def is_for_vectors(self) -> bool:
        return self.error is not None and not self.pieces


class Answers:
    """What the models say next, and what they were asked. Each call takes one step of the script, in order.

    Without a step a model repeats what the user said last (`otherwise` changes that), and embeds like ``echo``.
    """

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        """Every call that reached a model, in order; what was refused before is not among them."""
        self._otherwise: Callable[[Asked], str] = lambda asked: asked.prompt
        self._steps: deque[_Step] = deque()
        self._lock = threading.Lock()
        self._released = threading.Event()
        self.key = f"{id(self):x}"
        _scripts[self.key] = self

    @property
    def prompts(self) -> list[str]:
        """What users said last, call by call."""
        return [asked.prompt for asked in self.asked if asked.call == "generate"]

    def say(self, *pieces: str, delay: float = 0.0, finish_reason: str = "stop") -> None:
        """Answer the next call with these pieces of text, each after ``delay`` seconds."""
        self._add(_Step(pieces, delay, finish_reason))

    def hold(self, *pieces: str) -> None:
        """Say these pieces, and end only when the client goes, or after `release`."""
        self._add(_Step(pieces, holds=True))

    def fail(self, error: str | ModelyardError = "the engine broke", *pieces: str) -> None:
        """Fail the next call, of whatever kind, as an engine does that breaks; text may break off after ``pieces``."""
        self._add(_Step(pieces, error=EngineError(error) if isinstance(error, str) else error))

    def refuse(self, retry_after: int = 1) -> None:
        """Refuse the next call, of whatever kind: 503, all slots are busy."""
        self._add(_Step(error=Overloaded("all slots are busy, as the test wants it", retry_after)))

    def otherwise(self, answer: str | Callable[[Asked], str]) -> None:
        """Answer calls for which there is no step with this text, or with what a function makes of the call."""
        self._otherwise = answer if callable(answer) else lambda asked: answer

    def release(self) -> None:
        """Let every answer go on that `hold` keeps open, and those to come."""
        self._released.set()

    def _add(self, step: _Step) -> None:
        with self._lock:
            self._steps.append(step)

    def note(self, asked: Asked) -> _Step | None:
        """Remember a call, and return the step that is for it."""
        with self._lock:
            self.asked.append(asked)
            if self._steps and (asked.call == "generate" or self._steps[0].is_for_vectors):
                return self._steps.popleft()
        return None

    def usual(self, asked: Asked) -> _Step:
        """Return what is answered without a step: words, at most as many as were asked for."""
        words = self._otherwise(asked).split(" ")
        pieces = [word if number == 0 else f" {word}" for number, word in enumerate(words)]
        most = asked.request.max_new_tokens if asked.request is not None else None
        if most is not None and len(pieces) > most:
            return _Step(tuple(pieces[:most]), finish_reason="length")
        return _Step(tuple(pieces))

    def wait_released(self, timeout: float) -> bool:
        """Block for ``timeout`` seconds at most; return whether `release` was called."""
        return self._released.wait(timeout)


_scripts: weakref.WeakValueDictionary[str, Answers] = weakref.WeakValueDictionary()


@dataclass
class ScriptedParams(EchoParams):
    """Parameters of `Scripted`."""

    script: str = param("", help="the key of its `Answers`", tags=["fixed"])


class Scripted(Echo):
    """Says what its `Answers` say."""

    name = "scripted"
    Params = ScriptedParams
    worker_types: ClassVar[frozenset[WorkerType]] = frozenset(WorkerType)
    needs_weights = False
    ticks = True

    params: ScriptedParams

    @property
    def _answers(self) -> Answers:
        return _scripts[self.params.script]

    def generate_stream(self, request: GenerateRequest, cancel: CancelEvent) -> Iterator[Burst | None]:
        """Yield the pieces of the next step, each in a burst of its own."""
        asked = Asked("generate", self.params.registered_name, _said_last(request), request=request)
        step = self._answers.note(asked) or self._answers.usual(asked)
        over = False
        try:
            for piece in step.pieces:
                yield from _pause(cancel, step.delay)
                if cancel.is_set():
                    return
                yield Burst([piece])
            while step.holds and not self._answers.wait_released(TICK):
                if cancel.is_set():
                    return
                yield None
            over = True
            if step.error is not None:
                raise step.error
            yield Burst([], step.finish_reason, self._usage(request, step))
        finally:
            asked.cancelled = not over
            asked.ended.set()

    def _usage(self, request: GenerateRequest, step: _Step) -> JSONObject:
        said = " ".join(text_of_content(message["content"]) for message in request.messages) or request.prompt or ""
        prompt_tokens, completion_tokens = self.count_token(said), len(step.pieces)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }

    def embed(self, texts: Sequence[str], cancel: CancelEvent) -> Vectors:
        """Return echo's vectors, unless the next step is a failure."""
        self._note_vectors(Asked("embeddings", self.params.registered_name, texts=list(texts)))
        return super().embed(texts, cancel)

    def rerank(self, query: str, texts: Sequence[str], cancel: CancelEvent) -> Sequence[float]:
        """Return echo's scores, unless the next step is a failure."""
        self._note_vectors(Asked("rerank", self.params.registered_name, query, list(texts)))
        return super().rerank(query, texts, cancel)

    def _note_vectors(self, asked: Asked) -> None:
        step = self._answers.note(asked)
        asked.ended.set()
        if step is not None and step.error is not None:
            raise step.error


def _said_last(request: GenerateRequest) -> str:
    if not request.uses_messages:
        return request.prompt or ""
    said = [message for message in request.messages if message["role"] in ("user", "human")] or request.messages
    return text_of_content(said[-1]["content"])


def _pause(cancel: CancelEvent, seconds: float) -> Iterator[None]:
    due = time.monotonic() + seconds
    while (left := due - time.monotonic()) > 0 and not cancel.wait(min(left, TICK)):
        yield None
