"""The log: one line of JSON a request, when its answer has ended; and nothing that was said in confidence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from clients import Connection
from running import Service, Services, wait_until

MARKER = "marker7f3a"
"""What no log may hold: it stands in prompts, answers and texts."""

TABLES = """
[[models]]
name = "echo"
reply = "prompt"

[[models]]
name = "script"
worker_class = "scripted:Scripted"
limit_model_concurrency = 1
max_waiting = 0

[[models]]
name = "vectors"
worker_class = "scripted:Scripted"
worker_type = "text2vec"
"""


@pytest.fixture(scope="module")
def service(run_module: Services) -> Service:
    return run_module.start(TABLES, log_level="debug", first_output_timeout=0.2)


def prompt(model: str = "echo", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "human", "content": f"{MARKER} {MARKER}"}], **more}


def script(**plan: Any) -> dict[str, Any]:
    return {"model": "script", "messages": [{"role": "human", "content": json.dumps({"said": MARKER, **plan})}]}


def new_lines(service: Service, before: int, count: int) -> list[dict[str, Any]]:
    """Return the access lines that ``count`` requests left, health excepted."""
    return wait_until(
        lambda: service.access_lines()[before:] if len(service.access_lines()) >= before + count else [], "lines"
    )


def test_each_request_leaves_one_line(service: Service) -> None:
    service.may_show_tracebacks = True
    before = len(service.access_lines())
    requests: list[tuple[str, Any, int, str | None]] = [
        ("generate_stream", prompt(max_new_tokens=4), 200, None),
        ("generate", prompt(max_new_tokens=4), 200, None),
        ("generate", prompt("nobody"), 200, "unknown_model"),
        ("generate_stream", prompt("nobody"), 200, "unknown_model"),
        ("generate", prompt(temperature="hot"), 422, "invalid_request"),
        ("generate_stream", script(fail_at=0), 200, "engine_error"),
        ("generate_stream", script(pieces=3, fail_at=2, each=0.01), 200, "engine_error"),
        ("embeddings", {"model": "vectors", "input": [MARKER]}, 200, None),
        ("embeddings", {"model": "vectors", "input": [MARKER, 7]}, 422, "invalid_request"),
        ("count_token", {"model": "echo", "prompt": MARKER}, 200, None),
        ("model_metadata", {"model": "echo"}, 200, None),
        ("apply", {"model": "nobody", "apply_type": "start"}, 404, "unknown_model"),
    ]
    for number, (call, body, status, _) in enumerate(requests, 1):
        assert service.post(call, body).status_code == status, call
        new_lines(service, before, number)  # The line may come after the answer: another request would overtake it.
    assert service.post("generate", data=b"{" + MARKER.encode()).status_code == 422
    lines = new_lines(service, before, len(requests) + 1)
    found = [(line["path"].removeprefix("/api/worker/"), line["status"], line.get("error")) for line in lines]
    wanted = [(call, status, error) for call, _, status, error in requests]
    assert found == [*wanted, ("generate", 422, "invalid_request")]
    for line in lines:
        assert line["method"] == "POST"
        assert line["remote"] == "127.0.0.1"
        assert line["ms"] >= 0
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", line["time"])


def test_a_line_says_how_much_was_answered(service: Service) -> None:
    before = len(service.access_lines())
    streamed = service.post("generate_stream", prompt(max_new_tokens=4))
    new_lines(service, before, 1)
    whole = service.post("generate", prompt(max_new_tokens=4))
    lines = new_lines(service, before, 2)
    assert [line["bytes"] for line in lines] == [len(streamed.content), len(whole.content)]
    assert (lines[0]["pieces"], lines[0]["model"], lines[1]["model"]) == (4, "echo", "echo")
    assert 0 <= lines[0]["first_ms"] <= lines[0]["ms"]


def test_a_line_is_written_when_the_stream_has_ended_and_not_before(service: Service, tmp_path: Path) -> None:
    before = len(service.access_lines())
    with Connection(service.port) as client:
        client.send("POST", "generate_stream", script(pieces=4, each=0.05, until=str(tmp_path / "go")))
        head = client.read_head()
        client.read_http_chunk()
        assert len(service.access_lines()) == before
        (tmp_path / "go").touch()
        client.read_body(head)
    [line] = new_lines(service, before, 1)
    assert line["ms"] >= 4 * 0.05 * 1000


def test_a_line_comes_also_for_who_hangs_up_and_who_is_refused(service: Service) -> None:
    before = len(service.access_lines())
    with Connection(service.port) as holder:
        holder.send("POST", "generate_stream", script(before=60))
        holder.read_head()
        assert service.post("generate", script()).status_code == 503
    lines = new_lines(service, before, 2)
    assert [line.get("error") for line in lines] == ["overloaded", "cancelled"]
    assert [line["status"] for line in lines] == [503, 200]


def test_nothing_that_was_said_is_in_the_log(service: Service) -> None:
    service.may_show_tracebacks = True
    echoed = service.post("generate", prompt(max_new_tokens=2))
    assert MARKER in echoed.json()["text"]
    service.post("generate_stream", prompt(max_new_tokens=2))
    service.post("generate", prompt(stop=[MARKER]))
    service.post("generate", prompt(span_id=MARKER, context={"x": MARKER}))
    service.post("generate", {"model": "echo", "messages": [{"role": MARKER, "content": MARKER}]})
    service.post("generate", {"model": "echo", "prompt": MARKER, "temperature": MARKER})
    service.post("generate", script(fail_at=0))
    service.post("embeddings", {"model": "vectors", "input": [MARKER], "query": MARKER})
    service.post("embeddings", {"model": "vectors", "input": [json.dumps({"said": MARKER, "fail_at": 0})]})
    service.post("count_token", {"model": "echo", "prompt": MARKER})
    service.post("generate", data=MARKER)
    service.wait_for_line(path="/api/worker/generate", error="invalid_request")
    assert MARKER not in service.log()


def test_a_log_file_takes_the_log_and_the_lines(run: Services) -> None:
    folder = run.folder()
    path = folder / "service.log"
    service = run.start(TABLES, folder=folder, log_file=path)
    assert service.post("generate", prompt()).status_code == 200
    wait_until(lambda: '"path":"/api/worker/generate"' in path.read_text(), "the access line")
    assert "echo@llm is ready" in path.read_text()
    assert service.access_lines() == []
    assert "echo@llm" not in service.log()


def test_access_lines_may_be_left_out(run: Services) -> None:
    service = run.start(TABLES, access_log=False)
    assert service.post("generate_stream", prompt()).status_code == 200
    assert service.post("generate", prompt()).status_code == 200
    service.kill()
    assert service.access_lines() == []


def test_the_level_decides_what_is_logged(run: Services) -> None:
    service = run.start(TABLES, log_level="error")
    service.kill()
    assert "is ready" not in service.log()


def test_a_log_file_that_can_not_be_written_is_told(run: Services) -> None:
    folder = run.folder()
    service = run.start(TABLES, folder=folder, log_file=folder / "nowhere" / "x.log", wait="nothing")
    assert service.wait_ended(30) != 0
    assert "nowhere" in service.log()
    assert "Traceback" not in service.log()
