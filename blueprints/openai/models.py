"""The list of models, aliases included, and the model of a request."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from ...errors import NotReady, UnknownModel
from ...types import JSONObject, WorkerType, split_worker_key
from ...worker.protocol import Service, ServiceState
from ...worker.states import State, best_states
from ..request.fields import fault
from ..request.keys import check_model, key_of_request, visible

_CAPABILITIES = {WorkerType.LLM: "completion", WorkerType.TEXT2VEC: "embedding", WorkerType.RERANKER: "rerank"}

_STATUS = {
    State.READY: "loaded",
    State.UNHEALTHY: "loaded",
    State.STARTING: "loading",
    State.LOADING: "loading",
    State.UNLOADED: "unloaded",
    State.UNLOADING: "unloaded",
    State.STOPPING: "stopped",
    State.STOPPED: "stopped",
    State.FAILED: "failed",
}
"""The words of llama-server for the state of a model, and ``stopped`` for one that no request loads."""

_NOT_YET = (ServiceState.STARTING.value, ServiceState.WAITING.value, ServiceState.DISCONNECTED.value)


def model_entries(service: Service, created: int) -> dict[str, JSONObject]:
    """Return OpenAI's object of each model and alias, by its name; nothing is started, and no model is called.

    An alias has the entry of its model, with ``alias_of``. It is left out while there is no such model.
    """
    kinds: dict[str, set[WorkerType]] = {}
    for instance in service.manager.get_all_model_instances(healthy_only=False):
        name, kind = split_worker_key(instance.model_name)
        kinds.setdefault(name, set()).add(kind)
    by_key = service.manager.model_states().items()
    states = best_states((key.rpartition("@")[0], state) for key, state in by_key)
    lengths, with_images = service.manager.context_lengths(), service.manager.models_with_images()
    entries = {
        name: {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "modelyard",
            "capabilities": [
                *sorted(_CAPABILITIES[kind] for kind in kinds[name]),
                *(["vision"] if name in with_images else []),
            ],
            "status": {"value": _STATUS[states.get(name, State.FAILED)]},
            **({"max_model_len": lengths[name]} if name in lengths else {}),
        }
        for name in kinds
    }
    aliases = {
        alias: {**entries[model], "id": alias, "alias_of": model}
        for alias, model in service.settings.aliases.items()
        if model in entries
    }
    return dict(sorted({**entries, **aliases}.items()))


def anthropic_entry(entry: JSONObject) -> JSONObject:
    """Return Anthropic's object of a model for that of OpenAI."""
    created = datetime.fromtimestamp(entry["created"], UTC)
    return {
        "type": "model",
        "id": entry["id"],
        "display_name": entry["id"],
        "created_at": created.isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
        "max_input_tokens": entry.get("max_model_len"),
    }


def anthropic_list(entries: Iterable[JSONObject]) -> JSONObject:
    """Return Anthropic's list of the models that generate text: all of them, on one page."""
    models = [anthropic_entry(entry) for entry in entries if "completion" in entry["capabilities"]]
    first, last = (models[0]["id"], models[-1]["id"]) if models else (None, None)
    return {"data": models, "has_more": False, "first_id": first, "last_id": last}


def unknown_model(service: Service, entries: JSONObject, name: str) -> UnknownModel:
    """Return the error for a name that is not among the entries. Raises NotReady while some may be missing."""
    _check_complete(service)
    return UnknownModel.among(entries, service.settings.aliases.get(name, name))


def model_of(service: Service, body: JSONObject, *types: WorkerType) -> str:
    """Return the model in a body; without one the default, or the only model of the first of ``types`` that has any.

    Raises InvalidRequest if there are several, UnknownModel if there is none, Forbidden if the key of the request may
    use none of them.
    """
    model = body.get("model")
    if model is not None:
        return str(model)  # of another type than text: the schema refuses it
    names = service.manager.default_models(*types)
    allowed = visible(names)
    if len(allowed) == 1:
        return allowed[0]
    if allowed:
        raise fault("model", f"is missing: give one of {', '.join(allowed)}")
    if names:
        check_model(names[0], key_of_request())
    _check_complete(service)
    raise UnknownModel(f"no model is given, and there is none of type {' or '.join(types)}")


def _check_complete(service: Service) -> None:
    """Raise NotReady while this service may not know all of its models."""
    status = service.status()
    if status["state"] in _NOT_YET:
        raise NotReady(f"the models are not there yet: {status['reason']}", retry_after=2)
