"""Embeddings and ranked texts in the shapes that clients read."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Sequence
from typing import Any

from ...engines.base import Vectors, tokens_of
from ...errors import ModelyardError
from ...types import JSONObject, WorkerType, worker_key
from ...worker.protocol import Service
from ..request.calls import Call

JINA, COHERE, TEI = "jina", "cohere", "tei"
"""The shapes of a rerank: Jina's (also of vLLM and llama-server), Cohere's second version, and that of Hugging Face's
text-embeddings-inference."""


def embeddings_answer(rows: Vectors, model: str, tokens: int, *, as_base64: bool) -> JSONObject:
    """Return the answer with one embedding a row; ``as_base64`` as little-endian float32."""
    data = [
        {"object": "embedding", "index": index, "embedding": _packed(row) if as_base64 else row}
        for index, row in enumerate(rows)
    ]
    return {"object": "list", "data": data, "model": model, "usage": _usage(tokens)}


def _usage(tokens: int) -> JSONObject:
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def _packed(row: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(row)}f", *row)).decode("ascii")


def counted(service: Service, call: Call, model: str, results: Vectors, texts: Sequence[str]) -> int:
    """Return the tokens of texts, which count for the limits of the key; 0 if the engine can't count.

    They are those that the engine reports, or else all texts counted together.
    """
    tokens = tokens_of(results)
    if tokens is None:
        try:
            tokens = service.manager.count_token(model, "\n".join(texts))
        except ModelyardError:
            tokens = 0
    call.count(tokens or None)
    return tokens


def is_reranker(service: Service, model: str) -> bool:
    """Return whether a model ranks by itself, and not by the cosine of its embeddings."""
    return bool(service.manager.get_model_instances(worker_key(model, WorkerType.RERANKER), healthy_only=False))


def as_probabilities(scores: Sequence[float]) -> Sequence[float]:
    """Return the scores of a reranker between 0 and 1: the sigmoid of all, unless all of them are already."""
    if all(0 <= score <= 1 for score in scores):
        return scores
    return [1 / (1 + math.exp(-score)) if score >= 0 else 1 - 1 / (1 + math.exp(score)) for score in scores]


def rerank_answer(
    shape: str,
    scores: Sequence[float],
    texts: Sequence[str],
    model: str,
    answer_id: str,
    *,
    top_n: int | None,
    tokens: int,
    with_texts: bool,
) -> Any:
    """Return the ranking, best first: the ``top_n`` best, all without it."""
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))[:top_n]
    if shape == TEI:
        return [_ranked(index, "score", scores, texts[index] if with_texts else None, "text") for index in order]
    results = [
        _ranked(index, "relevance_score", scores, {"text": texts[index]} if with_texts else None, "document")
        for index in order
    ]
    if shape == COHERE:
        meta = {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}}
        return {"id": answer_id, "results": results, "meta": meta}
    return {"id": answer_id, "model": model, "usage": _usage(tokens), "results": results}


def _ranked(index: int, name: str, scores: Sequence[float], text: Any, field: str) -> JSONObject:
    entry: JSONObject = {"index": index, name: float(scores[index])}
    if text is not None:
        entry[field] = text
    return entry


def relevance_answer(scores: Sequence[float], model: str, tokens: int) -> JSONObject:
    """Return the scores in the order of the texts, as DB-GPT's client of rerankers reads them."""
    return {
        "object": "list",
        "model": model,
        "data": [float(score) for score in scores],
        "usage": {**_usage(tokens), "completion_tokens": 0},
    }
