"""ControllerCalls: calls one controller over HTTP, within a deadline, and turns responses into values or errors."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

import orjson

from ...errors import WorkerUnreachable
from ...sessions.session import Session
from ...wire.errors import PROBLEM_TYPE, error_of_response
from . import row_json
from .base import Beaten, Instance, Receipt

LARGEST_ANSWER = 64 * 1024 * 1024
_TRY_ANOTHER = frozenset({408, 429})
_LEAST = 0.05


class NoSuchCall(Exception):
    """The server does not have the call: it is not a controller, or not one of modelyard."""


class ControllerCalls:
    """The calls of one controller. Each ends by ``deadline`` (monotonic).

    They raise WorkerUnreachable if another controller should be called, NoSuchCall if the server does not have the
    call, and for a refusal the error of its code.
    """

    def __init__(self, url: str, session: Session) -> None:
        self.url = url
        self._session = session

    def beat(self, instances: Sequence[Instance], deadline: float) -> Beaten:
        """Register or refresh instances."""
        answer = self.ask("POST", "/instances", [row_json.sent(row) for row in instances], {}, deadline)
        try:
            return Beaten(row_json.read_receipts(answer, instances), float(answer["interval"]))
        except (KeyError, TypeError, ValueError) as error:
            raise self.nonsense(error) from None

    def deregister(self, instances: Sequence[Instance], forget: bool, deadline: float) -> list[Receipt]:
        """Mark instances unhealthy, or remove their rows."""
        query = {"forget": "true"} if forget else {}
        answer = self.ask("DELETE", "/instances", [row_json.sent(row) for row in instances], query, deadline)
        try:
            return row_json.read_receipts(answer, instances)
        except ValueError as error:
            raise self.nonsense(error) from None

    def instances(self, key: str | None, healthy_only: bool, deadline: float) -> list[Instance]:
        """Return the rows of a key, or all rows."""
        query = {"key": key} if key is not None else {}
        if healthy_only:
            query["healthy"] = "true"
        try:
            return row_json.read_instances(self.ask("GET", "/instances", None, query, deadline))
        except ValueError as error:
            raise self.nonsense(error) from None

    def ask(self, method: str, path: str, body: Any, query: dict[str, str], deadline: float) -> Any:
        """Return the JSON of a response with status 200; raise the error of any other."""
        url = f"{self.url}/controller{path}" + (f"?{urlencode(query)}" if query else "")
        left = max(_LEAST, deadline - time.monotonic())
        times = (min(self._session.connect_timeout, left), left)
        data = None if body is None else orjson.dumps(body)
        with self._session.request(method, url, body=data, timeout=times, until=time.monotonic() + left) as response:
            data = response.read_whole(LARGEST_ANSWER)
        status = response.status_code
        if status == 200:
            try:
                return orjson.loads(data)
            except orjson.JSONDecodeError as error:
                raise self.nonsense(error) from None
        if status in (404, 405) and PROBLEM_TYPE.encode() not in data:
            raise NoSuchCall
        if status < 400 or status >= 500 or status in _TRY_ANOTHER:
            raise WorkerUnreachable(f"{self.url}: {error_of_response(status, response.headers, data, 'it')}")
        raise error_of_response(status, response.headers, data, self.url)

    def nonsense(self, error: Exception) -> WorkerUnreachable:
        """Return the error for a response that a controller does not give."""
        return WorkerUnreachable(f"{self.url} does not answer as a controller: the answer {error}")
