"""The bodies and queries that the controller accepts: instances in our form and in DB-GPT's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from marshmallow import ValidationError, fields, validate

from ..cluster.registry import dbgpt, limits
from ..cluster.registry.base import ANY_GENERATION, Instance
from ..cluster.registry.row_json import MAX_INSTANCES
from ..errors import InvalidRequest
from .request.fields import Base, Flag, fault, integer, load, load_each, number


def _fits(check: limits.Check) -> Callable[[Any], None]:
    """Return a validator that applies a limit of an instance."""

    def apply(value: Any) -> None:
        if message := check(value):
            raise ValidationError(message)

    return apply


def _text(check: limits.Check, **options: Any) -> fields.String:
    return fields.String(validate=_fits(check), **options)


class InstanceSchema(Base):
    """An instance in our form; ``healthy`` and ``last_heartbeat`` are set by the store."""

    key = _text(limits.key_fault, required=True)
    url = _text(limits.url_fault, required=True)
    weight = number(limits.MIN_WEIGHT, limits.MAX_WEIGHT)
    enabled = Flag()
    check_healthy = Flag()
    capabilities = fields.List(_text(limits.capability_fault), validate=validate.Length(max=limits.CAPABILITIES))
    load_ = _text(limits.load_fault, data_key="load", attribute="load")
    prompt_template = _text(limits.template_fault)
    generation = integer(ANY_GENERATION, limits.MAX_GENERATION)


class DbgptInstanceSchema(Base):
    """DB-GPT's ModelInstance in a body."""

    model_name = _text(limits.key_fault, required=True)
    host = fields.String(required=True)
    port = fields.Integer(required=True, strict=True, validate=validate.Range(1, 65535))
    weight = number(limits.MIN_WEIGHT, limits.MAX_WEIGHT)
    enabled = Flag()
    check_healthy = Flag()
    prompt_template = _text(limits.template_fault)


class DbgptDeregistrationSchema(Base):
    """The query of DELETE models, whose numbers and flags are text."""

    model_name = _text(limits.key_fault, required=True)
    host = fields.String(required=True)
    port = fields.Integer(required=True, validate=validate.Range(1, 65535))
    remove_from_registry = fields.Boolean()


class DbgptQuerySchema(Base):
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
DBGPT_INSTANCE = DbgptInstanceSchema()
DBGPT_DEREGISTRATION = DbgptDeregistrationSchema()
DBGPT_QUERY = DbgptQuerySchema()
ROWS_QUERY = RowsQuerySchema()
FORGET = ForgetSchema()


def instances(entries: list[Any]) -> list[Instance]:
    """Return the instances of a body. Raises InvalidRequest, which names the entry."""
    if len(entries) > MAX_INSTANCES:
        raise InvalidRequest(f"the body has {len(entries)} instances, at most {MAX_INSTANCES} are accepted at once")
    return [Instance(**loaded) for loaded in load_each(INSTANCE, entries)]


def dbgpt_instance(body: Mapping[str, Any]) -> Instance:
    """Return the instance of a ModelInstance. Raises InvalidRequest."""
    loaded = load(DBGPT_INSTANCE, body)
    key, host, port = (loaded.pop(name) for name in ("model_name", "host", "port"))
    return Instance(key, dbgpt_url(host, port), **loaded)


def dbgpt_url(host: str, port: int) -> str:
    """Return the address of a worker of DB-GPT. Raises InvalidRequest."""
    url = dbgpt.url_of(host, port)
    message = limits.url_fault(url)
    if message is None and dbgpt.host_and_port(url) is None:
        message = f"{host!r} is neither a name nor an address"
    if message:
        raise fault("host", message)
    return url
