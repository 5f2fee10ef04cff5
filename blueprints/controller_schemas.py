"""What the controller takes: instances in our form and in DB-GPT's, and the queries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marshmallow import ValidationError, fields, validate

from ..cluster.registry import instance_url, rows
from ..cluster.registry.base import ANY_GENERATION, Instance
from ..cluster.registry.row_json import MAX_INSTANCES
from ..errors import InvalidRequest
from ..types import JSONObject
from .worker_schemas import Base, Flag, integer, load, load_each, number

_LEAST_WEIGHT = 0.001
_PEER_FIELDS = ("weight", "enabled", "check_healthy", "prompt_template")


def _address(url: str) -> None:
    try:
        instance_url.check(url)
    except ValueError as error:
        raise ValidationError(str(error)) from None


def _plain(text: str) -> None:
    """Refuse what a store or a log can't keep as it is."""
    if not text.isprintable():
        raise ValidationError("must not hold control characters")


def _without_nul(text: str) -> None:
    if "\0" in text:
        raise ValidationError("must not hold NUL")


def _key() -> fields.String:
    # Any type is taken, not only the three of today: a newer part's instances concern nobody who does not ask for them.
    form = validate.Regexp(r"(?s).+@[A-Za-z0-9_.-]{1,64}\Z", error="must be name@type, as in smollm2-135m@llm")
    return fields.String(required=True, validate=[validate.Length(max=rows.KEY_LENGTH), _plain, form])


def _template() -> fields.String:
    return fields.String(validate=[validate.Length(max=rows.TEMPLATE_LENGTH), _without_nul])


class InstanceSchema(Base):
    """An instance in our form; ``healthy`` and ``last_heartbeat`` are the store's to say."""

    key = _key()
    url = fields.String(required=True, validate=_address)
    weight = number(_LEAST_WEIGHT, rows.MAX_WEIGHT)
    enabled = Flag()
    check_healthy = Flag()
    capabilities = fields.List(
        fields.String(validate=[validate.Length(1, rows.CAPABILITY_LENGTH), _plain]),
        validate=validate.Length(max=rows.CAPABILITIES),
    )
    said_load = fields.String(
        data_key="load", attribute="load", validate=[validate.Length(max=rows.LOAD_LENGTH), _plain]
    )
    prompt_template = _template()
    generation = integer(ANY_GENERATION, rows.MAX_GENERATION)


class PeerInstanceSchema(Base):
    """DB-GPT's ModelInstance in a body."""

    model_name = _key()
    host = fields.String(required=True)
    port = fields.Integer(required=True, strict=True, validate=validate.Range(1, 65535))
    weight = number(_LEAST_WEIGHT, rows.MAX_WEIGHT)
    enabled = Flag()
    check_healthy = Flag()
    prompt_template = _template()


class PeerDeregistrationSchema(Base):
    """The query of DELETE models: text, so numbers and flags are read from it."""

    model_name = _key()
    host = fields.String(required=True)
    port = fields.Integer(required=True, validate=validate.Range(1, 65535))
    remove_from_registry = fields.Boolean()


class PeerQuerySchema(Base):
    """The query of GET models."""

    model_name = fields.String()
    healthy_only = fields.Boolean()


class RowsQuerySchema(Base):
    """The query of GET instances."""

    key = fields.String()
    healthy = fields.Boolean()


class ForgetSchema(Base):
    """The query of DELETE instances."""

    forget = fields.Boolean()


INSTANCE = InstanceSchema()
PEER_INSTANCE = PeerInstanceSchema()
PEER_DEREGISTRATION = PeerDeregistrationSchema()
PEER_QUERY = PeerQuerySchema()
ROWS_QUERY = RowsQuerySchema()
FORGET = ForgetSchema()


def instances(entries: list[Any]) -> list[Instance]:
    """Return the instances of a body. Raises InvalidRequest, which names the entry at fault."""
    if len(entries) > MAX_INSTANCES:
        raise InvalidRequest(f"the body has {len(entries)} instances, at most {MAX_INSTANCES} are taken at once")
    return [Instance(**loaded) for loaded in load_each(INSTANCE, entries)]


def peer_instance(body: Mapping[str, Any]) -> Instance:
    """Return the instance that a ModelInstance names. Raises InvalidRequest."""
    loaded = load(PEER_INSTANCE, body)
    told = {name: loaded[name] for name in _PEER_FIELDS if name in loaded}
    return Instance(loaded["model_name"], peer_url(loaded["host"], loaded["port"]), **told)


def peer_url(host: str, port: int) -> str:
    """Return the address of a peer's worker. Raises InvalidRequest."""
    url = instance_url.of_host_and_port(host, port)
    try:
        instance_url.check(url)
        if instance_url.host_and_port(url) is None:
            raise ValueError(f"{host!r} is neither a name nor an address")
    except ValueError as error:
        raise InvalidRequest.of_fields([{"field": "host", "message": str(error)}]) from None
    return url


def query(schema: Base, args: Mapping[str, str]) -> JSONObject:
    """Return the checked fields of a query, in which an empty value means absent."""
    return load(schema, {name: value for name, value in args.items() if value})
