"""The engine in docs/engines.md is a whole one: this takes it out of the page, and runs it."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from clients import chunks_of
from flask.testing import FlaskClient
from modelyard.engines.base import Engine
from modelyard.errors import Cancelled, EngineError
from modelyard.server.extension import KEY, create_app
from modelyard.server.runtime import Runtime
from modelyard.settings import loading
from modelyard.streams import Cancel
from modelyard.types import GenerateRequest
from running import ROOT, wait_until

PAGE = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    """Return the only block of a language on the page."""
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(text)


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlaskClient]:
    """A client of a service that runs the page's engine by the page's configuration."""
    (tmp_path / "shout.py").write_text(block("python"), encoding="utf-8")
    (tmp_path / "shout.toml").write_text(block("toml"), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    given = {"config": str(tmp_path / "shout.toml"), "state_dir": str(tmp_path / "state")}
    app = create_app(loading.load(given, {}))
    runtime = app.extensions[KEY]
    runtime.start()
    assert runtime.wait_loaded(30)
    yield app.test_client()
    runtime.stop()
    sys.modules.pop("shout", None)


@pytest.fixture
def runtime(client: FlaskClient) -> Runtime:
    found: Runtime = client.application.extensions[KEY]
    return found


def test_it_is_ready(client):
    (entry,) = client.get("/readyz").json["models"]
    assert (entry["model"], entry["state"], entry["reason"]) == ("loud@llm", "ready", None)
    assert entry["context_length"] == 4096


def test_it_answers_through_the_manager(runtime):
    output = runtime.manager.generate(GenerateRequest("loud", prompt="hello there"))
    assert (output.text, output.finish_reason) == (" HELLO THERE!!", "stop")
    assert output.usage == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}


def test_it_answers_over_http(client):
    body = {"model": "loud", "messages": [{"role": "human", "content": "hello there"}]}
    assert client.post("/api/worker/generate", json=body).json["text"] == " HELLO THERE!!"
    chunks = chunks_of(client.post("/api/worker/generate_stream", json=body).data)
    assert [c["text"] for c in chunks] == [" HELLO", " HELLO THERE", " HELLO THERE!!"]
    assert client.post("/api/worker/count_token", json={"model": "loud", "prompt": "a b c"}).json == 3
    assert client.post("/api/worker/model_metadata", json={"model": "loud"}).json["context_length"] == 4096


def test_its_parameters_are_described_checked_and_changed(client):
    described = client.get("/api/worker/parameter/descriptions?model=loud").json
    found = {d["param_name"]: d for d in described}
    assert (found["mark"]["default_value"], found["mark"]["description"]) == ("!!", "what each answer ends with")
    body = {"model": "loud", "apply_type": "update_params", "params": {"mark": "?"}}
    assert client.post("/api/worker/apply", json=body).json["success"] is True
    assert client.post("/api/worker/generate", json={"model": "loud", "prompt": "a"}).json["text"] == " A?"
    body["params"] = {"pause": 61}
    refused = client.post("/api/worker/apply", json=body)
    assert (refused.status_code, refused.json["errors"][0]["field"]) == (422, "params.pause")


def test_it_may_be_started_as_an_embedder_too(client):
    body = {"model": "loud", "worker_type": "text2vec", "params": {}}
    assert client.post("/api/worker/models/startup", json=body).status_code == 200
    rows = client.post("/api/worker/embeddings", json={"model": "loud", "input": ["aei", "ooo"]}).json
    assert rows == [[1.0, 1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 3.0, 0.0]]


def test_a_cancel_ends_it_while_it_pauses(client, runtime):
    assert runtime.manager.worker_apply("loud", "update_params", None, {"pause": 60}).success
    cancel = Cancel()
    stream = runtime.manager.generate_stream(GenerateRequest("loud", prompt="a b"), cancel)
    wait_until(lambda: runtime.manager.load_of("loud", "llm") == "slots=8;free=7;waiting=0", "it holds a slot")
    cancel.set()
    with pytest.raises(Cancelled):
        list(stream)
    assert runtime.manager.load_of("loud", "llm") == "slots=8;free=8;waiting=0"


def test_what_breaks_in_it_is_told_by_its_kind(runtime):
    with pytest.raises(EngineError, match="'loud' failed: TypeError"):
        runtime.manager.generate(GenerateRequest("loud", messages=[{"content": "a"}], max_new_tokens="x"))


def test_the_page_names_only_what_there_is():
    attributes = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert len(attributes) == 8
    assert all(hasattr(Engine, name) for name in [*attributes, "ticks", "default_worker_type"])
    overridden = set(re.findall(r"^    def (\w+)", block("python"), re.MULTILINE))
    assert overridden <= {name for name, _ in inspect.getmembers(Engine, inspect.isfunction)}
    assert (ROOT / "tests" / "contract" / "test_engines.py").is_file()
