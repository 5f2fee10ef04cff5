"""Health and readiness, for load balancers, systemd and DB-GPT's clients."""

from __future__ import annotations

from flask import Blueprint, Response

from ..worker.protocol import Service
from .request.bodies import json_response
from .request.mounted import MountedBlueprint


def health_blueprint(
    service: Service, url_prefix: str, probes_prefix: str, name: str = "modelyard_health"
) -> Blueprint:
    """Return ``/healthz`` and ``/readyz`` under ``probes_prefix``, and DB-GPT's ``/health`` under the API's prefix."""
    blueprint = MountedBlueprint(name, __name__)

    @blueprint.get(f"{probes_prefix}/healthz")
    def healthz() -> Response:
        """Answer 200 while the process runs."""
        return json_response({"status": "ok"})

    @blueprint.get(f"{url_prefix}/health")
    def health() -> Response:
        """Answer 200 to DB-GPT's clients."""
        return json_response({"status": "ok"})

    @blueprint.get(f"{probes_prefix}/readyz")
    def readyz() -> Response:
        """Answer 200 if no model starts and one is ready, or none is configured; else 503 with state and reason."""
        status = service.status()
        response = json_response(status, 200 if status["ready"] else 503)
        if not status["ready"]:
            response.headers["Retry-After"] = "1"
        return response

    return blueprint
