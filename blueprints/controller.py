"""The registry over HTTP: our calls, with whole rows and many at once, and DB-GPT's calls on the same table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from flask import Blueprint, Request, Response, g, request

from ..cluster.registry import row_json
from ..cluster.registry.base import ANY_GENERATION, Instance, Receipt, Registry
from ..cluster.registry.dbgpt import listed
from ..settings.settings import Settings
from ..telemetry.metrics import Metrics
from ..types import JSONObject, plain
from ..worker.protocol import Keys
from . import controller_schemas as schemas
from .request import guard, problems
from .request.access_log import log_access
from .request.bodies import json_response, read_list, read_object
from .request.fields import load_query
from .request.keys import may_see
from .request.mounted import MountedBlueprint

RegistryOf = Callable[[], Registry]
RowsOf = Callable[[str | None], Sequence[Instance]]
"""Returns the instances of a worker key; of all for None."""
Check = Callable[[Request, Sequence[str]], None]
"""Raises where a request may not name one of these addresses."""

ROUTINE = ("beat_instances", "heartbeat", "instances", "models")
"""The calls that every process of a cluster makes every few seconds."""


def controller_blueprint(
    registry_of: RegistryOf,
    settings: Settings,
    url_prefix: str,
    name: str = "modelyard_controller",
    *,
    keys: Keys | None = None,
    check_registration: Check | None = None,
    metrics: Metrics | None = None,
) -> Blueprint:
    """Return the calls under ``url_prefix``; the registry is looked up at each request, ``keys`` are accepted.

    They hold no thread of the budget: a registry must answer while every model is busy. ``check_registration`` decides
    what may be registered, by default the guard. ``metrics`` count the requests. Raises ConfigError.
    """
    blueprint = _blueprint(name, settings, url_prefix, keys, metrics)
    check = check_registration or _guarded(blueprint, settings, keys)
    _add_changes(blueprint, registry_of, settings.max_body_bytes, check)
    _add_list(blueprint, lambda key: registry_of().instances(key))
    _add_dbgpt_changes(blueprint, registry_of, settings.max_body_bytes, check)
    _add_dbgpt_list(blueprint, registry_of)
    return blueprint


def instances_blueprint(
    rows_of: RowsOf, settings: Settings, url_prefix: str, *, keys: Keys | None = None, metrics: Metrics | None = None
) -> Blueprint:
    """Return the call of a controller that a gateway has too: the list of the instances. Raises ConfigError."""
    blueprint = _blueprint("modelyard_controller", settings, url_prefix, keys, metrics)
    _guarded(blueprint, settings, keys)
    _add_list(blueprint, rows_of)
    return blueprint


def _blueprint(name: str, settings: Settings, url_prefix: str, keys: Keys | None, metrics: Metrics | None) -> Blueprint:
    blueprint = MountedBlueprint(name, __name__, url_prefix=f"{url_prefix}/controller")
    problems.install(blueprint)
    log_access(blueprint, enabled=settings.access_log, routine=ROUTINE, metrics=metrics, keys=keys)
    return blueprint


def _guarded(blueprint: Blueprint, settings: Settings, keys: Keys | None) -> Check:
    return guard.install(blueprint, settings, keys, requires_keys=settings.requires_keys).check_registration


def _add_changes(blueprint: Blueprint, registry_of: RegistryOf, limit: int, check: Check) -> None:
    def body_of_request() -> list[Instance]:
        instances = schemas.instances(read_list(request, limit))
        check(request, [instance.url for instance in instances])
        return instances

    @blueprint.post("/instances")
    def beat_instances() -> Response:
        beaten = registry_of().beat(body_of_request())
        return json_response({"instances": _answer(beaten.receipts), "interval": beaten.interval})

    @blueprint.delete("/instances")
    def deregister_instances() -> Response:
        forget = load_query(schemas.FORGET, request.args).get("forget", False)
        return json_response({"instances": _answer(registry_of().deregister(body_of_request(), forget=forget))})


def _add_list(blueprint: Blueprint, rows_of: RowsOf) -> None:
    @blueprint.get("/instances")
    def instances() -> Response:
        query = load_query(schemas.ROWS_QUERY, request.args)
        healthy = query.get("healthy")
        rows = [row for row in rows_of(query.get("key")) if healthy is None or row.healthy is healthy]
        return json_response([row_json.whole(row) for row in rows if may_see(row.key)])


def _answer(receipts: list[Receipt]) -> list[JSONObject]:
    return [plain(receipt) for receipt in receipts]


def _add_dbgpt_changes(blueprint: Blueprint, registry_of: RegistryOf, limit: int, check: Check) -> None:
    def body_of_request() -> Instance:
        instance = schemas.dbgpt_instance(read_object(request, limit))
        g.modelyard_line.model = instance.key
        check(request, [instance.url])
        return instance

    @blueprint.post("/models")
    def register_model() -> Response:
        """Register with a new generation: a client that knows none has the last word."""
        registry_of().beat([body_of_request()])
        return json_response(True)

    @blueprint.post("/heartbeat")
    def heartbeat() -> Response:
        """Refresh a row as it is; register an unknown instance."""
        registry_of().beat([replace(body_of_request(), generation=ANY_GENERATION)])
        return json_response(True)

    @blueprint.delete("/models")
    def deregister_model() -> Response:
        query = load_query(schemas.DBGPT_DEREGISTRATION, request.args)
        instance = Instance(query["model_name"], schemas.dbgpt_url(query["host"], query["port"]))
        g.modelyard_line.model = instance.key
        check(request, [instance.url])
        registry_of().deregister([instance], forget=query.get("remove_from_registry", False))
        return json_response(True)


def _add_dbgpt_list(blueprint: Blueprint, registry_of: RegistryOf) -> None:
    @blueprint.get("/models")
    def models() -> Response:
        """Return the rows that have a host and a port: DB-GPT's clients can't reach others."""
        query = load_query(schemas.DBGPT_QUERY, request.args)
        rows = listed(registry_of(), query.get("model_name"), healthy_only=query.get("healthy_only", False))
        return json_response([plain(row) for row in rows if may_see(row.model_name)])
