"""Is it alive, is it ready: for load balancers, systemd, and DB-GPT's clients."""

from __future__ import annotations

from flask import Blueprint, Response

from ..worker.protocol import Service
from .request.bodies import json_response


def health_blueprint(
    runtime: Service, url_prefix: str, probes_prefix: str, name: str = "modelyard_health"
) -> Blueprint:
    """Return ``/healthz`` and ``/readyz`` under ``probes_prefix``, and DB-GPT's ``/health`` under the API's prefix."""
    blueprint = Blueprint(name, __name__)

    @blueprint.get(f"{probes_prefix}/healthz")
    def healthz() -> Response:
        """200 as long as the process answers."""
        return json_response({"status": "ok"})

    @blueprint.get(f"{url_prefix}/health")
    def health() -> Response:
        """What DB-GPT's clients ask."""
        return json_response({"status": "ok"})

    @blueprint.get(f"{probes_prefix}/readyz")
    def readyz() -> Response:
        """200 when nothing is starting and a model is ready, or none is configured; 503 with the reason else."""
        status = runtime.status()
        response = json_response(status, 200 if status["ready"] else 503)
        if not status["ready"]:
            response.headers["Retry-After"] = "1"
        return response

    return blueprint
