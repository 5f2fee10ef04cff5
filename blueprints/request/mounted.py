"""The class of all blueprints: one that answers at every host of an application that matches hosts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Blueprint, current_app, request
from flask.blueprints import BlueprintSetupState

_HOST = "modelyard_host"
"""The name of the variable part that stands for a host. No view gets it."""


class MountedBlueprint(Blueprint):
    """A blueprint for an application that somebody else wrote.

    With ``host_matching`` a rule without a host would fit no request at all; its rules fit those to every host.
    """

    def __init__(self, name: str, import_name: str, **options: Any) -> None:
        """Take the arguments of `Blueprint`."""
        super().__init__(name, import_name, **options)
        self.record_once(_match_hosts)

    def make_setup_state(
        self, app: Any, options: dict[str, Any], first_registration: bool = False
    ) -> BlueprintSetupState:
        """Return what adds the rules to the application."""
        kind = _AnyHost if app.url_map.host_matching else BlueprintSetupState
        return kind(self, app, options, first_registration)


class _AnyHost(BlueprintSetupState):
    def add_url_rule(
        self, rule: str, endpoint: str | None = None, view_func: Callable[..., Any] | None = None, **options: Any
    ) -> None:
        super().add_url_rule(rule, endpoint, view_func, **{"host": f"<{_HOST}>", **options})


def _match_hosts(state: BlueprintSetupState) -> None:
    if state.app.url_map.host_matching:
        state.app.url_value_preprocessor(_drop_host)
        state.app.url_defaults(_add_host)


def _drop_host(endpoint: str | None, values: dict[str, Any] | None) -> None:
    if values is not None:
        values.pop(_HOST, None)


def _add_host(endpoint: str, values: dict[str, Any]) -> None:
    if current_app.url_map.is_endpoint_expecting(endpoint, _HOST):
        values.setdefault(_HOST, request.host)
