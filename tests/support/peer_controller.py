"""A controller as DB-GPT's is: its four calls, its faults, and keys that it does not know refused."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from flask import Flask, Response, jsonify, request


@dataclass
class ModelInstance:
    """The nine fields that 0.5 knows."""

    model_name: str
    host: str
    port: int
    weight: float | None = 1.0
    check_healthy: bool | None = True
    healthy: bool | None = False
    enabled: bool | None = True
    prompt_template: str | None = None
    last_heartbeat: str | None = None


class PeerController:
    """Keeps what is registered; ``app`` serves it under ``/api``."""

    def __init__(self, row: type[ModelInstance] = ModelInstance) -> None:
        """Answer with rows of the class ``row``."""
        self._row = row
        self.rows: dict[tuple[str, str, int], ModelInstance] = {}
        self.calls: list[str] = []
        """Each request: method and path."""
        self.app = Flask("peer")
        self.app.before_request(lambda: self.calls.append(f"{request.method} {request.path}"))
        self.app.register_error_handler(404, self._not_found)
        self.app.register_error_handler(TypeError, self._unprocessable)
        self.app.add_url_rule("/api/controller/models", "register", self._register, methods=["POST"])
        self.app.add_url_rule("/api/controller/models", "deregister", self._deregister, methods=["DELETE"])
        self.app.add_url_rule("/api/controller/models", "list", self._list, methods=["GET"])
        self.app.add_url_rule("/api/controller/heartbeat", "heartbeat", self._heartbeat, methods=["POST"])

    def _register(self) -> Response:
        told = self._row(**request.get_json())
        row = self.rows.setdefault(self._name(told), told)
        row.weight, row.prompt_template = told.weight, told.prompt_template
        return self._beat(row)

    def _heartbeat(self) -> Response:
        told = self._row(**request.get_json())
        return self._beat(self.rows.setdefault(self._name(told), told))

    def _beat(self, row: ModelInstance) -> Response:
        row.healthy, row.last_heartbeat = True, datetime(2026, 11, 21, 6, 46, 5, 70_425).isoformat()
        return jsonify(True)

    def _deregister(self) -> Response:
        name = request.args["model_name"], request.args["host"], int(request.args["port"])
        if name in self.rows:
            self.rows[name].healthy = False
            if request.args.get("remove_from_registry") == "true":
                del self.rows[name]
        return jsonify(True)

    def _list(self) -> Response:
        name, healthy_only = request.args.get("model_name"), request.args.get("healthy_only") == "true"
        rows = [row for row in self.rows.values() if name in (None, row.model_name)]
        return jsonify([asdict(row) for row in rows if row.healthy or not healthy_only])

    @staticmethod
    def _name(row: ModelInstance) -> tuple[str, str, int]:
        return row.model_name, row.host, row.port

    @staticmethod
    def _not_found(error: Exception) -> tuple[Any, int]:
        return jsonify({"detail": "Not Found"}), 404

    @staticmethod
    def _unprocessable(error: Exception) -> tuple[Any, int]:
        return jsonify({"detail": [{"loc": ["body", "model_name"], "msg": str(error), "type": "value_error"}]}), 422
