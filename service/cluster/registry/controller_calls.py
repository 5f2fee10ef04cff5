"""One controller at one address: its calls, bounded in time, and what its answers mean."""

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
    """The server does not know the call: it is not a controller of modelyard, or not a controller."""


class ControllerCalls:
    """Each call ends by ``deadline`` (monotonic). WorkerUnreachable where another controller should be asked.

    A refusal is the error of its code; NoSuchCall where the call is not known there.
    """

    def __init__(self, url: str, session: Session) -> None:
        self.url = url
        self._session = session

    def beat(self, instances: Sequence[Instance], deadline: float) -> Beaten:
        """Register or refresh."""
        answer = self.ask("POST", "/instances", [row_json.sent(one) for one in instances], {}, deadline)
        try:
            return Beaten(row_json.read_receipts(answer, instances), float(answer["interval"]))
        except (KeyError, TypeError, ValueError) as error:
            raise self.nonsense(error) from None

    def deregister(self, instances: Sequence[Instance], forget: bool, deadline: float) -> list[Receipt]:
        """Mark unhealthy, or remove."""
        query = {"forget": "true"} if forget else {}
        answer = self.ask("DELETE", "/instances", [row_json.sent(one) for one in instances], query, deadline)
        try:
            return row_json.read_receipts(answer, instances)
        except ValueError as error:
            raise self.nonsense(error) from None

    def instances(self, key: str | None, healthy_only: bool, deadline: float) -> list[Instance]:
        """Read rows."""
        query = {"key": key} if key is not None else {}
        if healthy_only:
            query["healthy"] = "true"
        try:
            return row_json.read_instances(self.ask("GET", "/instances", None, query, deadline))
        except ValueError as error:
            raise self.nonsense(error) from None

    def ask(self, method: str, path: str, body: Any, query: dict[str, str], deadline: float) -> Any:
        """Return the JSON of an answer that is 200; everything else is raised."""
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
        """Return what is raised of an answer that no controller gives."""
        return WorkerUnreachable(f"{self.url} does not answer as a controller: the answer {error}")
