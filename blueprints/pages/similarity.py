"""The page on which embeddings and rankings are tried on texts: the similarity of each pair, as a coloured table.

It is a form without a script: the page that answers it has the form, what was computed, and the same call by curl.
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Sequence
from http import HTTPStatus
from operator import mul
from typing import NamedTuple

import orjson
from flask import g, request
from werkzeug.wrappers import Response as AnyResponse

from ...access.tokens import INFER
from ...errors import InvalidRequest, ModelyardError
from ...types import JSONObject
from ...worker.protocol import Service
from ..openai.vectors import as_probabilities, counted
from ..request.calls import called
from ..request.guard import origin_of
from ..request.keys import check_model, key_of_request
from ..request.terms import terms_of
from .playground import api_path, models_that
from .site import Site

MOST_TEXTS = 24
MOST_LETTERS = 4000
"""The most letters of a text."""
TONES = 10
"""The colours of the table, beside that of the lowest value."""
_EXAMPLES = (
    "A kitten naps on the sofa",
    "The cat is asleep on the couch",
    "Dogs need a walk twice a day",
    "The central bank raised its rates",
    "Borrowing money becomes more expensive",
)
_EXAMPLE_QUERY = "Which pets need exercise?"


class Trial(NamedTuple):
    """What is tried: texts, and what they are ranked by."""

    model: str
    texts: list[str]
    query: str
    """Empty: they are not ranked."""


class Cell(NamedTuple):
    """The similarity of two texts, with the number of its colour."""

    value: str
    tone: int


class Pair(NamedTuple):
    """Two texts by their places, with their similarity."""

    first: int
    second: int
    value: float


class Result(NamedTuple):
    """What was computed of a trial."""

    rows: list[list[Cell]]
    """The similarity of each text to each; empty for a model that only ranks."""
    pairs: list[Pair]
    """All pairs, the most similar first."""
    ranking: list[tuple[int, float]]
    """The places of the texts with their scores, the best first; empty without a query."""
    dimensions: int
    tokens: int
    seconds: float


def add(site: Site) -> None:
    """Add the page to a site."""

    def page() -> AnyResponse:
        models = models_that(site, "embedding", "rerank")
        trial = Trial(request.args.get("model", ""), list(_EXAMPLES), _EXAMPLE_QUERY)
        result, refusal, status = None, "", HTTPStatus.OK.value
        if request.method == "POST":
            trial = _trial()
            try:
                result = _computed(site.service, trial, models)
            except ModelyardError as error:
                g.modelyard_line.error = error.code
                refusal, status = str(error), error.status
        return site.render(
            "similarity.html",
            status,
            models=models,
            trial=trial,
            result=result,
            refusal=refusal,
            most_texts=MOST_TEXTS,
            shown=shown,
            commands=_commands(trial, api_path(), embeds=bool(result.rows)) if result else [],
        )

    site.add("similarity", page, needs=(INFER,), methods=("GET", "POST"), label="Similarity")


def _trial() -> Trial:
    """Return what the form of the current request asks for."""
    lines = [line.strip() for line in request.form.get("texts", "").splitlines()]
    query = request.form.get("query", "").strip()
    return Trial(request.form.get("model", ""), [line for line in lines if line], query)


def _check(trial: Trial, capabilities: Sequence[str]) -> None:
    """Raise InvalidRequest for a trial that is too small or too large."""
    if not trial.texts:
        raise InvalidRequest("texts: write one text a line")
    if len(trial.texts) > MOST_TEXTS:
        raise InvalidRequest(f"texts: there are {len(trial.texts)}, and at most {MOST_TEXTS} are shown: leave some out")
    if (longest := max(map(len, [trial.query, *trial.texts]))) > MOST_LETTERS:
        raise InvalidRequest(f"texts: one has {longest} letters, and at most {MOST_LETTERS} are taken: shorten it")
    if "embedding" not in capabilities and not trial.query:
        raise InvalidRequest(f"query: is missing: the model {trial.model} ranks texts by one")


def _computed(service: Service, trial: Trial, models: dict[str, list[str]]) -> Result:
    """Return what a model computes of a trial. Raises the errors of the call."""
    check_model(trial.model, key_of_request())
    capabilities = models.get(trial.model, ["embedding"])
    _check(trial, capabilities)
    g.modelyard_line.model = trial.model
    began = time.monotonic()
    texts = [*trial.texts, trial.query] if trial.query else trial.texts
    with called(service) as call:
        call.admit(sum(map(len, texts)))
        terms = terms_of(service, call.line, {})
        if "embedding" in capabilities:
            results = service.manager.embeddings(trial.model, texts, call.cancel, terms)
        else:
            results = service.manager.rerank(trial.model, trial.query, trial.texts, call.cancel, terms)
        tokens = counted(service, call, trial.model, results, texts)
    seconds = time.monotonic() - began
    if "embedding" not in capabilities:
        return Result([], [], _ranked(as_probabilities(results)), 0, tokens, seconds)
    matrix = cosines(results)
    scores = matrix[-1][:-1] if trial.query else []
    size = len(trial.texts)
    pairs = [Pair(i, j, matrix[i][j]) for i in range(size) for j in range(i)]
    pairs.sort(key=lambda pair: -pair.value)
    rows = _cells([row[:size] for row in matrix[:size]], pairs)
    return Result(rows, pairs, _ranked(scores), len(results[0]), tokens, seconds)


def cosines(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return the cosine of each two rows; 0 for a row of zeros."""
    units = []
    for row in rows:
        numbers = [float(number) for number in row]
        length = math.hypot(*numbers) or 1.0
        units.append([number / length for number in numbers])
    return [[sum(map(mul, one, other)) for other in units] for one in units]


def _cells(matrix: Sequence[Sequence[float]], pairs: Sequence[Pair]) -> list[list[Cell]]:
    """Return the cells of the table: their colours go from the lowest similarity of two texts to the highest."""
    high, low = (pairs[0].value, pairs[-1].value) if pairs else (1.0, 0.0)
    span = (high - low) or 1.0
    return [
        [Cell(shown(value, 2), round(TONES * min(1.0, max(0.0, (value - low) / span)))) for value in row]
        for row in matrix
    ]


def shown(value: float, digits: int) -> str:
    """Return a similarity as it is shown; what is nearly 0 has no sign."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def _ranked(scores: Sequence[float]) -> list[tuple[int, float]]:
    return sorted(((place, float(score)) for place, score in enumerate(scores)), key=lambda ranked: -ranked[1])


def _commands(trial: Trial, path: str, *, embeds: bool) -> list[str]:
    """Return the calls of a trial as commands of curl; none where OpenAI's API is not in this application."""
    bodies: list[tuple[str, JSONObject]] = []
    if embeds:
        bodies.append(("embeddings", {"model": trial.model, "input": trial.texts}))
    if trial.query:
        bodies.append(("rerank", {"model": trial.model, "query": trial.query, "documents": trial.texts}))
    base = f"{origin_of(request)}{path}"
    return [
        f"curl {shlex.quote(f'{base}/{call}')} \\\n"
        '  -H "Authorization: Bearer $MODELYARD_TOKEN" -H "Content-Type: application/json" \\\n'
        f"  -d {shlex.quote(orjson.dumps(body).decode())}"
        for call, body in bodies
        if path
    ]
