"""One controller at one address: its calls, bounded in time, and what its answers mean."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

import orjson

from ...errors import WorkerUnreachable
from ...sessions.answer import Answer
from ...sessions.transport import Transport
from ...wire.errors import PROBLEM_TYPE
from ..remote_errors import error_of
from . import row_json
from .base import Beaten, Instance, Receipt

LARGEST_ANSWER = 64 * 1024 * 1024
_TRY_ANOTHER = frozenset({408, 429})
_LEAST = 0.05


class NoSuchCall(Exception):
    """The server does not know the call: it is no controller of ours, or none at all."""


class ControllerCalls:
    """Each call ends by ``deadline`` (monotonic). WorkerUnreachable where another controller should be asked.

    A refusal is the error of its code; NoSuchCall where the call is not known there.
    """

    def __init__(self, url: str, transport: Transport) -> None:
        self.url = url
        self._transport = transport

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
        answer = self._transport.send(
            method,
            url,
            body=None if body is None else orjson.dumps(body),
            timeout=(min(self._transport.connect_timeout, left), left),
        )
        with answer:
            data = self._read(answer, deadline)
        status = answer.status_code
        if status == 200:
            try:
                return orjson.loads(data)
            except orjson.JSONDecodeError as error:
                raise self.nonsense(error) from None
        if status in (404, 405) and PROBLEM_TYPE.encode() not in data:
            raise NoSuchCall
        if status < 400 or status >= 500 or status in _TRY_ANOTHER:
            raise WorkerUnreachable(f"{self.url}: {error_of(status, answer.headers, data, 'it')}")
        raise error_of(status, answer.headers, data, self.url)

    def _read(self, answer: Answer, deadline: float) -> bytes:
        while not answer.wait_head():
            self._check(deadline)
        parts, size = [], 0
        while (data := answer.read1()) != b"":
            self._check(deadline)
            if data is not None:
                parts.append(data)
                size += len(data)
                if size > LARGEST_ANSWER:
                    raise self.nonsense(ValueError(f"has over {LARGEST_ANSWER} bytes"))
        return b"".join(parts)

    def _check(self, deadline: float) -> None:
        if time.monotonic() > deadline:
            raise WorkerUnreachable(f"{self.url} did not answer in time")

    def nonsense(self, error: Exception) -> WorkerUnreachable:
        """Return what is raised of an answer that no controller gives."""
        return WorkerUnreachable(f"{self.url} does not answer as a controller: the answer {error}")
