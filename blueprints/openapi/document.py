"""``/openapi.json``: the OpenAPI document of the calls that this service has, made by apispec on the first request."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from flask import Blueprint, Flask, Response, current_app, request
from werkzeug.routing import Rule

from ...access.tokens import ADMIN, INFER, METRICS
from ...types import JSONObject
from ...version import __version__
from ..request.bodies import JSON_TYPE
from ..request.guard import needs_of
from ..request.mounted import MountedBlueprint
from . import cluster_calls, openai_answers, openai_calls
from .calls import Body, Call, ErrorShape
from .descriptions import DESCRIPTIONS
from .shapes import FILLED, INTEGER, STRING, array, nullable, record

if TYPE_CHECKING:
    from apispec import APISpec
    from apispec.ext.marshmallow import MarshmallowPlugin

VERSION = "3.1.0"
OTHER_PATHS = "x-also-at"
"""The paths at which an operation is served too."""
ITEM = "x-item-schema"
"""The schema of one output of a stream: what OpenAPI 3.2 calls ``itemSchema``."""


class _Api(NamedTuple):
    """The calls of one blueprint, by the names of their endpoints."""

    tag: str
    calls: Mapping[str, Call]
    needs: tuple[str, ...]
    """The scopes of calls that the guard does not list; empty where no call needs a scope."""
    headers: JSONObject
    """The headers of every answer."""


_ID_HEADERS = {"x-request-id": {"schema": STRING}, "openai-processing-ms": {"schema": STRING}}
APIS: Mapping[str, _Api] = {
    "modelyard_openai": _Api("OpenAI", openai_calls.CALLS, (INFER,), _ID_HEADERS),
    "modelyard_worker": _Api("Worker", cluster_calls.WORKER, (ADMIN,), {}),
    "modelyard_controller": _Api("Controller", cluster_calls.CONTROLLER, (ADMIN,), {}),
    "modelyard_health": _Api("Probes", cluster_calls.PROBES, (), {}),
    "modelyard_metrics": _Api("Probes", cluster_calls.PROBES, (METRICS,), {}),
    "modelyard_openapi": _Api("Probes", cluster_calls.PROBES, (), {}),
}
"""By the name of the blueprint."""
REFUSALS = frozenset({"refuse_method", "refuse_path"})
"""The endpoints of OpenAI's API that are no calls."""
_SCHEMAS: JSONObject = {**openai_answers.SCHEMAS, **cluster_calls.SCHEMAS}
_SECURITY_SCHEMES: JSONObject = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A token or API key: `Authorization: Bearer TOKEN`."},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "A token or API key."},
}
_HEADERS_OF_STATUS: Mapping[int, JSONObject] = {
    401: {"WWW-Authenticate": {"schema": STRING}},
    429: {"Retry-After": {"schema": INTEGER, "description": "Seconds."}},
    503: {"Retry-After": {"schema": INTEGER, "description": "Seconds."}},
    529: {"Retry-After": {"schema": INTEGER, "description": "Seconds."}},
}


def openapi_blueprint(prefix: str, path_prefix: str, name: str = "modelyard_openapi") -> Blueprint:
    """Return the blueprint of the document, below ``path_prefix``; ``prefix`` is that of the cluster's calls."""
    blueprint = MountedBlueprint(name, __name__)

    @functools.cache
    def rendered() -> tuple[bytes, str]:
        data = orjson.dumps(document(current_app, prefix))
        return data, hashlib.sha256(data).hexdigest()[:32]

    @blueprint.get(f"{path_prefix}/openapi.json")
    def openapi() -> Response:
        data, tag = rendered()
        response = Response(data, content_type=JSON_TYPE)
        response.set_etag(tag)
        response.headers["Cache-Control"] = "no-cache"
        response.make_conditional(request)
        return response

    return blueprint


def document(app: Flask, prefix: str) -> JSONObject:
    """Return the document of the calls that ``app`` routes; ``prefix`` is that of the worker and the controller."""
    from apispec import APISpec  # noqa: PLC0415 - few processes are asked for the document
    from apispec.ext.marshmallow import MarshmallowPlugin  # noqa: PLC0415

    plugin = MarshmallowPlugin()
    description = "Null means absent, and unknown fields are ignored. A body may have any Content-Type."
    spec = APISpec("modelyard", __version__, VERSION, plugins=[plugin], info={"description": description})
    for name, scheme in _SECURITY_SCHEMES.items():
        spec.components.security_scheme(name, scheme)
    writer = _Writer(spec, plugin, prefix)
    for rules in _rules_of_calls(app):
        writer.add(rules)
    writer.add_components()
    written: JSONObject = spec.to_dict()
    return written


def _rules_of_calls(app: Flask) -> Iterator[list[Rule]]:
    """Yield the rules of each call: the first is the path that the document has."""
    rules_of: dict[str, list[Rule]] = {}
    for rule in app.url_map.iter_rules():
        rules_of.setdefault(rule.endpoint, []).append(rule)
    for name in APIS:
        for endpoint, rules in rules_of.items():
            blueprint, _, call = endpoint.rpartition(".")
            if blueprint == name and call not in REFUSALS:
                yield sorted(rules, key=lambda rule: ("/v1/" not in rule.rule, len(rule.rule)))


class _Writer:
    """Writes operations, and the components that they refer to."""

    def __init__(self, spec: APISpec, plugin: MarshmallowPlugin, prefix: str) -> None:
        self._spec = spec
        self._plugin = plugin
        self._prefix = prefix
        self._errors: dict[str, JSONObject] = {}
        """The responses for errors, by the name of their component."""

    def add(self, rules: Sequence[Rule]) -> None:
        """Add the call that has these rules, under the first of them."""
        blueprint, _, name = rules[0].endpoint.rpartition(".")
        api = APIS[blueprint]
        call = api.calls[name]
        (method,) = (rules[0].methods or set()) - {"HEAD", "OPTIONS"}
        needs = needs_of(method, rules[0].rule.removeprefix(self._prefix), api.needs)
        operation: JSONObject = {
            "operationId": f"{api.tag.lower()}_{name}",
            "tags": [api.tag],
            "summary": call.summary,
            "security": [{scheme: list(needs)} for scheme in _SECURITY_SCHEMES] if needs else [],
            "responses": self._responses(call, api.headers),
        }
        if parameters := [*_path_parameters(rules[0]), *self._query_parameters(call)]:
            operation["parameters"] = parameters
        if call.body is not None:
            can_stream = bool(call.streams) and call.answer is not None
            content = {"schema": self._schema_of(call.body), "examples": _examples_of(call.body, streams=can_stream)}
            operation["requestBody"] = {"required": True, "content": {JSON_TYPE: content}}
        if len(rules) > 1:
            operation[OTHER_PATHS] = [_path_of(rule) for rule in rules[1:]]
        self._spec.path(_path_of(rules[0]), operations={method.lower(): operation})

    def _responses(self, call: Call, headers: JSONObject) -> JSONObject:
        content = {} if call.answer is None else {JSON_TYPE: {"schema": call.answer}}
        content |= {kind: _stream(kind, item) for kind, item in call.streams.items()}
        responses: JSONObject = {"200": {"description": "The answer.", "content": content, "headers": headers}}
        for status, schema in call.others.items():
            responses[str(status)] = {"description": "The answer.", "content": {JSON_TYPE: {"schema": schema}}}
        titles: dict[int, set[str]] = {}
        for error in call.raises:
            titles.setdefault(call.errors.status_of(error), set()).add(error.title)
        for status in sorted(titles.keys() - {200}):
            responses[str(status)] = self._error(call.errors, status, titles[status], headers)
        return responses

    def _error(self, shape: ErrorShape, status: int, titles: set[str], headers: JSONObject) -> JSONObject:
        """Return the reference to a response, which names all errors of its shape and status."""
        name = f"{shape.name}{status}"
        response = self._errors.setdefault(
            name,
            {
                "description": set(),
                "content": {shape.media_type: {"schema": shape.schema}},
                "headers": {**headers, **_HEADERS_OF_STATUS.get(status, {})},
            },
        )
        response["description"] |= titles
        return {"$ref": f"#/components/responses/{name}"}

    def _query_parameters(self, call: Call) -> list[JSONObject]:
        """Return the parameters of a query: an empty value of an optional one means that it is absent."""
        if call.query is None:
            return []
        parameters = self._converter.schema2parameters(call.query, location="query")
        return [
            _described(each["name"], each if each["required"] else {**each, "allowEmptyValue": True})
            for each in parameters
        ]

    def _schema_of(self, body: Body) -> JSONObject:
        """Return what the schema of a body checks, with what is checked by hand; null means absent."""
        schema: JSONObject = self._converter.schema2jsonschema(body.schema)
        required = [*schema.get("required", ()), *body.required]
        properties = schema["properties"]
        for name, more in body.more.items():
            properties[name] = {**properties.get(name, {}), **more}
        schema["properties"] = {
            name: _described(name, value if name in required else nullable(value)) for name, value in properties.items()
        }
        schema |= body.rules
        if required:
            schema["required"] = required
        return array(schema, most=body.most) if body.is_list else schema

    @property
    def _converter(self) -> Any:
        return self._plugin.converter

    def add_components(self) -> None:
        """Add the responses for errors, and the schemas that are referred to."""
        for name, response in self._errors.items():
            described = {**response, "description": "; ".join(sorted(response["description"])) + "."}
            self._spec.components.response(name, described)
        pending = _references(self._spec.to_dict())
        added: set[str] = set()
        while pending := pending - added:
            for name in sorted(pending):
                self._spec.components.schema(name, _SCHEMAS[name])
            added |= pending
            pending = _references({name: _SCHEMAS[name] for name in pending})


def _described(name: str, part: JSONObject) -> JSONObject:
    return {**part, "description": DESCRIPTIONS[name]} if name in DESCRIPTIONS else part


def _stream(media_type: str, item: JSONObject) -> JSONObject:
    """Return the content of a stream of items; for server-sent events the schema is that of one event."""
    if media_type != openai_calls.EVENTS:
        return {"schema": STRING, ITEM: item}
    data = {"type": "string", "contentMediaType": JSON_TYPE, "contentSchema": item}
    return {"schema": record({"data": data}, {"event": STRING})}


def _examples_of(body: Body, *, streams: bool) -> JSONObject:
    """Return the example of a body, and the same for a stream where a field of it asks for one."""
    examples = {"whole": {"value": body.example}}
    return examples | {"stream": {"value": {**body.example, "stream": True}}} if streams else examples


def _references(value: Any) -> set[str]:
    """Return the names of the schemas that a part of the document refers to."""
    return set(re.findall(r'"#/components/schemas/(\w+)"', orjson.dumps(value).decode()))


def _path_of(rule: Rule) -> str:
    return re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)


def _path_parameters(rule: Rule) -> list[JSONObject]:
    return [{"name": name, "in": "path", "required": True, "schema": FILLED} for name in sorted(rule.arguments)]
