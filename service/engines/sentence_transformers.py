"""sentence-transformers: embedders and CrossEncoder rerankers of Hugging Face, from a folder or from the hub."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from ..errors import Cancelled, EngineError, MissingLibrary, StartFailed
from ..settings.params import param
from ..types import JSONObject, ModelMetadata, WorkerType
from .base import CancelEvent, OfTexts, Progress, TextCount, Vectors
from .huggingface import HuggingFaceEngine, HuggingFaceParams, free_gpu_memory
from .text_limit import TRUNCATE, TextLimit

FEW = 8
"""Texts that are computed together whatever their lengths: a smaller part costs more than the shorter texts save."""


@dataclass
class SentenceTransformersParams(HuggingFaceParams):
    """Parameters of `SentenceTransformers`."""

    dtype: str = param("float32", help="numbers to compute with", choices=["auto", "float32", "bfloat16", "float16"])
    batch_size: int = param(32, help="texts that are computed together; a cancel acts between two", min=1, max=4096)
    normalize: bool = param(True, help="whether embeddings have the length 1")
    dimensions: int | None = param(
        None,
        help="numbers of an embedding to keep, for models that were trained for it (Matryoshka)",
        min=1,
        max=65_536,
    )
    prompt_name: str | None = param(
        None, help="one of the model's own prompts, put before each text to embed: query, passage ..."
    )
    truncate: str = param(
        "end",
        help="what to do with a text that is longer than the model takes: leave out its end, or refuse it",
        choices=TRUNCATE,
    )


class SentenceTransformers(HuggingFaceEngine):
    """One embedder, or one reranker, behind the library's ``encode`` and ``predict``. One thread computes at a time."""

    name = "sentence-transformers"
    Params = SentenceTransformersParams
    default_worker_type: ClassVar[WorkerType] = WorkerType.TEXT2VEC
    worker_types: ClassVar[frozenset[WorkerType]] = frozenset({WorkerType.TEXT2VEC, WorkerType.RERANKER})
    default_joint_texts: ClassVar[dict[WorkerType, int]] = {WorkerType.TEXT2VEC: 32}

    params: SentenceTransformersParams

    def __init__(self, params: Any, path: Path | None = None) -> None:
        super().__init__(params, path)
        self._model: Any = None
        self._counter: Any = None
        """A copy of the model's tokenizer, to count with: the other one breaks if two threads call it at once."""
        self._tokens = 0
        """The tokens that a text may have."""
        self._computing = threading.Lock()

    # Life

    def start(self, progress: Progress) -> None:
        """Load the model and compute one text. Raises MissingLibrary, BadModelFile, StartFailed."""
        source = self.source()
        try:
            import sentence_transformers  # noqa: PLC0415 - only models of this engine need them
            import torch  # noqa: PLC0415
        except ImportError as error:
            raise MissingLibrary(
                f"the engine sentence-transformers needs its library ({error}): "
                "pip install 'modelyard[sentence-transformers]'"
            ) from error
        progress(f"loading {source}")
        given: JSONObject = {
            **self.loading_arguments(),
            "device": self.device(torch),
            "model_kwargs": {"dtype": self.params.dtype, "use_safetensors": self.use_safetensors()},
        }
        is_reranker = self.params.worker_type == WorkerType.RERANKER
        kind = sentence_transformers.CrossEncoder if is_reranker else sentence_transformers.SentenceTransformer
        try:
            self._model = kind(source, **given)
            self._tokens = int(self._model.max_seq_length or 512)
            self._counter = deepcopy(self._model.tokenizer)
            self._check_prompt_name()
            if is_reranker:
                self._scores("a", ["a"])
            else:
                self._rows(["a"])
        except Exception as error:
            self.stop()
            raise StartFailed(
                f"sentence-transformers can't run {source} as {self.params.worker_type}: {error}"
            ) from error

    def _check_prompt_name(self) -> None:
        name, prompts = self.params.prompt_name, getattr(self._model, "prompts", {})
        if name is not None and name not in prompts:
            raise StartFailed(
                f"prompt_name: {name!r} is not a prompt of the model; it has {', '.join(prompts) or 'none'}"
            )

    def stop(self) -> None:
        """Free the weights."""
        was_on_gpu = self._model is not None and str(self._model.device).startswith("cuda")
        self._model = self._counter = None
        if was_on_gpu:
            free_gpu_memory()

    def metadata(self) -> ModelMetadata:
        """Return the metadata of the model."""
        return ModelMetadata(self.params.registered_name, context_length=self._tokens or None, chat_model=False)

    # Calls

    def embed(self, texts: Sequence[str], cancel: CancelEvent) -> Vectors:
        """Return one row for each text, as numpy float32. Raises InputTooLong, Cancelled."""
        fitting = self._limit().texts(texts, cancel)
        prompt = self._model.prompts[self.params.prompt_name] if self.params.prompt_name else ""
        tokens = self._lengths([prompt + text for text in fitting])
        rows = self._in_parts(fitting, self._rows, cancel)
        cut = [len(short) < len(text) for short, text in zip(fitting, texts, strict=True)]
        return OfTexts(rows, counts=[TextCount(*count) for count in zip(cut, tokens, strict=True)])

    def rerank(self, query: str, texts: Sequence[str], cancel: CancelEvent) -> Sequence[float]:
        """Return the raw score of each text. Raises InputTooLong, Cancelled."""
        limit = self._limit()
        query = limit.query(query)
        fitting = limit.texts(texts, cancel, query)
        tokens = sum(self._lengths([(query, text) for text in fitting]))
        scores = self._in_parts(fitting, partial(self._scores, query), cancel)
        return OfTexts(scores, cut=limit.cut, tokens=tokens)

    def _in_parts(
        self, texts: Sequence[str], compute: Callable[[list[str]], list[Any]], cancel: CancelEvent
    ) -> list[Any]:
        """Return the results of ``compute`` for all texts, in parts; meanwhile this thread alone computes."""
        results: list[Any] = [None] * len(texts)
        for part in _alike([len(text) for text in texts], self.params.batch_size):
            while not self._computing.acquire(timeout=1.0):
                _check(cancel)
            try:
                _check(cancel)
                computed = compute([texts[number] for number in part])
            finally:
                self._computing.release()
            for number, result in zip(part, computed, strict=True):
                results[number] = result
        return results

    def _rows(self, texts: list[str]) -> list[list[float]]:
        rows: list[list[float]] = self._model.encode(
            texts,
            prompt_name=self.params.prompt_name,
            batch_size=len(texts),
            show_progress_bar=False,
            convert_to_numpy=True,
            normalize_embeddings=self.params.normalize,
            truncate_dim=self.params.dimensions,
        ).tolist()
        return rows

    def _scores(self, query: str, texts: list[str]) -> list[float]:
        import torch  # noqa: PLC0415

        pairs = [(query, text) for text in texts]
        scores = self._model.predict(
            pairs, batch_size=len(pairs), show_progress_bar=False, activation_fn=torch.nn.Identity()
        )
        if scores.ndim != 1:
            raise EngineError(f"the model has {scores.shape[1]} labels: a reranker has one")
        return [float(score) for score in scores]

    def _limit(self) -> TextLimit:
        return TextLimit(self.params.registered_name, self._tokens, self.count_token, self.params.truncate)

    def count_token(self, prompt: str) -> int:
        """Return the number of tokens of a text, with those that frame it."""
        if (counter := self._counter) is None:
            raise EngineError(f"model {self.params.registered_name!r} is not loaded")
        return len(counter(prompt, truncation=False, verbose=False)["input_ids"])

    def _lengths(self, texts: Sequence[str] | Sequence[tuple[str, str]]) -> list[int]:
        """Return the tokens that are computed for each text, or pair: all, or as many as the model takes."""
        ids = self._counter(list(texts), truncation=False, verbose=False)["input_ids"]
        return [min(len(tokens), self._tokens) for tokens in ids]


def _alike(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Yield the numbers of the texts in parts of ``most``, the shortest first: a part is as long as its longest text.

    A part of `FEW` texts ends before one that is half as long again as its shortest.
    """
    part: list[int] = []
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        too_long = len(part) >= FEW and lengths[number] > 1.5 * lengths[part[0]]
        if part and (len(part) == most or too_long):
            yield part
            part = []
        part.append(number)
    if part:
        yield part


def _check(cancel: CancelEvent) -> None:
    if cancel.is_set():
        raise Cancelled("the client has gone")
