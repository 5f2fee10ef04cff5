"""Talks to a running service; whatever goes wrong is a `Failure` that a person can act on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import requests

from ..errors import ConfigError, Unauthorized, UnknownModel
from ..sessions.address import DEFAULT_URL, TOKEN_VARIABLE, URL_VARIABLE, parse_address
from ..sessions.client_session import new_session, reason_of
from ..wire.errors import PROBLEM_TYPE
from .failures import Failure, Misuse

CONNECT_TIMEOUT = 5.0


class Refusal(Failure):
    """The service answered that it will not; ``code`` is that of our errors, empty where others refuse."""

    def __init__(self, message: str, status: int, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code

    @property
    def says_unknown(self) -> bool:
        """Whether there is no such model."""
        return self.code == UnknownModel.code


class ServiceClient:
    """The worker API at one address. Close it."""

    def __init__(self, url: str, timeout: float, token: str | None = None) -> None:
        """Talk to ``url``, which ends with the API's prefix; an answer may take ``timeout`` seconds.

        Raises Failure where it is no address. A URL without a path, not even a slash, gets ``/api``.
        """
        try:
            self._address = parse_address(url)
        except ConfigError as error:
            raise Misuse(str(error)) from None
        self.base, self.shown = self._address.base, self._address.shown
        self._timeout = timeout
        self._session = new_session(self._address, {"Authorization": f"Bearer {token}"} if token else {})

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def get(self, path: str, **query: str | None) -> Any:
        """Return the answer to a GET below ``/worker/``. Raises Refusal, Failure."""
        return self._answer("GET", f"{self.base}/worker/{path}", params={k: v for k, v in query.items() if v})

    def get_at(self, path: str) -> Any:
        """Return the answer to a GET below the prefix. Raises Refusal, Failure."""
        return self._answer("GET", f"{self.base}/{path}")

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return the answer to a POST below ``/worker/``. Raises Refusal, Failure."""
        return self._answer("POST", f"{self.base}/worker/{path}", json=body)

    def status(self) -> Any:
        """Return what ``/readyz`` says, ready or not. It stands at the root, in an application below its prefix."""
        for url in self._address.parents():
            try:
                status = self._answer("GET", f"{url}/readyz", accepted=(200, 503))
            except Refusal as error:
                if error.status == requests.codes.not_found:
                    continue
                raise
            if isinstance(status, dict) and are_objects(status.get("models"), "model"):
                return status
        raise Failure(f"no /readyz of modelyard answers at {self.shown} or above it: is --url right?")

    def stranger(self) -> Failure:
        """Return what is wrong where an answer has another shape than a worker's."""
        return Failure(f"{self.shown} answers, but not like a worker: is --url right?")

    def _answer(self, method: str, url: str, accepted: tuple[int, ...] = (200,), **options: Any) -> Any:
        try:
            response = self._session.request(
                method, url, timeout=(CONNECT_TIMEOUT, self._timeout), allow_redirects=False, **options
            )
        except requests.ReadTimeout as error:
            raise Failure(
                f"{self.shown} did not answer within {self._timeout:g} s, and may still be at it: see modelyard models "
                "list, or wait longer with --timeout"
            ) from error
        except requests.RequestException as error:
            raise Failure(
                f"no service answers at {self.shown} ({reason_of(error)}): start one with modelyard serve, "
                f"or say where it is with --url or {URL_VARIABLE}"
            ) from error
        if response.is_redirect:
            raise Failure(
                f"{self.shown} redirects to {response.headers['Location']}: where that is right, give it as --url"
            )
        value = _json(response)
        if response.status_code in accepted and value is not response:
            return value
        raise _refusal(value, response, self.shown)


def are_objects(value: object, *keys: str) -> bool:
    """Return whether ``value`` is a list of objects that have these keys."""
    return isinstance(value, list) and all(isinstance(item, dict) and set(keys) <= item.keys() for item in value)


def _refusal(value: Any, response: requests.Response, shown: str) -> Refusal:
    document = value if isinstance(value, dict) else {}
    kind, detail = str(document.get("type", "")), document.get("detail", response.reason)
    if kind == "about:blank":
        detail = document.get("title", detail)  # Flask's own words are about typing URLs into a browser.
    text = detail if isinstance(detail, str) else json.dumps(detail, ensure_ascii=False)
    if kind.startswith(PROBLEM_TYPE):
        code = kind.removeprefix(PROBLEM_TYPE)
        if code == Unauthorized.code:
            text += f" (give it with {TOKEN_VARIABLE}, or --token-file)"
        return Refusal(text, response.status_code, code)
    hint = f"is --url right? It ends with the prefix of the API, as in {DEFAULT_URL}"
    return Refusal(f"{shown} answered {response.status_code}: {text} ({hint})", response.status_code)


def _json(response: requests.Response) -> Any:
    """Return the value in a body; the response itself where it is no JSON."""
    try:
        return json.loads(response.content)
    except ValueError:
        return response
