"""The routes of OpenAI's calls under several prefixes, and the answers to methods and paths that are not among them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from flask import Blueprint, Response, request
from flask.blueprints import BlueprintSetupState
from werkzeug.exceptions import MethodNotAllowed, NotFound
from werkzeug.routing import Rule

_VERSION = "/v1"
_UNKNOWN_PATHS = ("", "/", "/<path:rest>")


def endpoint_of(path: str) -> str:
    """Return the name of a call, by its path below a prefix: ``chat_completions``, ``models_name``."""
    return "_".join(re.findall(r"\w+", path.replace("<path:", "")))


class Routes:
    """The routes of a blueprint, each under several prefixes."""

    def __init__(self, blueprint: Blueprint, prefixes: Sequence[str]) -> None:
        self._blueprint = blueprint
        self._prefixes = prefixes
        self._paths: set[str] = set()
        self._methods: dict[str, list[str]] = {}
        """The methods of each rule."""

    def add(self, method: str, path: str, view: Callable[..., Response]) -> None:
        """Answer ``method`` at ``path`` by ``view``."""
        self._paths.add(path.partition("<")[0])
        for prefix in self._prefixes:
            self._add(method, f"{prefix}{path}", path, view)

    def add_second_version(self, method: str, path: str, view: Callable[..., Response]) -> None:
        """Answer ``method`` at ``path`` below ``/v2``, beside each ``/v1``."""
        for prefix in self._prefixes:
            if prefix.endswith(_VERSION):
                self._add(method, f"{prefix.removesuffix(_VERSION)}/v2{path}", path, view)

    def _add(self, method: str, rule: str, path: str, view: Callable[..., Response]) -> None:
        self._methods.setdefault(rule, []).append(method)
        # `_refuse_method` answers OPTIONS: Flask's own answer would find that the rules there take every method.
        self._blueprint.add_url_rule(rule, endpoint_of(path), view, methods=[method], provide_automatic_options=False)

    def refuse_others(self) -> None:
        """Refuse other methods of the calls, and below ``/v1`` other paths, so that a client reads why.

        Call it after the last route was added. Only a rule without methods matches every method, made-up ones too.
        """
        versions = [prefix for prefix in self._prefixes if prefix.endswith(_VERSION)]
        self._answer_every_method("refuse_method", list(self._methods), self._refuse_method)
        unknown = [f"{prefix}{path}" for prefix in versions for path in _UNKNOWN_PATHS]
        self._answer_every_method("refuse_path", unknown, self._refuse_path)

    def _answer_every_method(self, name: str, rules: Sequence[str], view: Callable[..., Response]) -> None:
        endpoint = f"{self._blueprint.name}.{name}"
        self._blueprint.endpoint(endpoint)(view)

        def add_rules(state: BlueprintSetupState) -> None:
            for rule in rules:
                state.app.url_map.add(Rule(rule, endpoint=endpoint))

        self._blueprint.record(add_rules)

    def _refuse_method(self, **parts: str) -> Response:
        methods = self._methods[request.url_rule.rule] if request.url_rule is not None else []
        if request.method == "OPTIONS":
            response = Response()
            response.allow.update([*methods, "OPTIONS"])
            return response
        wanted = " or ".join(methods)
        raise MethodNotAllowed(methods, f"{request.method} is not allowed at {request.path}: use {wanted}")

    def _refuse_path(self, rest: str = "") -> Response:
        paths = ", ".join(sorted(self._paths))
        raise NotFound(f"{request.method} {request.path} is not served here; there are {paths}")
