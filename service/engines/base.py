"""The base class of an engine, and the parameters that every model has. See docs/engines.md.

Arguments and results are plain data (`GenerateRequest`, lists of strings, bursts), and an event ends the work. So every
engine can run in a process of its own (``isolation``) without a change.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias

from ..errors import FieldError, InputTooLong, PromptTooLong, StartFailed, Unsupported
from ..settings.params import param
from ..types import Burst, GenerateRequest, ModelMetadata, WorkerType

Vectors: TypeAlias = Any
"""One row of floats for each text: a list of lists, or a numpy array (float32) of shape (texts, dimensions)."""


class TextCount(NamedTuple):
    """What an engine reports of one text."""

    cut: bool
    """Whether it was cut because the model takes no longer ones."""
    tokens: int
    """The number of tokens that were computed for it."""


class OfTexts(list[Any]):
    """Rows, or scores, with what is known of their texts and of the model."""

    def __init__(
        self,
        values: Iterable[Any],
        *,
        cut: int = 0,
        tokens: int | None = None,
        model: str | None = None,
        counts: Sequence[TextCount] | None = None,
    ) -> None:
        """``cut`` is the number of texts that were cut because the model takes no longer ones, the query among them.

        ``tokens`` is the number of tokens that were computed for all of them; None if it is not known. ``counts``, of
        each text, stand in place of both. ``model`` has computed them, where that is another model than the one that
        was asked for.
        """
        super().__init__(values)
        self.counts = counts
        self.cut = cut if counts is None else sum(count.cut for count in counts)
        self.tokens = tokens if counts is None else sum(count.tokens for count in counts)
        self.model = model


def cut_texts(values: Vectors) -> int:
    """Return how many of the texts of these rows, or scores, were cut."""
    return values.cut if isinstance(values, OfTexts) else 0


def tokens_of(values: Vectors) -> int | None:
    """Return the tokens of the texts of these rows, or scores; None if the engine has not reported them."""
    return values.tokens if isinstance(values, OfTexts) else None


def part_of(values: Vectors, texts: slice) -> Vectors | None:
    """Return the values of some of the texts, with the counts of these; None if it is not known which were cut."""
    part = values[texts]
    if not isinstance(values, OfTexts):
        return part
    if values.counts is not None:
        return OfTexts(part, counts=values.counts[texts])
    return None if values.cut else part


def other_model_of(values: Vectors) -> str | None:
    """Return the model that has computed these rows, or scores; None if it is the one that was asked for."""
    return values.model if isinstance(values, OfTexts) else None


Progress: TypeAlias = Callable[[str], None]
"""A function that is called with a short sentence about the progress of a load."""


class CancelEvent(Protocol):
    """The event that ends the work for one request, as an engine sees it."""

    def is_set(self) -> bool:
        """Return whether the request is cancelled."""

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the request is cancelled, at most ``timeout`` seconds; return whether it is cancelled."""


@dataclass
class ModelParams:
    """The parameters of every model. The ``Params`` of an engine extends them."""

    model_name: str = param(help="name of the model", tags=["fixed"])
    engine: str = param(help="engine that runs it", tags=["fixed"])
    model_path: str | None = param(None, help="weights: a file within the models folders", tags=["fixed"])
    model_alias: str | None = param(
        None, help="name to register and call the model by, instead of its own", tags=["fixed"]
    )
    worker_type: str = param("llm", help="what the model does", choices=[t.value for t in WorkerType], tags=["fixed"])
    worker_class: str | None = param(
        None, help="engine class as a dotted path, module:Class", tags=["fixed", "operator"]
    )
    limit_model_concurrency: int = param(8, help="requests that run at once (slots)", min=1, max=4096)
    max_waiting: int = param(32, help="requests that may wait in line for a slot", min=0, max=10_000)
    queue_timeout: float = param(60.0, help="seconds a request waits in line at most", min=0, max=3600, tags=["shared"])
    joint_texts: int = param(
        0, help="texts of waiting requests to embed that are computed together at most; 0: none", min=0, max=4096
    )
    joint_letters: int = param(8000, help="characters of these texts at most", min=1, max=10_000_000)
    joint_delay: float = param(
        0.0, help="milliseconds that a request to embed waits for others, to be computed with them", min=0, max=1000
    )
    isolation: str = param(
        "none",
        help="none: the engine runs in the process that has the models; process: in a process of its own, whose end "
        "fails no other model, and whose memory is free when the model is stopped",
        choices=("none", "process"),
    )
    start_timeout: float = param(300.0, help="seconds the start takes at most", min=0.1, max=86_400, tags=["shared"])
    keep_alive: float | None = param(
        None,
        help="seconds without a request after which the model is unloaded, until the next one; default: never",
        min=0.1,
        max=31_536_000,
        tags=["shared"],
    )
    pinned: bool = param(False, help="whether it stays loaded: it makes no room for others, and ignores keep_alive")
    memory: int | None = param(
        None,
        help="bytes to count for it in memory_budget, as in 2.5GB; default: an estimate by weights and context",
        min=0,
        max=2**50,
        tags=["size"],
    )
    memory_limit: int | None = param(
        None,
        help="bytes that the process of an isolated model may allocate, as in 4GB; default: no limit",
        min=100_000_000,
        max=2**50,
        tags=["size"],
    )
    environment: dict[str, str] = param(
        {},
        help="variables of the environment of an isolated model's process, over those of the service: "
        "NAME=VALUE, comma-separated",
        tags=["operator"],
    )
    weight: float = param(
        1.0,
        help="share of the requests, relative to the other instances of the model",
        min=0.001,
        max=1000,
        tags=["shared"],
    )
    register: bool = param(True, help="whether the model is registered with the controller", tags=["shared"])
    send_heartbeat: bool = param(True, help="whether heartbeats are sent for it", tags=["shared"])
    heartbeat_interval: float = param(20.0, help="seconds between heartbeats", min=0.1, max=3600, tags=["shared"])

    @property
    def registered_name(self) -> str:
        """The name that clients use: the alias, or the name."""
        return self.model_alias or self.model_name


def room_in_context(context_len: int, prompt_tokens: int) -> int:
    """Return the tokens that an answer may have in a context of ``context_len``. Raises PromptTooLong."""
    if prompt_tokens >= context_len:
        fault = f"is {context_len}, and the prompt has {prompt_tokens} tokens: shorten it, or raise context_len"
        raise PromptTooLong(f"context_len: {fault}", [{"field": "context_len", "message": fault}])
    return context_len - prompt_tokens


class Engine:
    """One model behind blocking calls. Subclass it, and override the calls that the model supports.

    ``__init__`` is cheap; `start` loads the model. Calls come from many threads at once: at most
    ``limit_model_concurrency`` of `generate_stream`, `embed` and `rerank` together.
    """

    name: ClassVar[str]
    Params: ClassVar[type[ModelParams]] = ModelParams
    default_worker_type: ClassVar[WorkerType] = WorkerType.LLM
    worker_types: ClassVar[frozenset[WorkerType]] = frozenset({WorkerType.LLM})
    needs_weights: ClassVar[bool] = True
    is_proxy: ClassVar[bool] = False
    """Whether another server computes the answers."""
    default_slots: ClassVar[dict[WorkerType, int]] = {WorkerType.TEXT2VEC: 64, WorkerType.RERANKER: 64}
    """The default of ``limit_model_concurrency`` for models of a type."""
    default_waiting: ClassVar[dict[WorkerType, int]] = {WorkerType.TEXT2VEC: 1000, WorkerType.RERANKER: 1000}
    """The default of ``max_waiting`` for models of a type: their requests take milliseconds, and clients send many at
    once, each with a few texts."""
    default_joint_texts: ClassVar[dict[WorkerType, int]] = {}
    """The default of ``joint_texts`` for models of a type: for engines that compute many texts together faster than one
    by one. Their `embed` returns `OfTexts` with ``counts``, so that each request keeps its own."""
    passes_on: bool = False
    """Whether the fields that modelyard does not know are sent on. Then `embed` and `rerank` take the keyword
    ``extra`` too, with the caller's fields by name; those of a generation are `GenerateRequest.extra`."""
    ticks: bool = False
    """Whether `generate_stream` yields None at least once a second while no piece is ready. If not, a thread runs the
    iterator, so that the caller can send something during a silence."""

    def __init__(self, params: Any, path: Path | None = None) -> None:
        """Keep ``params``, an instance of `Params`, and ``path``, the resolved path of the weights."""
        self.params = params
        self.path = path
        self.files: Mapping[str, Path] = {}
        """The resolved path of each of `file_names`. As ``path``, it is set before `start`."""

    @property
    def file_names(self) -> Sequence[str]:
        """The files that parameters name beside ``model_path``, within the models folders too. Raises StartFailed."""
        return ()

    @classmethod
    def worker_type_of(cls, path: Path) -> WorkerType | None:
        """Return the type of the model in weights; None where they do not tell. Raises BadModelFile."""
        return None

    def renewed(self) -> Engine:
        """Return a new engine for the same model, not started."""
        return type(self)(self.params, self.path)

    @property
    def memory(self) -> int:
        """The bytes that memory_budget counts for the model: its parameter ``memory``, or `memory_needed`.

        Raises BadModelFile, and StartFailed for a model that fills the memory without that parameter.
        """
        given: int | None = self.params.memory
        if given is None and self.fills_memory:
            raise StartFailed(
                f"model {self.params.registered_name!r} takes the memory that is free at its start, and memory_budget "
                "is set: set its parameter memory too, to the bytes that it may take, as in 4GB"
            )
        return self.memory_needed() if given is None else given

    @property
    def fills_memory(self) -> bool:
        """Whether it takes what is free at its start, so that only its parameter ``memory`` says how much that is."""
        return False

    def memory_needed(self) -> int:
        """Return the bytes that the model takes while it is loaded, by its ``path`` and ``params``; 0 if unknown.

        It is called before `start`. Raises BadModelFile.
        """
        return 0

    def start(self, progress: Progress) -> None:
        """Load the model. Raise StartFailed, or any exception: its type decides what the client sees."""

    def give_up(self) -> None:
        """End a `start` that is under way in another thread and is no longer wanted, if that can be done at once."""

    def stop(self) -> None:
        """Free what `start` took. Called once, after all answers have ended or were cancelled."""

    @property
    def health_interval(self) -> float | None:
        """Seconds between two calls of `health` while the model runs; None: it is never called."""
        return None

    def health(self, cancel: CancelEvent) -> str:
        """Return why the model can't answer now; empty if it can. A thread of its own calls it; ``cancel`` ends it."""
        return ""

    def when_lost(self, callback: Callable[[str], None]) -> None:
        """Call ``callback`` once with the reason when the running engine is lost; at once if it is lost already.

        An engine of this process is lost only with the process: nothing is called.
        """

    @property
    def joint_texts(self) -> int:
        """Texts of waiting requests that the caller of `embed` puts together at most; see ``joint_texts``."""
        return int(self.params.joint_texts)

    @property
    def options(self) -> frozenset[str]:
        """The names of `GenerateRequest.options` that this model takes; a request with others is refused before it."""
        return frozenset()

    @property
    def takes_images(self) -> bool | None:
        """Whether messages may have images; None where another server knows. False: it is never given any."""
        return False

    def metadata(self) -> ModelMetadata:
        """Return the metadata of the model."""
        return ModelMetadata(self.params.registered_name)

    def generate_stream(self, request: GenerateRequest, cancel: CancelEvent) -> Iterator[Burst | None]:
        """Yield bursts of new text until the answer ends, or ``cancel`` is set. Raises Unsupported."""
        raise self._unsupported("generate text")

    def embed(self, texts: Sequence[str], cancel: CancelEvent) -> Vectors:
        """Return one row of floats for each text. Raises Unsupported."""
        raise self._unsupported("embed texts")

    def rerank(self, query: str, texts: Sequence[str], cancel: CancelEvent) -> Sequence[float]:
        """Return a score for each text: the higher, the better it answers ``query``. Raises Unsupported."""
        raise self._unsupported("rank texts")

    def count_token(self, prompt: str) -> int:
        """Return the number of tokens of ``prompt``. Raises Unsupported."""
        raise self._unsupported("count tokens")

    def _unsupported(self, what: str) -> Unsupported:
        return Unsupported(f"model {self.params.registered_name!r} ({self.params.worker_type}) does not {what}")


def rank_by_cosine(embed: Callable[[Sequence[str]], Vectors], query: str, texts: Sequence[str]) -> Sequence[float]:
    """Return the cosine of the query and each text, as ``embed`` returns their rows; raises what it raises."""
    try:
        rows = embed([query, *texts])
    except InputTooLong as error:
        raise _of_query_and_texts(error) from error
    scores = [_cosine(rows[0], row) for row in rows[1:]]
    return OfTexts(scores, cut=cut_texts(rows), tokens=tokens_of(rows))


def _of_query_and_texts(error: InputTooLong) -> InputTooLong:
    """Return the error of texts whose first is the query, with the fields that the body of a request has."""
    faults: list[FieldError] = []
    for fault in error.errors:
        index = re.fullmatch(r"input\[(\d+)\]", fault["field"])
        field = fault["field"] if index is None else f"input[{int(index[1]) - 1}]" if int(index[1]) else "query"
        faults.append({"field": field, "message": fault["message"]})
    return InputTooLong("; ".join(f"{fault['field']} {fault['message']}" for fault in faults) or str(error), faults)


def _cosine(left: Sequence[float], right: Sequence[float]) -> float:
    dot = sum(a * b for a, b in zip(left, right, strict=True))
    norms = sum(a * a for a in left) * sum(b * b for b in right)
    return float(dot / norms**0.5) if norms else 0.0
