"""Models that other servers compute run in each process of a gateway: without owner, state, host or registration."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import in_process
import pytest
import requests
from in_process import SCRIPTED
from modelyard.cli.examine import examine
from modelyard.engines.scripted import Answers
from modelyard.errors import ConfigError, NotReady, UnknownModel, Unsupported
from modelyard.server import runtime as runtimes
from modelyard.server.runtime import Runtime
from modelyard.settings.settings import Settings
from modelyard.types import GenerateRequest, JSONObject
from running import free_port, wait_until

SLOTS = {"limit_model_concurrency": 4}


@pytest.fixture(scope="module")
def answers() -> Answers:
    return Answers()


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory, answers: Answers) -> Iterator[Runtime]:
    table = {"name": "gpt", "worker_class": SCRIPTED, "script": answers.key, "limit_model_concurrency": 4}
    with in_process.service(tmp_path_factory.mktemp("backend"), [table], role="standalone") as runtime:
        yield runtime


def table(port: int, **more: Any) -> JSONObject:
    url = f"http://127.0.0.1:{port}/v1"
    return {"name": "large", "engine": "openai", "base_url": url, "backend_model": "gpt", **SLOTS, **more}


def text_of(runtime: Runtime, model: str = "large") -> str:
    return runtime.manager.generate(GenerateRequest(model, prompt="one two")).text


def test_a_gateway_answers_by_itself(tmp_path: Path, backend: Runtime) -> None:
    tables = [table(backend.settings.port, context_length=4096), {"name": "echo"}, {"name": "smollm2-135m"}]
    store = f"sqlite:{tmp_path}/registry.db"
    with in_process.service(tmp_path / "g", tables, role="gateway", registry=store) as gateway:
        assert gateway.names == ["large"], "the others have weights, or compute here"
        assert text_of(gateway) == "one two"
        models = requests.get(f"http://127.0.0.1:{gateway.settings.port}/v1/models", timeout=10).json()["data"]
        assert [(m["id"], m["status"]["value"], m["max_model_len"]) for m in models] == [("large", "loaded", 4096)]
        status = gateway.status()
        assert (status["ready"], [m["model"] for m in status["models"]]) == (True, ["large@llm"])
        assert status["cluster"]["registered"] == []
        assert gateway.cluster is not None
        assert gateway.cluster.registry.instances() == []
        assert not (tmp_path / "g" / "state").exists(), "nothing is kept: another process may have the same"
        # It is no machine: a change would count in one of its processes alone.
        with pytest.raises(NotReady, match="no worker service"):
            gateway.manager.model_startup("other", None, {})
        with pytest.raises(UnknownModel):
            gateway.manager.model_shutdown("other", None)
        for change in (
            lambda: gateway.manager.model_startup("large", None, {}),
            lambda: gateway.manager.model_shutdown("large", None),
            lambda: gateway.manager.worker_apply("large", "restart", None, {}),
        ):
            with pytest.raises(Unsupported, match="'large' is in the configuration of this gateway"):
                change()


def test_it_answers_beside_workers_with_the_same_model(tmp_path: Path, backend: Runtime, answers: Answers) -> None:
    store = f"sqlite:{tmp_path}/registry.db"
    tables = [table(backend.settings.port, limit_model_concurrency=1, max_waiting=0)]
    with (
        in_process.service(tmp_path / "w", tables, role="worker", registry=store) as worker,
        in_process.service(tmp_path / "g", tables, role="gateway", registry=store) as gateway,
    ):
        wait_until(lambda: len(gateway.manager.get_model_instances("large@llm")) == 2, "both instances are in view")
        answers.hold("a")
        answers.hold("b")
        streams = [gateway.manager.generate_stream(GenerateRequest("large", prompt="x")) for _ in range(2)]
        assert [next(burst for burst in stream if burst is not None).pieces for stream in streams] == [["a"], ["b"]]
        loads = {runtime.local.load_of("large", "llm") for runtime in (worker, gateway)}
        assert loads == {"slots=1;free=0;waiting=0"}
        for stream in streams:
            stream.close()


def test_a_gateway_needs_no_registry_for_its_own_models(tmp_path: Path, backend: Runtime) -> None:
    with in_process.service(tmp_path, [table(backend.settings.port)], role="gateway", registry=None) as gateway:
        assert gateway.status()["ready"]
        assert text_of(gateway) == "one two"


def test_a_gateway_without_anything_to_answer_with_is_refused() -> None:
    with pytest.raises(ConfigError, match="--registry"):
        Settings(role="gateway")
    with pytest.raises(ConfigError, match="--registry"):
        Runtime(Settings(role="gateway", model_tables=({"name": "echo"},)))


def test_a_backend_that_comes_later_is_found(
    tmp_path: Path, answers: Answers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runtimes, "RESTART_PAUSE", 0.02)
    port = free_port()
    gpt = {"name": "gpt", "worker_class": SCRIPTED, "script": answers.key}
    with in_process.service(
        tmp_path / "g", [table(port)], role="gateway", registry=f"sqlite:{tmp_path}/r.db", on_load_failure="exit"
    ) as gateway:
        assert gateway.status()["ready"], "it can answer with other models"
        with pytest.raises(NotReady):
            text_of(gateway)
        with in_process.service(tmp_path / "b", [gpt], role="standalone", port=port):
            wait_until(lambda: gateway.status()["models"][0]["state"] == "ready", "the backend is found")
            assert text_of(gateway) == "one two"
    failures = [record for record in caplog.records if "did not start" in record.getMessage()]
    assert failures
    assert not any(record.exc_info for record in failures), "the cause is clear"
    assert "does not answer" not in caplog.text, "once is enough"


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('base_url = ""', "base_url: has no address"),
        ('base_url = "10.0.0.7:8000/v1"', "base_url: '10.0.0.7:8000/v1' is not a valid address: expected http://"),
        ('base_url = "http://b:99999/v1"', "base_url: Port out of range"),
        (
            'base_url = "http://b/v1/chat/completions"',
            "base_url: 'http://b/v1/chat/completions' is not an address that",
        ),
        ('base_url = "http://a/v1,http://b/v1?key=1"', "base_url: 'http://b/v1?key=1' is not an address that"),
        ('base_url = "http://b/v1"\nset_params = ["top_p"]', "set_params: 'top_p' must be NAME=JSON"),
        ('base_url = "http://b/v1"\nrename_params = ["a="]', "rename_params: 'a=' must be NAME=OTHER"),
    ],
)
def test_what_can_never_work_is_a_fault_of_the_configuration(tmp_path: Path, line: str, fault: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f'[[models]]\nname = "large"\nengine = "openai"\n{line}\n')
    options = {"role": "gateway", "config": str(path), "state_dir": str(tmp_path), "models_dirs": str(tmp_path)}
    (message,) = examine(options, (), {}).faults
    assert message.startswith(f"configuration file, model 'large': {fault}")


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        ('engine = "openai"', "model 'large': missing: base_url"),
        ('engine = "opena"', "model 'large': engine 'opena' is unknown: there are echo, "),
    ],
)
def test_a_model_with_a_fault_is_named(tmp_path: Path, table: str, fault: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f'[[models]]\nname = "large"\n{table}\n')
    options = {"role": "gateway", "config": str(path), "state_dir": str(tmp_path), "models_dirs": str(tmp_path)}
    assert examine(options, (), {}).faults[0].startswith(fault)


def test_models_that_are_those_of_workers_are_no_fault_of_a_gateway(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[[models]]\nname = "large"\nengine = "openai"\nbase_url = "http://b/v1"\n')
    options = {"role": "gateway", "config": str(path), "state_dir": str(tmp_path), "models_dirs": str(tmp_path)}
    report = examine(options | {"models": "echo,large,other"}, (), {})
    assert (report.faults, [model.key for model in report.models]) == ([], ["large@llm"])


def test_check_config_shows_the_models_of_a_gateway(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        '[[models]]\nname = "large"\nengine = "openai"\nbase_url = "http://b/v1"\n[[models]]\nname = "echo"\n'
    )
    options = {"role": "gateway", "config": str(path), "state_dir": str(tmp_path), "models_dirs": str(tmp_path)}
    report = examine(options, (), {})
    assert report.faults == []
    assert [model.key for model in report.models] == ["large@llm"]
    assert report.values["models"].value == ["large"]
