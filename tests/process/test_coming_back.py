"""After a death without warning the service is what it was: the models that ran run, those stopped stay stopped."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from running import Service, Services, wait_until

TABLES = """
[[models]]
name = "echo"

[[models]]
name = "echo-embed"
"""


def kill_worker(service: Service) -> None:
    """Kill the worker process, and wait until its successor has loaded what it will."""
    before = service.worker_pid()
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: service.worker_pid() not in (0, before), "another worker")
    wait_until(lambda: service.status().get("reason", "") in (None, "no model is ready"), "its models")


def restart(run: Services, service: Service, tables: str = TABLES, *arguments: str, **options: Any) -> Service:
    """End the service as a person would, and start it again on the same port and state."""
    service.signal(signal.SIGTERM)
    service.wait_ended(20)
    return run.start(tables, *arguments, folder=service.folder, port=service.port, **options)


def states(service: Service) -> dict[str, str]:
    return {model["model"]: model["state"] for model in service.status()["models"]}


def start_model(service: Service, model: str, worker_type: str = "llm", **params: Any) -> None:
    body = {"model": model, "worker_type": worker_type, "params": params}
    answer = service.post("models/startup", body)
    assert (answer.status_code, answer.json()) == (200, None), answer.text


def stop_model(service: Service, model: str, worker_type: str = "llm") -> None:
    answer = service.post("models/shutdown", {"model": model, "worker_type": worker_type, "params": {}})
    assert (answer.status_code, answer.json()) == (200, None), answer.text


def apply(service: Service, model: str, apply_type: str, **params: Any) -> None:
    answer = service.post("apply", {"model": model, "apply_type": apply_type, "params": params})
    assert answer.json()["success"] is True, answer.text


def reply(service: Service, model: str = "echo") -> str:
    answer = service.post("generate", {"model": model, "prompt": "hello you", "max_new_tokens": 2})
    return str(answer.json()["text"])


def test_what_ran_runs_again_after_the_worker_is_killed(run: Services) -> None:
    service = run.start(TABLES)
    start_model(service, "echo", "reranker", limit_model_concurrency=3)
    apply(service, "echo", "update_params", reply="prompt")
    kill_worker(service)
    assert states(service) == {"echo@llm": "ready", "echo-embed@text2vec": "ready", "echo@reranker": "ready"}
    assert reply(service) == " hello you", "the parameter that was set over HTTP is forgotten"
    described = service.get("parameter/descriptions?model=echo&worker_type=reranker").json()
    assert {"limit_model_concurrency": 3}.items() <= {d["param_name"]: d["default_value"] for d in described}.items()


def test_what_ran_runs_again_after_a_restart(run: Services) -> None:
    service = run.start(TABLES)
    start_model(service, "echo", "reranker")
    apply(service, "echo", "update_params", reply="prompt")
    service = restart(run, service)
    assert states(service) == {"echo@llm": "ready", "echo-embed@text2vec": "ready", "echo@reranker": "ready"}
    assert reply(service) == " hello you"


def test_what_was_stopped_stays_stopped(run: Services) -> None:
    service = run.start(TABLES)
    apply(service, "echo", "stop")
    kill_worker(service)
    assert states(service) == {"echo@llm": "stopped", "echo-embed@text2vec": "ready"}
    refused = service.post("generate", {"model": "echo", "prompt": "x"})
    assert refused.status_code == 503
    assert "stopped" in refused.json()["text"]
    service = restart(run, service)
    assert states(service) == {"echo@llm": "stopped", "echo-embed@text2vec": "ready"}
    apply(service, "echo", "start")
    kill_worker(service)
    assert states(service) == {"echo@llm": "ready", "echo-embed@text2vec": "ready"}


def test_what_was_shut_down_stays_away(run: Services) -> None:
    service = run.start(TABLES)
    start_model(service, "echo", "reranker")
    stop_model(service, "echo", "reranker")
    stop_model(service, "echo-embed", "text2vec")
    kill_worker(service)
    assert "echo@reranker" not in states(service)
    assert states(service).get("echo-embed@text2vec") in (None, "stopped")
    assert states(service)["echo@llm"] == "ready"
    start_model(service, "echo-embed", "text2vec")
    assert states(service)["echo-embed@text2vec"] == "ready"


def test_fresh_forgets_everything(run: Services) -> None:
    service = run.start(TABLES)
    start_model(service, "echo", "reranker")
    apply(service, "echo", "update_params", reply="prompt")
    stop_model(service, "echo-embed", "text2vec")
    service = restart(run, service, TABLES, "--fresh")
    assert states(service) == {"echo@llm": "ready", "echo-embed@text2vec": "ready"}
    assert reply(service) == " token token"


def test_a_fresh_service_remembers_what_is_said_from_then_on(run: Services) -> None:
    service = run.start(TABLES, "--fresh")
    start_model(service, "echo", "reranker")
    kill_worker(service)
    assert states(service)["echo@reranker"] == "ready"


def test_a_model_that_is_no_longer_configured_is_gone(run: Services) -> None:
    service = run.start(TABLES)
    apply(service, "echo", "update_params", reply="prompt")
    service = restart(run, service, '[[models]]\nname = "echo-embed"\n')
    assert states(service) == {"echo-embed@text2vec": "ready"}


def test_a_parameter_of_the_configuration_counts_again_where_http_said_nothing(run: Services) -> None:
    service = run.start(TABLES)
    apply(service, "echo", "restart")
    service = restart(run, service, '[[models]]\nname = "echo"\nreply = "prompt"\n')
    assert reply(service) == " hello you"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"models": 7}', '{"models": {"echo@llm": 7}}', "\x00\xff"])
def test_a_record_that_can_not_be_read_is_set_aside(run: Services, content: str) -> None:
    folder = run.folder()
    (folder / "state" / "here").mkdir(parents=True)
    (folder / "state" / "here" / "models.json").write_text(content)
    service = run.start(TABLES, folder=folder, instance="here")
    assert states(service) == {"echo@llm": "ready", "echo-embed@text2vec": "ready"}
    assert "models.json" in service.log()


@pytest.mark.parametrize(
    "entry",
    [
        '{"params": {"reply": "nonsense"}}',
        '{"params": 7}',
        '{"model": "nobody", "added": true}',
        '{"added": true}',
        '{"model": 7, "params": [], "deaths": "many", "loading": true}',
    ],
)
def test_a_record_of_nonsense_costs_at_most_its_own_model(run: Services, entry: str) -> None:
    folder = run.folder()
    (folder / "state" / "here").mkdir(parents=True)
    (folder / "state" / "here" / "models.json").write_text(f'{{"models": {{"echo@llm": {entry}}}}}')
    service = run.start(TABLES, folder=folder, instance="here")
    assert states(service)["echo-embed@text2vec"] == "ready"


def deadly(folder: Any) -> str:
    return f"""
    [[models]]
    name = "before"
    engine = "echo"

    [[models]]
    name = "deadly"
    worker_class = "scripted:Scripted"
    die_while = "{folder / "deadly"}"
    journal = "{folder / "journal"}"

    [[models]]
    name = "after"
    engine = "echo"
    """


def test_a_model_that_kills_its_process_twice_is_left_out_and_the_others_live(run: Services) -> None:
    folder = run.folder()
    (folder / "deadly").touch()
    service = run.start(deadly(folder), folder=folder)
    assert states(service) == {"before@llm": "ready", "deadly@llm": "failed", "after@llm": "ready"}
    reason = service.model("deadly@llm")["reason"]
    assert "quarantined" in reason
    assert "modelyard models start deadly" in reason
    assert len((folder / "journal").read_text().splitlines()) == 2, "two deaths, no more and no less"
    assert reply(service, "after") == " token token"
    # It stays out, after whatever kind of restart, until a person starts it.
    kill_worker(service)
    service = restart(run, service, deadly(folder))
    assert states(service) == {"before@llm": "ready", "deadly@llm": "failed", "after@llm": "ready"}
    (folder / "deadly").unlink()
    apply(service, "deadly", "start")
    assert service.post("generate", {"model": "deadly", "prompt": "x"}).status_code == 200
    kill_worker(service)
    assert states(service) == {"before@llm": "ready", "deadly@llm": "ready", "after@llm": "ready"}


def test_a_model_in_quarantine_may_be_started_like_one_that_is_new(run: Services) -> None:
    folder = run.folder()
    (folder / "deadly").touch()
    service = run.start(deadly(folder), folder=folder)
    assert states(service)["deadly@llm"] == "failed"
    (folder / "deadly").unlink()
    start_model(service, "deadly")
    assert service.post("generate", {"model": "deadly", "prompt": "x"}).status_code == 200
    kill_worker(service)
    assert states(service)["deadly@llm"] == "ready"


def test_a_model_that_dies_when_a_person_starts_it_costs_the_others_one_restart(run: Services) -> None:
    folder = run.folder()
    service = run.start(deadly(folder), folder=folder)
    apply(service, "deadly", "stop")
    (folder / "deadly").touch()
    before = service.worker_pid()
    with pytest.raises(OSError):
        service.post("apply", {"model": "deadly", "apply_type": "start"})
    wait_until(lambda: service.worker_pid() not in (0, before), "another worker")
    service.wait_ready()
    wait_until(lambda: states(service).get("deadly@llm") in ("stopped", "failed"), "an end of the deaths")
    assert states(service)["before@llm"] == states(service)["after@llm"] == "ready"
    starts = (folder / "journal").read_text().count("start")
    kill_worker(service)
    assert states(service)["after@llm"] == "ready"
    assert (folder / "journal").read_text().count("start") <= starts + 1


def test_deaths_that_are_not_the_loading_ones_are_not_counted(run: Services) -> None:
    folder = run.folder()
    service = run.start(deadly(folder), folder=folder)
    for _ in range(4):
        kill_worker(service)
    assert states(service) == {"before@llm": "ready", "deadly@llm": "ready", "after@llm": "ready"}


def test_an_end_while_a_model_loads_is_no_death(run: Services) -> None:
    folder = run.folder()
    tables = f"""
    [[models]]
    name = "late"
    worker_class = "scripted:Scripted"
    start_when = "{folder / "go"}"
    """
    service = run.start(tables, folder=folder, wait="up", drain_timeout=0.2)
    for _ in range(2):
        wait_until(lambda service=service: service.model("late@llm").get("reason") == "reading the script", "its load")
        service = restart(run, service, tables, wait="up", drain_timeout=0.2)
    (folder / "go").touch()
    service.wait_ready()
    assert states(service) == {"late@llm": "ready"}
