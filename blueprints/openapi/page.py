"""``/docs``: the OpenAPI document as a page to read, made by the server: no script, and nothing from elsewhere."""

from __future__ import annotations

import functools
import hashlib
import re
import shlex
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any, NamedTuple

import orjson
from flask import Blueprint, Response, current_app, request
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ...types import JSONObject
from ..request.guard import origin_of
from ..request.mounted import MountedBlueprint
from .document import OTHER_PATHS, document
from .notation import limits_of, name_of, prose, type_of

_BASE = re.compile(r"https?://[A-Za-z0-9.:_\[\]-]{1,255}(/[A-Za-z0-9._~/-]*)?")
_ANY_BASE = "http://127.0.0.1:8000"
_POLICY = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_BASE_MARK = "\0"
"""Stands for the address of the service in the page that is kept."""
_TITLES: Mapping[str, str] = {
    "OpenAI": "OpenAI's API, and Anthropic's messages",
    "Worker": "The worker, as DB-GPT's API",
    "Controller": "The controller: the registry of the cluster",
    "Probes": "Health, metrics and documents",
}
"""The headings of the tags."""


class Field(NamedTuple):
    """A field of a body, or a parameter of a path or query."""

    name: str
    place: str
    """``path`` or ``query``; empty for a field of the body."""
    type: Markup
    limits: str
    is_required: bool
    description: Markup


class Operation(NamedTuple):
    """One call, as the page shows it."""

    id: str
    method: str
    path: str
    others: list[str]
    """The paths at which it is served too."""
    summary: Markup
    scopes: list[str]
    """The scopes of which a token needs one; empty for a call that needs none."""
    fields: tuple[Field, ...]
    is_list: bool
    """Whether the body is a list of objects with these fields."""
    curl: str
    streams: bool
    """Whether ``"stream": true`` in the body asks for a stream."""
    answers: list[tuple[str, Markup]]
    """The media types of the answer, with their types."""
    errors: list[tuple[str, str]]
    """The statuses of errors, each with the name of its component."""


class Failure(NamedTuple):
    """A status that several calls answer with: why, and with which body."""

    name: str
    status: str
    reasons: str
    body: str


def docs_blueprint(prefix: str, path_prefix: str, name: str = "modelyard_docs") -> Blueprint:
    """Return the blueprint of the page, below ``path_prefix``; ``prefix`` is that of the cluster's calls.

    The page shows what ``openapi.json`` beside it has, and needs no rights as that needs none. Its style is a file: an
    application may set a policy of its own, which forbids what is inline.
    """
    blueprint = MountedBlueprint(name, __name__)
    style = (files(__package__) / "templates" / "docs.css").read_bytes()

    @functools.cache
    def rendered() -> str:
        return _rendered(document(current_app, prefix))

    @blueprint.get(f"{path_prefix}/docs")
    def docs() -> Response:
        page = rendered().replace(_BASE_MARK, _address(origin_of(request) + request.script_root))
        return _response(page.encode(), "text/html; charset=utf-8")

    @blueprint.get(f"{path_prefix}/docs.css")
    def docs_style() -> Response:
        return _response(style, "text/css; charset=utf-8")

    return blueprint


def _response(data: bytes, content_type: str) -> Response:
    """Return ``data``, which a browser keeps and asks again for."""
    response = Response(data, content_type=content_type)
    response.set_etag(hashlib.sha256(data).hexdigest()[:32])
    response.headers["Cache-Control"] = "no-cache"
    response.headers["Content-Security-Policy"] = _POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.make_conditional(request)
    return response


def _address(base: str) -> str:
    """Return the address that a browser has written, if it can stand in a command as it is; else the default one."""
    return base if _BASE.fullmatch(base) else _ANY_BASE


def _rendered(written: JSONObject) -> str:
    """Return the page of a document, with a mark for the address."""
    templates = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    groups = _groups(written)
    return templates.get_template("docs.html").render(
        info=written["info"],
        address=_BASE_MARK,
        groups=[(tag, _TITLES.get(tag, tag), calls) for tag, calls in groups.items()],
        first_with=_first_with(groups),
        schemas=[(name, type_of(schema)) for name, schema in sorted(written["components"]["schemas"].items())],
        failures=[_failure(name, body) for name, body in sorted(written["components"].get("responses", {}).items())],
    )


def _groups(written: JSONObject) -> dict[str, list[Operation]]:
    """Return the operations by their tag, in the order of the document."""
    groups: dict[str, list[Operation]] = {}
    for path, operations in written["paths"].items():
        for method, operation in operations.items():
            groups.setdefault(operation["tags"][0], []).append(_operation(method.upper(), path, operation))
    return groups


def _first_with(groups: Mapping[str, list[Operation]]) -> dict[tuple[Field, ...], Operation]:
    """Return the first operation of those that have the same fields: the others refer to it."""
    first: dict[tuple[Field, ...], Operation] = {}
    for call in (call for calls in groups.values() for call in calls):
        first.setdefault(call.fields, call)
    return first


def _operation(method: str, path: str, operation: JSONObject) -> Operation:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    schema, examples = content.get("schema", {}), content.get("examples", {})
    responses = operation["responses"]
    return Operation(
        id=operation["operationId"],
        method=method,
        path=path,
        others=operation.get(OTHER_PATHS, []),
        summary=prose(operation["summary"]),
        scopes=next(iter(operation["security"][0].values())) if operation["security"] else [],
        fields=(*_parameters(operation), *_body_fields(schema.get("items", schema))),
        is_list="items" in schema,
        curl=_curl(method, path, operation, examples.get("whole", {}).get("value")),
        streams="stream" in examples,
        answers=list(_answers(responses["200"].get("content", {}))),
        errors=[(code, name_of(body["$ref"])) for code, body in responses.items() if "$ref" in body],
    )


def _parameters(operation: JSONObject) -> Iterator[Field]:
    for each in operation.get("parameters", ()):
        schema = each["schema"]
        yield Field(
            each["name"],
            each["in"],
            type_of(schema),
            limits_of(schema),
            each["required"],
            prose(each.get("description", "")),
        )


def _body_fields(schema: JSONObject) -> Iterator[Field]:
    """Yield the fields of a body, the required ones first."""
    required = schema.get("required", ())
    fields = schema.get("properties", {}).items()
    for name, field in sorted(fields, key=lambda field: field[0] not in required):
        yield Field(name, "", type_of(field), limits_of(field), name in required, prose(field.get("description", "")))


def _answers(content: JSONObject) -> Iterator[tuple[str, Markup]]:
    for media_type, each in content.items():
        schema = each.get("x-item-schema") or each["schema"]
        data = schema.get("properties", {}).get("data", {})
        yield media_type, type_of(data.get("contentSchema", schema))


def _curl(method: str, path: str, operation: JSONObject, example: Any) -> str:
    """Return a call by curl; the address and the token stand in variables of the shell."""
    named = re.sub(r"{(\w+)}", lambda match: match[1].upper(), path)
    query = "&".join(
        f"{each['name']}={each['name'].upper()}"
        for each in operation.get("parameters", ())
        if each["in"] == "query" and each["required"]
    )
    url = f'"$MODELYARD_URL{named}{f"?{query}" if query else ""}"'
    default = "GET" if example is None else "POST"
    words = ["curl", *([] if method == default else ["-X", method]), url]
    lines = [" ".join(words)]
    if operation["security"]:
        lines.append('-H "Authorization: Bearer $MODELYARD_TOKEN"')
    if example is not None:
        lines.append(f"-d {shlex.quote(orjson.dumps(example).decode())}")
    return " \\\n  ".join(lines)


def _failure(name: str, body: JSONObject) -> Failure:
    schemas = [name_of(each["schema"].get("$ref", "")) for each in body["content"].values()]
    return Failure(name, re.sub(r"\D", "", name), body["description"], schemas[0])
