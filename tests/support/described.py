"""The OpenAPI document of a service, and what it finds wrong with an answer."""

from __future__ import annotations

from typing import Any

from jsonschema import Draft202012Validator
from modelyard.blueprints.openapi.document import OTHER_PATHS


class Described:
    """The operations of a document by method and path, also by those that it only names."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._components = document["components"]
        self._operations = {
            (method.upper(), each): operation
            for path, operations in document["paths"].items()
            for method, operation in operations.items()
            for each in (path, *operation.get(OTHER_PATHS, ()))
        }

    def faults_of(self, method: str, path: str, status: int, media_type: str, body: Any, *, event: bool) -> list[str]:
        """Return what is wrong with a body, or with an event; nothing where the call is not in the document."""
        operation = self._operations.get((method, path))
        if operation is None:
            return []
        response = operation["responses"].get(str(status))
        if response is None:
            return [f"the status {status} is not documented"]
        if "$ref" in response:
            response = self._components["responses"][response["$ref"].rpartition("/")[2]]
        content = response["content"].get(media_type)
        if content is None:
            return [f"the media type {media_type} is not documented"]
        schema = content["schema"]["properties"]["data"]["contentSchema"] if event else content["schema"]
        errors = Draft202012Validator({**schema, "components": self._components}).iter_errors(body)
        return [f"{error.json_path}: {error.message[:300]}" for error in errors]
