"""The page of a model: what it does, its last requests, its parameters as a form, and what starts and stops it."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from flask import g, request
from werkzeug.wrappers import Response as AnyResponse

from ...access.tokens import ADMIN, INFER
from ...errors import Forbidden, InvalidRequest, ModelyardError, UnknownModel
from ...telemetry import metrics
from ...telemetry.recent import Recent, RecentRequests
from ...types import JSONObject, WorkerType
from ...worker.protocol import APPLY_TYPES
from . import parameters
from .cluster import instances_of
from .rendering import seconds
from .site import Reader, Site
from .visitors import Visitor
from .watch import Look, ModelView, Watch

PAGE = "model"
PLACE_WAIT = 0.25
"""Seconds that a page waits while others read parameters."""
_OF_LINE = (
    *("request_id", "caller", "queue_ms", "first_ms", "prompt_tokens", "completion_tokens", "finish_reason", "error"),
)
"""What an access line has only where it is known."""


def add(site: Site, watch: Watch) -> None:
    """Add it to a site."""
    # Another machine may have the parameters, and not answer: few threads of this process wait for it.
    places = threading.BoundedSemaphore(max(1, site.service.settings.reserve // 4))
    site.add_live(PAGE, "model", lambda: _read(site, watch), more=lambda: _form(site, places), needs=[INFER])
    site.add(f"{PAGE}/change", lambda: _change(site), needs=[ADMIN], methods=["POST"])


def _named(values: Any) -> tuple[str, str]:
    """Return the name and the type of the model that a request is about. Raises InvalidRequest and Forbidden."""
    name, kind = values.get("name", ""), values.get("type", "")
    if not name or kind not in tuple(WorkerType):
        raise InvalidRequest("name and type of a model are missing: follow the link on the first page")
    visitor: Visitor = g.modelyard_visitor
    if not visitor.sees(name):
        raise Forbidden(f"the key {visitor.name} may not use the model {name!r}")
    return name, kind


def _read(site: Site, watch: Watch) -> Reader:
    name, kind = _named(request.args)
    visitor: Visitor = g.modelyard_visitor
    view_of(watch.look(), name, kind)  # raises UnknownModel before a stream begins
    recent = site.service.recent or RecentRequests()

    def values() -> dict[str, Any]:
        look = watch.look()
        return {
            "model": (model := view_of(look, name, kind)),
            **instances_of([model]),
            "pace": look.pace([f"{name}@{kind}"]),
            "requests": [_shown(each) for each in recent.of(name) if visitor.may_change or _is_own(each.line, visitor)],
            "bodies": recent.bodies,
            "process": _process(site),
            "now": time.time(),
        }

    return values


def _shown(recent: Recent) -> Recent:
    """Return a request whose access line has a value for each name that the page shows, or None."""
    ended = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(recent.ended))
    return recent._replace(line={**dict.fromkeys(_OF_LINE), "time": ended, **recent.line})


def _is_own(line: JSONObject, visitor: Visitor) -> bool:
    """Return whether a visitor has sent a request: others' are shown to those who may change models alone."""
    if visitor.holder is None:
        return False
    own = ("key", visitor.key.id) if visitor.key is not None else ("caller", visitor.name)
    return line.get(own[0]) == own[1] and ("key" in line) == (visitor.key is not None)


def view_of(look: Look, name: str, kind: str) -> ModelView:
    """Return a model in a look. Raises UnknownModel."""
    key = f"{name}@{kind}"
    for model in look.models:
        if model.key == key:
            return model
    raise UnknownModel(f"there is no model {name!r} of type {kind} here")


def _process(site: Site) -> str:
    """Return whose requests a process can show, in words; empty where it is the only one of its service."""
    cells = site.service.sample().gauges.get(metrics.PROCESSES.name, {})
    number = int(sum(cell[0] for cell in cells.values()))
    return f"of process {os.getpid()}, one of {number} of this service" if number > 1 else ""


def _described(site: Site, name: str, kind: str) -> list[JSONObject]:
    return site.service.manager.parameter_descriptions(name, WorkerType(kind))


def _form(site: Site, places: threading.Semaphore) -> dict[str, Any]:
    """Return the fields of the model's parameters; where they can't be read, the reason."""
    if not places.acquire(timeout=PLACE_WAIT):
        return {"fields": [], "fixed": [], "trouble": "other pages wait for parameters: load this page again"}
    try:
        open_fields, fixed_fields = parameters.in_order(_described(site, *_named(request.args)))
    except ModelyardError as error:
        return {"fields": [], "fixed": [], "trouble": str(error)}
    finally:
        places.release()
    return {"fields": open_fields, "fixed": fixed_fields, "trouble": ""}


def _change(site: Site) -> AnyResponse:
    """Start, stop, restart or change a model, and go back to its page, which shows the outcome."""
    name, kind = _named(request.form)
    action = request.form.get("action", "")
    try:
        words, is_good = _applied(site, name, kind, action)
    except ModelyardError as error:
        words, is_good = str(error), False
    response = site.go_to(PAGE, name=name, type=kind)
    site.sign_ins.keep_outcome(response, request, words, good=is_good)
    return response


def _applied(site: Site, name: str, kind: str, action: str) -> tuple[str, bool]:
    if action not in APPLY_TYPES:
        raise InvalidRequest(f"{action!r} is not one of {', '.join(APPLY_TYPES)}")
    site.service.check_open()
    changed = {}
    if action == "update_params":
        changed = parameters.changes(request.form, _described(site, name, kind))
        if not changed:
            return "No parameter was changed: every field has the value that it had.", True
    outcome = site.service.manager.worker_apply(name, action, WorkerType(kind), changed)
    words = f"M{outcome.message[1:]}" if outcome.message.startswith("model ") else outcome.message
    return f"{words} ({seconds(outcome.timecost)})" if outcome.success else words, outcome.success
