"""The first page: the cluster at a glance."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from flask import g

from ...types import JSONObject
from .parts import Choice
from .rendering import tone
from .site import Reader, Site
from .visitors import Visitor
from .watch import KEPT_FOR, Look, ModelView, Watch

A_PAGE = 50
"""The models that the page lists: so it stays below 100 KB, and so does each event of its stream."""
MOST_INSTANCES = 60
"""The instances that a page lists at most."""
CURVE = (240.0, 48.0)
"""The width and the height of the curve, in its own units."""


def add(site: Site, watch: Watch) -> None:
    """Add it to a site; it shows what ``watch`` sees."""

    def read() -> Reader:
        visitor: Visitor = g.modelyard_visitor
        choice = Choice.of_request()
        return lambda: _values(watch.look(), visitor, choice)

    site.add_live("", "cluster", read, label="Cluster")


def _values(look: Look, visitor: Visitor, choice: Choice) -> dict[str, Any]:
    """Return what the page shows to a visitor: of the models that they may use, those that have failed first."""
    models = [model for model in look.models if visitor.sees(model.name)]
    keys = [model.key for model in models]
    failed_first = sorted(models, key=lambda model: tone(model.state) != "bad")
    part = choice.part(failed_first, A_PAGE, lambda model, wanted: wanted in model.name or wanted == model.state)
    return {
        "status": look.status,
        "troubles": list(_troubles(look.status)),
        "part": part,
        "paces": {model.key: look.pace([model.key]) for model in part.rows},
        "pace": look.pace(keys),
        "total": _total(models),
        "curve": curve_points(look.curve(keys)),
        **instances_of(part.rows),
        "now": time.time(),
    }


def instances_of(models: Iterable[ModelView]) -> dict[str, Any]:
    """Return the instances of models that a page lists, each with its model's name, and how many more there are."""
    rows = [(model.name, instance) for model in models for instance in model.instances]
    return {"of_registry": rows[:MOST_INSTANCES], "more_instances": len(rows[MOST_INSTANCES:])}


def _total(models: Sequence[ModelView]) -> JSONObject:
    """Return the sums of the loads; None where no model has any."""
    sums: JSONObject = {}
    for name in ("running", "waiting", "slots"):
        values = [value for model in models if (value := getattr(model, name)) is not None]
        sums[name] = sum(values) if values else None
    return sums


def _troubles(status: JSONObject) -> Iterable[tuple[str, str]]:
    """Yield what an operator has to know of a service, each with a title."""
    if status.get("unsaved"):
        yield "Changes are not remembered.", status["unsaved"]
    if error := (status.get("cluster") or {}).get("error"):
        yield "The registry does not answer.", error
    if error := (status.get("keys") or {}).get("error"):
        yield "The keys can't be read.", error


def curve_points(curve: Sequence[tuple[float, float]]) -> tuple[str, str] | None:
    """Return a curve of ages and rates as the points of an area and of a line in SVG; None for less than two."""
    if len(curve) < 2:
        return None
    width, height = CURVE
    most = max(rate for _, rate in curve) or 1.0
    points = [(width * (1 - age / KEPT_FOR), height - 2 - (height - 4) * rate / most) for age, rate in curve]
    area = [(points[0][0], height), *points, (points[-1][0], height)]
    return _svg(area), _svg(points)


def _svg(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
