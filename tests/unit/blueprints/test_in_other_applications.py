"""The worker API in an application of somebody else, whose own code sees each request first."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from clients import DELTA, chunks_of
from flask import Flask, abort, request
from modelyard import Modelyard
from modelyard.server.extension import attach
from modelyard.server.runtime import Runtime
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import BadRequest, TooManyRequests, Unauthorized
from werkzeug.test import TestResponse

BODY = {"model": "echo", "prompt": "hello", "max_new_tokens": 2}
FORM = "application/x-www-form-urlencoded"
LIMIT = 4096


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    folder = tmp_path_factory.mktemp("state")
    extension = Modelyard(models=["echo"], placement="inline", state_dir=str(folder), max_body_bytes=LIMIT)
    made = extension.init_app(Flask("first"))
    made.start()
    assert made.wait_loaded(30)
    yield made
    made.stop()


def ask(runtime: Runtime, before: Callable[[], Any], call: str = "generate", **options: Any) -> TestResponse:
    """Send a request to an application that calls ``before`` first."""
    app = Flask("host")
    app.before_request(before)
    attach(app, runtime)
    if "data" not in options:
        options.setdefault("json", BODY)
    return app.test_client().post(f"/api/worker/{call}", buffered=True, **options)


# A body that the application has read

READS: dict[str, Callable[[], object]] = {
    "get_data": lambda: request.get_data(),
    "get_json": lambda: request.get_json(),
    "data": lambda: request.data,
    "form of a JSON body": lambda: request.form,
    "nothing": lambda: None,
}


def only(read: Callable[[], object]) -> Callable[[], None]:
    """Return a before_request that answers nothing itself."""

    def before() -> None:
        read()

    return before


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize("call", ["generate", "generate_stream"])
def test_a_body_that_the_application_has_read_is_answered(
    runtime: Runtime, call: str, read: Callable[[], object]
) -> None:
    answer = ask(runtime, only(read), call)
    assert (answer.status_code, chunks_of(answer.data + b"\0")[-1]["text"]) == (200, " token token")


def test_json_that_was_sent_as_a_form_is_answered_where_the_application_did_not_parse_it(runtime: Runtime) -> None:
    answer = ask(runtime, only(request_data), data=json.dumps(BODY), content_type=FORM)
    assert answer.json["error_code"] == 0


def request_data() -> object:
    return request.get_data()


def test_a_body_that_was_parsed_as_a_form_is_refused_with_the_header_to_send(runtime: Runtime) -> None:
    answer = ask(runtime, only(lambda: request.form), data=json.dumps(BODY), content_type=FORM)
    assert answer.status_code == 422
    assert "as a form" in answer.json["text"]
    assert "Content-Type: application/json" in answer.json["text"]


def test_a_body_that_the_application_did_not_keep_is_not_called_empty_alone(runtime: Runtime) -> None:
    answer = ask(runtime, only(lambda: request.get_data(cache=False)))
    assert answer.status_code == 422
    assert "the application has read it" in answer.json["text"]


@pytest.mark.parametrize("read", [READS["nothing"], READS["form of a JSON body"]], ids=["unread", "looked at"])
def test_the_limit_holds_for_a_body_without_a_length_that_the_application_has_looked_at(
    runtime: Runtime, read: Callable[[], object]
) -> None:
    body = json.dumps({**BODY, "prompt": "x" * LIMIT}).encode()
    chunked = {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked", "CONTENT_TYPE": "application/json"}
    answer = ask(runtime, only(read), data=b"", environ_overrides={**chunked, "wsgi.input": io.BytesIO(body)})
    assert answer.status_code == 413
    assert str(LIMIT) in answer.json["text"]


# A refusal by the application


class CSRFError(BadRequest):
    """As Flask-WTF's."""

    description = "The CSRF token is missing."


def refuse_csrf() -> None:
    raise CSRFError


REFUSALS: dict[str, tuple[Callable[[], None], int, str]] = {
    "abort(401)": (lambda: abort(401), 401, "credentials"),
    "abort(403) with a reason": (lambda: abort(403, "not on Sundays"), 403, "not on Sundays"),
    "CSRF": (refuse_csrf, 400, "CSRF token is missing"),
}


@pytest.mark.parametrize(("refuse", "code", "reason"), REFUSALS.values(), ids=REFUSALS)
@pytest.mark.parametrize("headers", [{}, DELTA], ids=["", "delta"])
def test_a_refusal_by_the_application_reaches_clients_of_generating_calls_in_their_shape(
    runtime: Runtime, refuse: Callable[[], None], code: int, reason: str, headers: dict[str, str]
) -> None:
    whole = ask(runtime, refuse, "generate", headers=headers)
    assert (whole.status_code, whole.json["error_code"]) == (code, code)
    assert reason in whole.json["text"]
    streamed = ask(runtime, refuse, "generate_stream", headers=headers)
    [chunk] = chunks_of(streamed.data)
    assert (streamed.status_code, chunk["error_code"]) == (code, code)
    assert reason in chunk["text"]


@pytest.mark.parametrize(("refuse", "code", "reason"), REFUSALS.values(), ids=REFUSALS)
def test_other_calls_get_a_problem_document(
    runtime: Runtime, refuse: Callable[[], None], code: int, reason: str
) -> None:
    answer = ask(runtime, refuse, "count_token")
    assert (answer.status_code, answer.content_type) == (code, "application/problem+json")
    assert reason in answer.json["detail"]


@pytest.mark.parametrize("call", ["generate", "embeddings"])
def test_the_headers_of_a_refusal_stay(runtime: Runtime, call: str) -> None:
    def limit() -> None:
        raise TooManyRequests(retry_after=7)

    def login() -> None:
        raise Unauthorized(www_authenticate=WWWAuthenticate("basic", {"realm": "shop"}))

    assert ask(runtime, limit, call).headers["Retry-After"] == "7"
    assert "shop" in ask(runtime, login, call).headers["WWW-Authenticate"]
