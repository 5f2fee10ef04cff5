"""What our remote side makes of the recorded answers of DB-GPT's own worker and controller.

Each call of `asked_of_peers` is made to a server that replays what the package ``dbgpt==0.8.2`` answered to it; what is
sent must be what was sent then. ``make interop`` made the recordings, and says whether they still hold.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from asked_of_peers import CONTROLLER_CALLS, INSTANCE, PORT, WORKER_CALLS, Exchange, recorded, replay, said
from faulty import faulty
from modelyard.cluster.registry.base import ANY_GENERATION, Beaten
from modelyard.sessions.session import Session
from modelyard.settings.params import DESCRIPTION_KEYS
from modelyard.types import ApplyOutcome, ModelMetadata

CALLS = {**WORKER_CALLS, **CONTROLLER_CALLS}
EXCHANGES = recorded()


@pytest.fixture
def session() -> Iterator[Session]:
    made = Session(connect_timeout=2, read_timeout=5)
    yield made
    made.close()


def answered(call: str, session: Session, exchanges: list[Exchange] | None = None) -> Any:
    """Return what the call comes to; what it sends must be what was recorded."""
    exchanges = EXCHANGES[call] if exchanges is None else exchanges
    with faulty(replay(exchanges)) as server:
        result = CALLS[call](server.url, session)
        port = int(server.url.rpartition(":")[2].partition("/")[0])
        sent = [said(request, port) for request in server.requests]
    assert sent == [{name: exchange[name] for name in ("method", "path", "headers", "json")} for exchange in exchanges]
    return result


def failure(call: str, session: Session) -> tuple[str, str]:
    result = answered(call, session)
    return result["error"], result["text"]


def test_every_call_was_recorded():
    assert list(EXCHANGES) == list(CALLS)
    assert all(exchange["peer"] == "server of DB-GPT 0.8.2" for those in EXCHANGES.values() for exchange in those)


# A worker


def test_a_stream_of_whole_texts_becomes_pieces(session):
    assert answered("stream", session) == {
        "pieces": [" token"] * 3,
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5},
    }


def test_its_chunks_have_content_and_no_text():
    chunks = [json.loads(chunk[:-1]) for chunk in EXCHANGES["stream"][0]["response"]["chunks"]]
    assert all("text" not in chunk and chunk["content"]["type"] == "text" for chunk in chunks)


@pytest.mark.parametrize(
    ("call", "pieces"),
    [
        ("stream of characters", ["g", "r", "ü", "😀"]),
        ("stream with thoughts", ["It", " is so."]),
        ("stream that is trimmed", ["Hello ", "wo", "rld"]),
    ],
)
def test_only_what_is_new_of_the_text_is_given_on(session, call, pieces):
    assert answered(call, session)["pieces"] == pieces


@pytest.mark.parametrize(
    ("call", "pieces", "error", "says"),
    [
        ("stream that fails", [" token"], "engine_error", "**LLMServer Generate Error**: the engine broke"),
        ("stream that breaks off", [" token"], "worker_lost", "broke off its answer"),
        ("stream without a word", [], "engine_error", "sent an empty answer"),
        ("stream of an unknown model", [], "unknown_model", "not found worker instances for model name nope"),
        ("stream that is refused", [], "invalid_request", "body.temperature: Input should be a valid number"),
    ],
)
def test_a_stream_that_goes_wrong_says_how_after_what_had_come(session, call, pieces, error, says):
    result = answered(call, session)
    assert (result["pieces"], result["error"]) == (pieces, error)
    assert says in result["text"]


def test_vectors_and_scores(session):
    assert answered("embeddings", session) == [[1.0, 1.0], [3.0, 2.0]]
    assert answered("rerank", session) == [0.5, 1.0, 0.0]


def test_a_reranker_is_asked_for_by_its_type():
    assert EXCHANGES["rerank"][0]["json"]["worker_type"] == "reranker"


def test_tokens_and_metadata(session):
    assert answered("count", session) == 3
    assert answered("metadata", session) == ModelMetadata("theirs", 2048, metadata={"running": 0})


def test_descriptions_have_only_the_keys_that_all_clients_know(session):
    answer = EXCHANGES["descriptions"][0]["response"]["json"]
    assert set(answer[0]) > set(DESCRIPTION_KEYS)
    found = answered("descriptions", session)
    assert [one["param_name"] for one in found] == [one["param_name"] for one in answer]
    assert all(set(one) == set(DESCRIPTION_KEYS) for one in found)


def test_supported_models_are_those_of_the_host_that_answers(session):
    (host,) = answered("supports", session)
    theirs = EXCHANGES["supports"][0]["response"]["json"][0]
    assert (host.host, host.port, host.error) == (theirs["host"], theirs["port"], "")
    assert [model.model for model in host.models] == [model["model"] for model in theirs["models"]]
    assert all(set(param) == set(DESCRIPTION_KEYS) for model in host.models for param in model.params)


@pytest.mark.parametrize("call", ["startup", "startup again", "shutdown"])
def test_what_worked_says_nothing(session, call):
    assert answered(call, session) == ""


def test_startup_names_the_host_that_is_asked():
    body = EXCHANGES["startup"][0]["json"]
    assert (body["host"], body["port"], body["worker_type"]) == ("localhost", PORT, "llm")


def test_outcomes_of_apply(session):
    started = answered("apply start", session)
    assert isinstance(started, ApplyOutcome)
    assert started.success is True
    assert "start successfully" in started.message
    assert answered("apply update", session).message == "Update worker params successfully"


@pytest.mark.parametrize(
    "call",
    [
        "embeddings of an unknown model",
        "metadata of an unknown model",
        "descriptions of an unknown model",
        "startup without a name",
        "apply restart",
        "shutdown of an unknown model",
    ],
)
def test_a_failure_without_a_word_names_who_failed(session, call):
    error, text = failure(call, session)
    assert error == "engine_error"
    assert text.endswith("answers with status 500: Internal Server Error")
    assert "http://localhost:" in text


def test_a_refused_startup_names_the_field(session):
    error, text = failure("startup without a type", session)
    assert error == "invalid_request"
    assert text.endswith("body.worker_type: Field required")


# A controller


@pytest.mark.parametrize("call", CONTROLLER_CALLS)
def test_our_own_call_is_tried_first_and_not_known_there(call):
    ours, theirs = EXCHANGES[call]
    assert ours["path"].startswith("/api/controller/instances")
    assert ours["response"]["status"] == 404
    assert theirs["path"].startswith(("/api/controller/models", "/api/controller/heartbeat"))


def test_registration_and_heartbeat(session):
    registered = answered("register", session)
    assert isinstance(registered, Beaten)
    (receipt,) = registered.receipts
    assert (receipt.key, receipt.url, receipt.superseded) == (INSTANCE.key, INSTANCE.url, False)
    assert receipt.generation > ANY_GENERATION
    (receipt,) = answered("heartbeat", session).receipts
    assert (receipt.generation, receipt.superseded) == (7, False)


@pytest.mark.parametrize("call", ["instances", "instances of a key"])
def test_rows_are_instances_with_the_health_that_it_says(session, call):
    (row,) = answered(call, session)
    assert (row.key, row.url, row.healthy, row.generation) == (INSTANCE.key, INSTANCE.url, True, None)


def test_what_was_deregistered_is_not_healthy_and_what_was_forgotten_is_not_there(session):
    (receipt,) = answered("deregister", session)
    assert (receipt.key, receipt.superseded) == (INSTANCE.key, False)
    assert answered("healthy instances", session) == []
    assert len(answered("forget", session)) == 1
    assert answered("no instances", session) == []


def test_nothing_is_told_to_a_controller_that_its_instances_do_not_have():
    known = {"model_name", "host", "port", "weight", "check_healthy", "healthy", "enabled", "prompt_template"}
    bodies = [EXCHANGES[call][1]["json"] for call in ("register", "heartbeat")]
    assert all(set(body) == known | {"last_heartbeat"} for body in bodies)
