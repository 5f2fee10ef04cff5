"""The OpenAPI document: whole, valid, of the calls that a service has, and of one source with the code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from marshmallow import Schema, fields, validate
from modelyard import Modelyard
from modelyard.access.tokens import INFER, digest_of, new_secret
from modelyard.blueprints import controller_schemas, worker_schemas
from modelyard.blueprints.openai import schemas
from modelyard.blueprints.openapi.descriptions import DESCRIPTIONS
from modelyard.blueprints.openapi.document import APIS, OTHER_PATHS, REFUSALS
from modelyard.blueprints.openapi.shapes import nullable, record_of
from modelyard.blueprints.request.fields import Base
from modelyard.server.extension import create_app
from modelyard.settings.settings import Settings
from modelyard.types import ModelOutput
from openapi_spec_validator import validate as check_document
from werkzeug.routing import Rule

ROLES = {"standalone": "memory:", "worker": None, "controller": "memory:", "gateway": "memory:"}


PAGES = {"modelyard_docs", "modelyard_pages", ""}
"""The blueprints of pages for people: no calls. Without one is the redirect of the service's first address."""


def blueprint_of(rule: Rule) -> str:
    return rule.endpoint.rpartition(".")[0]


def app_of(folder: Path, role: str = "standalone", **settings: Any) -> Flask:
    registry = ROLES[role]
    return create_app(Settings(state_dir=str(folder), role=role, registry=registry, models=[], **settings))


def document_of(app: Flask, path: str = "/openapi.json") -> dict[str, Any]:
    app.extensions["modelyard"].start = lambda: None  # which the first request calls
    response = app.test_client().get(path)
    assert response.status_code == 200
    document: dict[str, Any] = response.get_json()
    return document


def operations_of(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path in document["paths"].values():
        yield from path.values()


@pytest.mark.parametrize("role", ROLES)
def test_the_document_of_every_role_is_valid_and_has_its_calls(tmp_path: Path, role: str):
    document = document_of(app_of(tmp_path, role))
    check_document(document)
    assert document["openapi"].startswith("3.1.")
    tags = {tag for operation in operations_of(document) for tag in operation["tags"]}
    assert ("OpenAI" in tags) == (role in ("standalone", "gateway"))
    assert ("Worker" in tags) == (role != "controller")
    assert ("Controller" in tags) == (role != "worker")
    assert ("post" in document["paths"].get("/api/controller/instances", {})) == (role in ("standalone", "controller"))


def test_no_route_is_forgotten(tmp_path: Path):
    app = app_of(tmp_path)
    document = document_of(app)
    described = set()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            described |= {(method.upper(), each) for each in [path, *operation.get(OTHER_PATHS, [])]}
    routed = {
        (method, rule.rule.replace("<path:", "{").replace(">", "}"))
        for rule in app.url_map.iter_rules()
        if rule.endpoint.rpartition(".")[2] not in REFUSALS and blueprint_of(rule) not in PAGES
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert described == routed
    assert {blueprint_of(rule) for rule in app.url_map.iter_rules()} == {*APIS, *PAGES}


def test_a_path_with_v1_is_the_first_and_names_the_others(tmp_path: Path):
    paths = document_of(app_of(tmp_path))["paths"]
    assert paths["/v1/embeddings"]["post"][OTHER_PATHS] == ["/api/v1/embeddings", "/embeddings"]
    assert paths["/v1/models/{name}"]["get"]["parameters"][0]["name"] == "name"


def test_in_an_application_it_is_below_the_prefix(tmp_path: Path):
    app = Flask("shop")
    Modelyard(app, url_prefix="/ml", openai=True, models=[], state_dir=str(tmp_path))
    document = document_of(app, "/ml/openapi.json")
    check_document(document)
    assert all(path.startswith("/ml/") for path in document["paths"])
    assert "/ml/v1/chat/completions" in document["paths"]


def schema_classes() -> list[type[Schema]]:
    modules = (schemas, worker_schemas, controller_schemas)
    found = {cls for module in modules for cls in vars(module).values() if isinstance(cls, type)}
    named = [cls for cls in found if issubclass(cls, Base) and cls is not Base]
    return sorted((cls for cls in named if not cls.__name__.startswith("_")), key=lambda cls: cls.__name__)


@pytest.mark.parametrize("cls", schema_classes())
def test_the_fields_of_every_schema_are_there_with_their_limits(tmp_path: Path, cls: type[Schema]):
    candidates = []
    for operation in operations_of(document_of(app_of(tmp_path))):
        if body := operation.get("requestBody"):
            schema = body["content"]["application/json"]["schema"]
            candidates.append(schema.get("items", schema)["properties"])
        query = [each for each in operation.get("parameters", []) if each["in"] == "query"]
        candidates.append({each["name"]: each["schema"] for each in query})
    expected = {field.data_key or name: field for name, field in cls().fields.items()}
    properties = next(each for each in candidates if each.keys() >= expected.keys())
    for name, field in expected.items():
        for check in field.validators:
            if isinstance(check, validate.Range):
                limits = (properties[name]["minimum"], properties[name]["maximum"])
                assert limits == (check.min, check.max), name
            if isinstance(check, validate.OneOf):
                assert set(properties[name]["enum"]) - {None} == set(check.choices), name
            if isinstance(check, validate.Length) and isinstance(field, fields.List):
                assert properties[name]["maxItems"] == check.max, name


def test_it_tells_nothing_of_the_configuration_and_needs_nothing_from_elsewhere(tmp_path: Path):
    token = f"team {INFER} {digest_of(new_secret()).hex()}"
    bare = document_of(app_of(tmp_path / "bare"))
    guarded = document_of(app_of(tmp_path / "guarded", tokens=[token], port=7001, max_body_bytes=5_000_000))
    assert bare == guarded
    text = json.dumps(bare)
    assert "http:" not in text
    assert "https:" not in text
    assert str(tmp_path) not in text


def test_a_call_has_the_scopes_that_the_guard_wants(tmp_path: Path):
    paths = document_of(app_of(tmp_path))["paths"]
    assert paths["/v1/chat/completions"]["post"]["security"] == [{"bearer": ["infer"]}, {"x-api-key": ["infer"]}]
    assert paths["/api/worker/apply"]["post"]["security"][0] == {"bearer": ["admin"]}
    assert paths["/api/controller/models"]["get"]["security"][0] == {"bearer": ["infer", "worker"]}
    assert paths["/healthz"]["get"]["security"] == []


def test_errors_have_the_shape_and_the_status_of_their_api(tmp_path: Path):
    document = document_of(app_of(tmp_path))
    paths, responses = document["paths"], document["components"]["responses"]

    def statuses(path: str) -> set[str]:
        return set(paths[path]["post"]["responses"])

    assert {"400", "401", "404", "413", "503"} <= statuses("/v1/chat/completions")
    assert "422" not in statuses("/v1/chat/completions")
    assert "529" in statuses("/v1/messages")
    assert {"422", "404"} <= statuses("/api/worker/embeddings")
    assert "404" not in statuses("/api/worker/generate"), "such a refusal has the status 200"
    assert list(responses["Problem422"]["content"]) == ["application/problem+json"]
    assert responses["OpenAI404"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/OpenAIError"
    }
    assert "Retry-After" in responses["Anthropic529"]["headers"]


def test_the_document_is_made_once_and_a_client_that_has_it_is_told(tmp_path: Path):
    app = app_of(tmp_path)
    app.extensions["modelyard"].start = lambda: None
    client = app.test_client()
    first = client.get("/openapi.json")
    again = client.get("/openapi.json", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    assert client.get("/openapi.json").data == first.data
    assert first.headers["Content-Type"] == "application/json"


def test_every_field_has_a_description(tmp_path: Path):
    described: dict[str, str] = {}
    for operation in operations_of(document_of(app_of(tmp_path))):
        if body := operation.get("requestBody"):
            schema = body["content"]["application/json"]["schema"]
            fields = schema.get("items", schema)["properties"]
            described |= {name: field["description"] for name, field in fields.items()}
        query = [each for each in operation.get("parameters", []) if each["in"] == "query"]
        described |= {each["name"]: each["description"] for each in query}
    assert described == DESCRIPTIONS, "some have none, or some are of no field"


def test_what_may_be_left_out_may_be_null(tmp_path: Path):
    paths = document_of(app_of(tmp_path))["paths"]
    chat = paths["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert chat["properties"]["seed"]["type"] == ["integer", "null"]
    assert chat["properties"]["messages"]["type"] == "array"
    assert chat["required"] == ["messages"]


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, {"type": ["string", "null"]}),
        ({"type": "string", "enum": ["a"]}, {"type": ["string", "null"], "enum": ["a", None]}),
        ({"anyOf": [{"type": "string"}]}, {"anyOf": [{"type": "string"}, {"type": "null"}]}),
        ({"$ref": "#/x"}, {"anyOf": [{"$ref": "#/x"}, {"type": "null"}]}),
        ({}, {}),
    ],
)
def test_a_schema_that_takes_null(schema: dict[str, Any], expected: dict[str, Any]):
    assert nullable(schema) == expected
    assert nullable(expected) == expected


def test_a_dataclass_describes_its_own_answer():
    schema = record_of(ModelOutput)
    assert schema["required"] == list(ModelOutput().to_dict())
    assert schema["properties"]["finish_reason"] == {"type": ["string", "null"]}
    assert schema["properties"]["usage"] == {"type": ["object", "null"]}
