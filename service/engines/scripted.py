"""scripted: an engine that answers what a test prescribes, and records its calls. See docs/testing.md.

The table of engines does not list it, so no service offers it. `modelyard.testing` puts it in place of other engines;
a process of its own has it by ``worker_class``, with a table of answers.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from ..errors import EngineError, ModelyardError, Overloaded
from ..settings.params import param
from ..types import Burst, GenerateRequest, JSONObject, WorkerType
from ..wire.messages import text_of_content
from .base import CancelEvent, Progress, Vectors
from .echo import Echo, EchoParams
from .openai_fields import ALL_OPTIONS
from .scripted_table import AnswerRow, Step, read_table, step_of, text_step

TICK = 0.2


@dataclass
class Asked:
    """One call of a model."""

    call: str
    """``generate``, ``embeddings`` or ``rerank``."""
    model: str
    prompt: str = ""
    """The last message of the user, or the raw prompt; the query of `rerank`."""
    texts: list[str] = field(default_factory=list)
    """The texts to embed or rank."""
    request: GenerateRequest | None = None
    """The whole request of a generation: messages, max_new_tokens, temperature ..."""
    cancelled: bool = False
    """Whether the answer was cancelled before its end: the client hung up, or closed the stream."""
    ended: threading.Event = field(default_factory=threading.Event)
    """Set when the answer has ended, for whatever reason."""


class Answers:
    """The script of the models of one test, and the record of their calls. Each call takes the next step.

    Without a step a model repeats the last message of the user (`otherwise` changes that), and embeds like ``echo``.
    """

    def __init__(self, *, keeps_calls: bool = True) -> None:
        """Record the calls in `asked` unless ``keeps_calls`` is false, for a process that runs long."""
        self.asked: list[Asked] = []
        """All calls that reached a model, in order. Requests that were refused before are not among them."""
        self._keeps_calls = keeps_calls
        self._otherwise: Callable[[Asked], str] = lambda asked: asked.prompt
        self._steps: deque[Step] = deque()
        self._rows: list[AnswerRow] = []
        self._lock = threading.Lock()
        self._released = threading.Event()
        self.key = f"{id(self):x}"
        _scripts[self.key] = self

    @property
    def prompts(self) -> list[str]:
        """The prompt of each generation, in order."""
        return [asked.prompt for asked in self.asked if asked.call == "generate"]

    def say(self, *pieces: str, delay: float = 0.0, finish_reason: str = "stop") -> None:
        """Answer the next call with these pieces of text, each after ``delay`` seconds."""
        self._add(Step(pieces, delay, finish_reason))

    def say_deltas(self, *deltas: JSONObject, finish_reason: str = "stop") -> None:
        """Answer the next call with these deltas of OpenAI's chat: ``content``, ``tool_calls``, ``reasoning_content``.

        A delta may have ``logprobs`` too.
        """
        pieces = tuple(str(delta.get("content") or "") for delta in deltas)
        rest = tuple({name: value for name, value in delta.items() if name != "content"} for delta in deltas)
        self._add(Step(pieces, finish_reason=finish_reason, deltas=rest))

    def hold(self, *pieces: str) -> None:
        """Answer with these pieces, and end only when the client hangs up, or after `release`."""
        self._add(Step(pieces, holds=True))

    def fail(self, error: str | ModelyardError = "the engine broke", *pieces: str) -> None:
        """Fail the next call of any kind like a broken engine, after ``pieces`` where it generates text."""
        self._add(Step(pieces, error=EngineError(error) if isinstance(error, str) else error))

    def refuse(self, retry_after: int = 1) -> None:
        """Refuse the next call of any kind: 503, all slots are busy."""
        self._add(Step(error=Overloaded("all slots are busy: the test refuses this call", retry_after)))

    def otherwise(self, answer: str | Callable[[Asked], str]) -> None:
        """Answer calls without a step with this text, or with the result of a function of the call."""
        self._otherwise = answer if callable(answer) else lambda asked: answer

    def follow(self, path: str | Path) -> None:
        """Answer calls without a step from the table of answers in a TOML file. Raises ConfigError."""
        self._rows = read_table(path)

    def release(self) -> None:
        """End the answers that `hold` keeps open, now and from now on."""
        self._released.set()

    def _add(self, step: Step) -> None:
        with self._lock:
            self._steps.append(step)

    def note(self, asked: Asked) -> Step | None:
        """Record a call, and return its step; None if there is none."""
        with self._lock:
            if self._keeps_calls:
                self.asked.append(asked)
            if self._steps and (asked.call == "generate" or self._steps[0].is_for_vectors):
                return self._steps.popleft()
        return None

    def usual(self, asked: Asked, request: GenerateRequest) -> Step:
        """Return the answer without a step: that of the table, or words, at most ``max_new_tokens`` of them."""
        return step_of(self._rows, asked.prompt, request) or text_step(self._otherwise(asked), request)

    def wait_released(self, timeout: float) -> bool:
        """Block at most ``timeout`` seconds; return whether `release` was called."""
        return self._released.wait(timeout)


_scripts: weakref.WeakValueDictionary[str, Answers] = weakref.WeakValueDictionary()


@dataclass
class ScriptedParams(EchoParams):
    """Parameters of `Scripted`."""

    script: str = param("", help="the key of its `Answers`", tags=["fixed"])
    table: str | None = param(None, help="TOML file with its answers, instead of a script", tags=["fixed", "operator"])


class Scripted(Echo):
    """Answers what its `Answers` prescribe."""

    name = "scripted"
    Params = ScriptedParams
    worker_types: ClassVar[frozenset[WorkerType]] = frozenset(WorkerType)
    needs_weights = False
    ticks = True

    params: ScriptedParams

    def __init__(self, params: ScriptedParams, path: Path | None = None) -> None:
        super().__init__(params, path)
        self._table = Answers(keeps_calls=False) if params.table else None

    def start(self, progress: Progress) -> None:
        """Read the table, where there is one."""
        if self._table is not None and self.params.table is not None:
            self._table.follow(self.params.table)
        super().start(progress)

    @property
    def options(self) -> frozenset[str]:
        """All that OpenAI's chat has: `Asked.request` shows what came."""
        return ALL_OPTIONS

    @property
    def _answers(self) -> Answers:
        return self._table or _scripts[self.params.script]

    def generate_stream(self, request: GenerateRequest, cancel: CancelEvent) -> Iterator[Burst | None]:
        """Yield the pieces of the next step, one in each burst."""
        asked = Asked("generate", self.params.registered_name, _last_prompt(request), request=request)
        step = self._answers.note(asked) or self._answers.usual(asked, request)
        over = False
        try:
            for index, piece in enumerate(step.pieces):
                yield from _pause(cancel, step.delay)
                if cancel.is_set():
                    return
                yield Burst([piece], deltas=[step.deltas[index]] if step.deltas else None)
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

    def _usage(self, request: GenerateRequest, step: Step) -> JSONObject:
        text = " ".join(text_of_content(message["content"]) for message in request.messages) or request.prompt or ""
        prompt_tokens, completion_tokens = self.count_token(text), len(step.pieces)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }

    def embed(self, texts: Sequence[str], cancel: CancelEvent) -> Vectors:
        """Return the vectors of echo, unless the next step fails."""
        self._note_vectors(Asked("embeddings", self.params.registered_name, texts=list(texts)))
        return super().embed(texts, cancel)

    def rerank(self, query: str, texts: Sequence[str], cancel: CancelEvent) -> Sequence[float]:
        """Return the scores of echo, unless the next step fails."""
        self._note_vectors(Asked("rerank", self.params.registered_name, query, list(texts)))
        return super().rerank(query, texts, cancel)

    def _note_vectors(self, asked: Asked) -> None:
        step = self._answers.note(asked)
        asked.ended.set()
        if step is not None and step.error is not None:
            raise step.error


def _last_prompt(request: GenerateRequest) -> str:
    if not request.uses_messages:
        return request.prompt or ""
    messages = [message for message in request.messages if message["role"] in ("user", "human")] or request.messages
    return text_of_content(messages[-1]["content"])


def _pause(cancel: CancelEvent, seconds: float) -> Iterator[None]:
    due = time.monotonic() + seconds
    while (left := due - time.monotonic()) > 0 and not cancel.wait(min(left, TICK)):
        yield None
