"""Start, stop, restart and update_params of one model of this process.

Each operation holds the model's lifecycle lock, and returns a sentence for the outcome, or raises an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import EngineError, ModelyardError, NotReady
from ..settings import params as parameters
from ..types import JSONObject
from .keeper import LoadCause
from .local_model import LocalModel
from .local_models import LocalModels
from .states import State
from .worker import ModelWorker


def operation(models: LocalModels, apply_type: str, params: Mapping[str, Any]) -> Callable[[LocalModel], str]:
    """Return the function that applies ``apply_type`` to one of the ``models``."""
    operations: dict[str, Callable[[LocalModel], str]] = {
        "start": lambda model: _start(models, model),
        "stop": lambda model: _stop(models, model),
        "restart": lambda model: _change(models, model, params, restart=True),
        "update_params": lambda model: _change(models, model, params, restart=False),
    }
    return operations[apply_type]


def _start(models: LocalModels, model: LocalModel) -> str:
    with models.held(model):
        if model.worker.state is State.READY:
            return f"model {model.worker.key} runs already"
        models.start_held(model)
    return f"model {model.worker.key} started"


def _stop(models: LocalModels, model: LocalModel) -> str:
    model.worker.cancel_start()
    with models.held(model):
        models.stop_held(model)
        models.tell("stopped", model)
    return f"model {model.worker.key} stopped"


def _change(models: LocalModels, model: LocalModel, params: Mapping[str, Any], *, restart: bool) -> str:
    key = model.worker.key
    with models.held(model):
        changed, fixed = _changes(model.worker, params)
        note = f"; fixed, so unchanged: {', '.join(fixed)}" if fixed else ""
        if not changed and not restart:
            return f"model {key}: nothing changed{note}"
        run = restart or model.worker.state is not State.STOPPED
        # A model that was unloaded stays so, unless there is room; a restart loads it.
        cause: LoadCause = "start" if model.worker.state is State.UNLOADED and not restart else "call"
        note += _replace(models, model, {**model.over_http, **changed}, cause if run else None)
    if not changed:
        return f"model {key} restarted{note}"
    return f"model {key}: changed {', '.join(sorted(changed))}{' and restarted' if run else ''}{note}"


def _changes(worker: ModelWorker, params: Mapping[str, Any]) -> tuple[JSONObject, list[str]]:
    """Return the parameters that would change, and the names of the fixed ones that may not."""
    declared = parameters.params_of(type(worker.params))
    given = parameters.from_json(type(worker.params), params, vars(worker.params))
    different = {k: v for k, v in given.items() if getattr(worker.params, k) != v}
    fixed = sorted(k for k in different if "fixed" in declared[k].tags)
    return {k: v for k, v in different.items() if k not in fixed}, fixed


def _replace(models: LocalModels, model: LocalModel, over_http: JSONObject, cause: LoadCause | None) -> str:
    """Give the model new parameters; if it does not start with them, it continues with the previous ones.

    With the ``cause`` None, or once it was stopped meanwhile, it is not started. Return what to add to the outcome.
    Requests that come meanwhile stand in line if the model was available.
    """
    previous, previous_values = model.worker, model.over_http
    fresh = models.new_worker(previous.params.model_name, previous.worker_type, over_http)
    models.claim(model, fresh)
    ran, note = previous.is_available, ""
    try:
        if ran:
            fresh.stand_in(previous)
        model.worker, model.over_http = fresh, over_http
        if ran:
            note = _stop_replaced(previous)
        if cause is None:
            models.tell("changed", model)
            return note
        models.start_held(model, cause)
    except ModelyardError as error:
        reason = str(error)
        runs_on = ran and fresh.state is not State.STOPPED
        if runs_on and previous.state is not State.READY:
            previous.stand_in(previous)
        model.worker, model.over_http = previous, previous_values
        fresh.gate.close(lambda: NotReady(f"the change of model {fresh.name!r} failed: {reason}", retry_after=1))
        if not ran:
            models.tell("changed", model)
        if not runs_on:
            raise
        models.start_held(model, cause or "call")
        raise type(error)(f"{error}; it runs on with the parameters it had") from error
    finally:
        model.claimed = 0
    return note


def _stop_replaced(worker: ModelWorker) -> str:
    """Stop a worker that another replaces. Return a note where its engine failed to: that does not keep the other."""
    try:
        worker.stop()
    except EngineError as error:
        if worker.state is not State.FAILED:
            raise
        return f"; {error}"
    return ""
