"""The recorded exchanges of DB-GPT's clients, replayed against a running worker, and against a controller.

Of a worker's answers status, key sets and texts are compared, as the description of the wire says; not vectors, the
catalogue, ``usage`` and ``finish_reason``, nor answers that it calls faults of the peers: of those, what is right is
said here (`RIGHT`). A controller's are compared whole, without the times of heartbeats and the order of a list.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from modelyard.server.extension import KEY, create_app
from modelyard.settings.settings import Settings

Exchange = dict[str, Any]
RECORDINGS = sorted((Path(__file__).parents[1] / "wire").glob("*.jsonl"))
CONTROLLER = "/api/controller/"
RECORDED_PORT = 18100
"""Where the recorded worker stood: startup and shutdown name it. Nothing listens there in this test."""
METADATA_KEYS = {"model", "context_length", "chat_model", "metadata", "ext_metadata"}
TABLES = ({"name": "echo"}, {"name": "emb", "engine": "echo", "worker_type": "text2vec"})


def exchanges() -> list[Any]:
    found = []
    for recording in RECORDINGS:
        for number, line in enumerate(recording.read_text(encoding="utf-8").splitlines(), 1):
            exchange = json.loads(line)
            if not exchange["path"].startswith(CONTROLLER):
                path = exchange["path"].removeprefix("/api/")
                found.append(pytest.param(exchange, id=f"{recording.stem}-{number}-{path}"))
    return found


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlaskClient]:
    """A client of a service with the two models of the recordings: `echo` and `emb`."""
    folder = tmp_path_factory.mktemp("replay")
    settings = Settings(port=RECORDED_PORT, state_dir=str(folder / "state"), models_dirs=[str(folder / "models")])
    settings.model_tables = TABLES
    app = create_app(settings)
    runtime = app.extensions[KEY]
    runtime.start()
    assert runtime.wait_loaded(30)
    yield app.test_client()
    runtime.stop()


def replayed(client: FlaskClient, exchange: Exchange) -> Any:
    headers = {k: v for k, v in exchange["headers"].items() if k not in ("connection", "user-agent")}
    data = None if exchange["json"] is None else json.dumps(exchange["json"], ensure_ascii=False)
    return client.open(exchange["path"], method=exchange["method"], headers=headers, data=data, buffered=True)


def problem(response: Any, status: int, says: str) -> None:
    assert response.status_code == status
    assert response.content_type == "application/problem+json"
    assert says in response.json["detail"]


def right_count(exchange: Exchange, response: Any) -> None:
    # Sent without a model, which the peers refuse: answered for the only LLM.
    assert (response.status_code, response.json) == (200, 3)


def right_metadata(exchange: Exchange, response: Any) -> None:
    recorded = exchange["response"]["json"]
    assert response.status_code == 200
    assert set(response.json) == METADATA_KEYS == set(recorded) - {"is_function_calling_model"}
    assert set(response.json["ext_metadata"]) == set(recorded["ext_metadata"])
    for key in ("model", "context_length", "chat_model"):
        assert response.json[key] == recorded[key]


def right_restart(exchange: Exchange, response: Any) -> None:
    # Sent with null for what is optional, which the peers refuse: null means absent.
    assert response.status_code == 200
    assert set(response.json) == {"message", "success", "timecost"}
    assert response.json["success"] is True


def right_startup(exchange: Exchange, response: Any) -> None:
    problem(response, 422, "params.model_path: model_path /nope")


def right_shutdown(exchange: Exchange, response: Any) -> None:
    problem(response, 404, "there is no model 'nope'")


RIGHT: dict[str, Callable[[Exchange, Any], None]] = {
    "/api/worker/count_token": right_count,
    "/api/worker/model_metadata": right_metadata,
    "/api/worker/apply": right_restart,
    "/api/worker/models/startup": right_startup,
    "/api/worker/models/shutdown": right_shutdown,
}
"""What to answer where the recorded answer is a fault."""


def shape(value: Any) -> Any:
    """Return what is compared of an answer: its keys, at every level, and one of the kinds of entries of a list."""
    if isinstance(value, dict):
        return {key: shape(inner) if key != "ext_metadata" else None for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value and isinstance(value[0], dict | list) else []
    return None


def test_both_recordings_are_there_and_have_what_is_replayed():
    assert [path.stem for path in RECORDINGS] == ["dbgpt-0.5.10", "dbgpt-0.8.2"]
    assert len(exchanges()) == 2 * 10
    recorded = {parameter.values[0]["path"] for parameter in exchanges()}
    assert set(RIGHT) <= recorded


@pytest.mark.parametrize("exchange", exchanges())
def test_the_answer_is_the_recorded_one_or_the_right_one(client, exchange):
    recorded, response = exchange["response"], replayed(client, exchange)
    if exchange["path"] in RIGHT:
        RIGHT[exchange["path"]](exchange, response)
        return
    assert response.status_code == recorded["status"]
    if "chunks" in recorded:
        whole = response.data.decode()
        found = [f"{chunk}\0" for chunk in whole.split("\0")[:-1]]
        assert whole == "".join(found)
        assert len(found) == len(recorded["chunks"])
        for ours, theirs in zip(found, recorded["chunks"], strict=True):
            compare_output(json.loads(ours[:-1]), json.loads(theirs[:-1]))
    elif exchange["path"] == "/api/worker/generate":
        compare_output(response.json, recorded["json"])
    else:
        assert shape(response.json) == shape(recorded["json"])
        assert type(response.json) is type(recorded["json"])


def compare_output(ours: Exchange, theirs: Exchange) -> None:
    assert list(ours) == list(theirs)
    for key in set(theirs) - {"usage", "finish_reason"}:
        assert ours[key] == theirs[key], key


def test_vectors_are_a_row_a_text(client):
    for parameter in exchanges():
        exchange = parameter.values[0]
        if exchange["path"] == "/api/worker/embeddings":
            rows = replayed(client, exchange).json
            assert [len(row) for row in rows] == [384] * len(exchange["json"]["input"])


def test_supported_models_have_the_recorded_keys_at_every_level(client):
    for parameter in exchanges():
        exchange = parameter.values[0]
        if exchange["path"] == "/api/worker/models/supports":
            ours, theirs = replayed(client, exchange).json, exchange["response"]["json"]
            assert set(ours[0]) == set(theirs[0])
            keys = set(theirs[0]["models"][0])
            described = set(theirs[0]["models"][0]["params"][0])
            for model in ours[0]["models"]:
                assert set(model) == keys
                assert all(set(param) == described for param in model["params"])


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.stem)
def test_a_controller_answers_what_was_recorded(recording, tmp_path):
    app = create_app(Settings(role="controller", registry="memory:", state_dir=str(tmp_path)))
    lines = [json.loads(line) for line in recording.read_text(encoding="utf-8").splitlines()]
    calls = [line for line in lines if line["path"].startswith(CONTROLLER)]
    assert len(calls) == 13
    try:
        for call in calls:
            compare_controller(replayed(app.test_client(), call), call["response"])
    finally:
        app.extensions[KEY].stop()


def compare_controller(ours: Any, theirs: Exchange) -> None:
    assert ours.status_code == theirs["status"]
    if theirs["json"] is True:
        assert ours.json is True
        return
    assert [list(row) for row in ours.json] == [list(row) for row in theirs["json"]]
    assert all(HEARTBEAT.fullmatch(row["last_heartbeat"]) for row in [*ours.json, *theirs["json"]])
    assert without_times(ours.json) == without_times(theirs["json"])


HEARTBEAT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?")


def without_times(rows: list[Exchange]) -> list[Exchange]:
    return sorted(({**row, "last_heartbeat": None} for row in rows), key=lambda row: row["model_name"])
