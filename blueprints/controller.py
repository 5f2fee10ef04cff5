"""The registry over HTTP: our calls, whole rows and many at once, and DB-GPT's calls, a view of the same table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from flask import Blueprint, Request, Response, g, request

from ..cluster.registry import row_json
from ..cluster.registry.base import ANY_GENERATION, Instance, Receipt, Registry
from ..cluster.registry.peers import to_peer
from ..settings.settings import Settings
from ..types import JSONObject, plain
from . import controller_schemas as schemas
from .request import guard as access
from .request import problems as errors
from .request.bodies import json_response, read_list, read_object
from .request.calls import log_access

RegistryOf = Callable[[], Registry]
Check = Callable[[Request, Sequence[str]], None]
"""Raises where a request may not name one of these addresses."""


ROUTINE = ("beat_instances", "heartbeat", "instances", "models")
"""The calls that every process of a cluster makes every few seconds."""


def controller_blueprint(
    registry_of: RegistryOf,
    settings: Settings,
    url_prefix: str,
    name: str = "modelyard_controller",
    check_registration: Check | None = None,
) -> Blueprint:
    """Return the calls under ``url_prefix``; the registry is looked up at each request.

    They hold no thread of the budget: a registry must be heard while every model is busy. What may be registered
    says the guard of `access`, unless ``check_registration`` does. Raises ConfigError.
    """
    blueprint = Blueprint(name, __name__, url_prefix=f"{url_prefix}/controller")
    errors.install(blueprint)
    log_access(blueprint, enabled=settings.access_log, routine=ROUTINE)
    guard = access.install(blueprint, settings)
    check = check_registration or guard.check_registration
    _add_instances(blueprint, registry_of, settings.max_body_bytes, check)
    _add_peers_changes(blueprint, registry_of, settings.max_body_bytes, check)
    _add_peers_list(blueprint, registry_of)
    return blueprint


def _add_instances(blueprint: Blueprint, registry_of: RegistryOf, limit: int, check: Check) -> None:
    def named() -> list[Instance]:
        instances = schemas.instances(read_list(request, limit))
        check(request, [instance.url for instance in instances])
        return instances

    @blueprint.post("/instances")
    def beat_instances() -> Response:
        beaten = registry_of().beat(named())
        return json_response({"instances": _answer(beaten.receipts), "interval": beaten.interval})

    @blueprint.delete("/instances")
    def deregister_instances() -> Response:
        forget = schemas.query(schemas.FORGET, request.args).get("forget", False)
        return json_response({"instances": _answer(registry_of().deregister(named(), forget=forget))})

    @blueprint.get("/instances")
    def instances() -> Response:
        asked = schemas.query(schemas.ROWS_QUERY, request.args)
        healthy = asked.get("healthy")
        found = registry_of().instances(asked.get("key"), healthy_only=healthy is True)
        if healthy is False:
            found = [row for row in found if not row.healthy]
        return json_response([row_json.row(row) for row in found])


def _answer(receipts: list[Receipt]) -> list[JSONObject]:
    return [plain(receipt) for receipt in receipts]


def _add_peers_changes(blueprint: Blueprint, registry_of: RegistryOf, limit: int, check: Check) -> None:
    def named() -> Instance:
        instance = schemas.peer_instance(read_object(request, limit))
        g.modelyard_line.model = instance.key
        check(request, [instance.url])
        return instance

    @blueprint.post("/models")
    def register_model() -> Response:
        """Register anew: a client that knows no generations has the last word."""
        registry_of().beat([named()])
        return json_response(True)

    @blueprint.post("/heartbeat")
    def heartbeat() -> Response:
        """Refresh a row as it is; register an unknown instance."""
        registry_of().beat([replace(named(), generation=ANY_GENERATION)])
        return json_response(True)

    @blueprint.delete("/models")
    def deregister_model() -> Response:
        asked = schemas.query(schemas.PEER_DEREGISTRATION, request.args)
        instance = Instance(asked["model_name"], schemas.peer_url(asked["host"], asked["port"]))
        g.modelyard_line.model = instance.key
        check(request, [instance.url])
        registry_of().deregister([instance], forget=asked.get("remove_from_registry", False))
        return json_response(True)


def _add_peers_list(blueprint: Blueprint, registry_of: RegistryOf) -> None:
    @blueprint.get("/models")
    def models() -> Response:
        """Answer the rows that can be said as host and port: no others can be reached by who asks here."""
        asked = schemas.query(schemas.PEER_QUERY, request.args)
        found = registry_of().instances(asked.get("model_name"), healthy_only=asked.get("healthy_only", False))
        return json_response([plain(peer) for row in found if (peer := to_peer(row)) is not None])
