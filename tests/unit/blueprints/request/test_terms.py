"""What a request says of its place among others: its session, as a short hash, and whether it may wait longer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask, request
from modelyard.blueprints.openai import schemas
from modelyard.blueprints.request.access_log import AccessLine
from modelyard.blueprints.request.terms import terms_of
from modelyard.errors import InvalidRequest
from modelyard.settings.settings import Settings
from modelyard.types import GenerateRequest, Terms

GATEWAY = Settings(role="standalone")


class Roomy:
    """A budget with room for batch requests."""

    def check_batch(self) -> None:
        pass


def terms(
    body: dict[str, Any] | None = None,
    prompt: GenerateRequest | None = None,
    settings: Settings = GATEWAY,
    **headers: str,
) -> Terms:
    service: Any = SimpleNamespace(settings=settings, budget=Roomy())
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    with Flask(__name__).test_request_context(headers=names):
        return terms_of(service, AccessLine(request, enabled=False), body or {}, prompt)


def session(
    body: dict[str, Any] | None = None,
    prompt: GenerateRequest | None = None,
    settings: Settings = GATEWAY,
    **headers: str,
) -> str:
    return terms(body, prompt or GenerateRequest("m", prompt="x"), settings, **headers).session


def turns(*texts: str, user: str = "user", system: str = "You help.") -> GenerateRequest:
    roles = [user if number % 2 == 0 else "assistant" for number in range(len(texts))]
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    return GenerateRequest("m", messages=[{"role": "system", "content": system}, *messages])


# The session


NAMED: list[dict[str, Any]] = [
    {"X_Session_Id": "s1"},
    {"X_Conversation_Id": "s1"},
    {"body": {"prompt_cache_key": "s1"}},
    {"body": {"user": "s1"}},
    {"body": {"metadata": {"user_id": "s1"}}},
    {"body": {"context": {"conv_uid": "s1"}}},
    {"body": {"context": {"user_name": "s1"}}},
]


@pytest.mark.parametrize("given", NAMED, ids=str)
def test_a_session_has_a_name_and_is_kept_as_a_short_hash(given):
    key = session(**given)
    assert len(key) == 16
    assert "s1" not in key
    assert key == session(**given, prompt=turns("whatever the messages are"))
    assert key != session({"user": "s2"})


@pytest.mark.parametrize("number", range(len(NAMED)))
def test_the_most_exact_name_counts(number):
    order = [*NAMED[:3], NAMED[5], NAMED[3], NAMED[4], NAMED[6]]
    headers: dict[str, str] = {}
    body: dict[str, Any] = {}
    for place, given in enumerate(order[number:]):
        for name, value in given.get("body", {}).items():
            inner = dict.fromkeys(value, f"s{place}") if isinstance(value, dict) else f"s{place}"
            body[name] = {**body[name], **inner} if isinstance(inner, dict) and name in body else inner
        headers |= {name: f"s{place}" for name in given if name != "body"}
    assert session(body, **headers) == session({"user": "s0"})


@pytest.mark.parametrize("user", ["user", "human"])
def test_without_a_name_the_first_messages_are_the_session_of_all_turns(user):
    first = session(prompt=turns("Fix the bug.", user=user))
    assert first
    assert session(prompt=turns("Fix the bug.", "Done.", "Thanks. Another:", user=user)) == first
    assert session(prompt=turns("Write a poem.", user=user)) != first, "the same system message"
    assert session(prompt=turns("Fix the bug.", user=user, system="You are rude.")) != first


def test_messages_in_parts_are_hashed_too():
    parts = [{"type": "text", "text": "Hi"}]
    prompt = GenerateRequest("m", messages=[{"role": "user", "content": parts}])
    assert session(prompt=prompt)
    assert session(prompt=prompt) != session(prompt=GenerateRequest("m", messages=[{"role": "user", "content": "Hi"}]))


@pytest.mark.parametrize(
    "prompt",
    [
        GenerateRequest("m", prompt="Once upon a time"),
        GenerateRequest("m", prompt="x", messages=[{"role": "user", "content": "y"}], chat_model=False),
        GenerateRequest("m", messages=[{"role": "system", "content": "All have this."}]),
    ],
    ids=["a raw prompt", "messages that do not count", "a system message alone"],
)
def test_what_shows_no_conversation_has_no_session(prompt):
    assert session(prompt=prompt) == ""
    assert session({"user": ""}, prompt) == ""
    assert session({"user": 5, "metadata": "x", "context": None}, prompt) == ""


def test_the_operator_may_turn_sessions_off():
    assert session({"user": "s1"}, settings=Settings(role="standalone", session_affinity=False)) == ""


def test_what_a_router_has_sent_has_the_session_that_the_router_made_out():
    assert session({"user": "s1"}, Modelyard_Route="local") == ""
    assert session({"user": "s1"}, Modelyard_Route="local", X_Session_Id="0123") == session({"user": "0123"})


# The priority


@pytest.mark.parametrize(
    ("headers", "body", "batch"),
    [
        ({}, {}, False),
        ({}, {"priority": "batch"}, True),
        ({}, {"priority": "interactive"}, False),
        ({}, {"priority": 0}, False),
        ({}, {"priority": -3}, False),
        ({}, {"priority": 1}, True),
        ({}, {"priority": 1.0}, True),
        ({}, {"priority": None, "service_tier": "flex"}, True),
        ({}, {"priority": "interactive", "service_tier": "flex"}, False),
        ({}, {"service_tier": "priority"}, False),
        ({"Modelyard_Priority": "batch"}, {}, True),
        ({"Modelyard_Priority": "interactive"}, {"priority": "batch"}, False),
    ],
)
def test_the_priority_is_that_of_the_header_or_else_of_the_body(headers, body, batch):
    assert terms(body, **headers).batch is batch


@pytest.mark.parametrize("value", ["urgent", "", True, [], {}])
def test_another_priority_is_refused_with_what_it_must_be(value):
    with pytest.raises(InvalidRequest, match="priority: must be interactive or batch, or a number"):
        terms({"priority": value})


def test_another_priority_in_the_header_is_refused_too():
    with pytest.raises(InvalidRequest, match="Modelyard-Priority: must be interactive or batch"):
        terms(Modelyard_Priority="low")


@pytest.mark.parametrize(("priority", "extra"), [("batch", {}), (3, {"priority": 3}), (None, {})])
def test_a_backend_is_sent_the_numbers_that_it_knows_and_not_our_words(priority, extra):
    body = {"messages": [{"role": "user", "content": "x"}], "priority": priority}
    assert schemas.chat(body, "m").requests[0].extra == extra


# The line, and the id


@pytest.mark.parametrize(("header", "wait"), [("wait=0", False), ("respond-async, wait = 0", False), ("wait=5", True)])
def test_who_prefers_to_wait_no_second_does_not_stand_in_line(header: str, wait: bool):
    assert terms(Prefer=header).wait is wait
    assert terms().wait


@pytest.mark.parametrize(("given", "request_id"), [("a-1.B_2", "a-1.B_2"), ("a b", ""), ("x" * 129, ""), ('a"', "")])
def test_an_id_that_could_spoil_a_log_is_not_kept(given: str, request_id: str):
    assert terms(X_Request_Id=given).request_id == request_id
