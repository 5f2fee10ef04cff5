"""The extension puts blueprints into an application and nothing else; ours is an application and the extension."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask
from in_process import serving
from modelyard.cluster.hosting import host
from modelyard.cluster.registry.sqlite import SqliteRegistry
from modelyard.errors import ConfigError
from modelyard.server.extension import Modelyard, create_app, current_modelyard
from modelyard.server.runtime import Runtime
from modelyard.settings.settings import Settings
from running import free_port, wait_until


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("MODELYARD_MODELS_DIRS", str(tmp_path / "models"))


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[Runtime]]:
    """Runtimes that are stopped in the end, and their hosts."""
    runtimes: list[Runtime] = []
    yield runtimes
    for runtime in runtimes:
        runtime.stop()
    # Else they stay a while, for others.
    shutil.rmtree(tmp_path / "state", ignore_errors=True)
    wait_until(lambda: all(child.poll() is not None for child in host._children), "the hosts have ended")
    host._children.clear()


def rules(app: Flask) -> set[tuple[str, str]]:
    return {(rule.rule, ",".join(sorted(rule.methods or ()))) for rule in app.url_map.iter_rules()}


def test_our_application_is_a_flask_application_with_the_extension() -> None:
    theirs = Flask("theirs", static_folder=None)
    Modelyard(theirs, url_prefix="/api", probes_prefix="", docs=True, metrics="guarded")
    assert rules(create_app(Settings(models=[], role="worker"))) == rules(theirs)


def test_the_registry_is_in_our_application_and_in_theirs_if_it_is_asked_for() -> None:
    ours, theirs = create_app(Settings(models=[], pages=False)), Flask("theirs", static_folder=None)
    options = {"role": "standalone", "openai": True, "docs": True, "metrics": "guarded"}
    Modelyard(theirs, url_prefix="/api", probes_prefix="", **options)
    assert ("/api/controller/instances", "DELETE,OPTIONS") in rules(ours)
    assert ("/api/v1/chat/completions", "POST") in rules(theirs)
    assert rules(theirs) <= rules(ours)
    # OpenAI's API has more base URLs in an application that has nothing else.
    below = {(path.removeprefix("/api"), methods) for path, methods in rules(theirs)}
    below |= {(path.removeprefix("/v1"), methods) for path, methods in below}
    assert rules(ours) - rules(theirs) <= below


def test_an_application_in_remote_mode_has_the_worker_api_and_no_controller() -> None:
    app = Flask("theirs", static_folder=None)
    Modelyard(app, registry="http://127.0.0.1:1/api")
    assert "/api/worker/generate" in {path for path, _ in rules(app)}
    of_controllers = {rule for rule in rules(app) if "controller" in rule[0]}
    assert of_controllers == {("/api/controller/instances", "GET,HEAD,OPTIONS")}, "docs/placement.md says so"


def test_models_inline_are_not_loaded_where_gevent_runs_and_their_calls_say_why(
    monkeypatch: pytest.MonkeyPatch, started: list[Runtime]
) -> None:
    monkeypatch.setattr("modelyard.server.runtime.is_patched", lambda: True)
    app = Flask("app")
    started.append(Modelyard(app, models=["echo"], placement="inline") and app.extensions["modelyard"])
    started[0].start()
    assert started[0].wait_loaded(10)
    client = app.test_client()
    assert "gevent" in client.get("/api/readyz").json["models"][0]["reason"]
    answer = client.post("/api/worker/generate", json={"model": "echo", "prompt": "x"})
    assert (answer.status_code, "gevent" in answer.json["text"]) == (503, True)


def test_nothing_of_the_application_is_touched_but_its_blueprints() -> None:
    app = Flask("app")
    before = {
        "json": app.json,
        "after": dict(app.after_request_funcs),
        "teardown": list(app.teardown_appcontext_funcs),
        "config": dict(app.config),
        "processors": list(app.template_context_processors[None]),
        "commands": list(app.cli.commands),
    }
    Modelyard(app)
    assert app.error_handler_spec[None] == {}
    assert app.json is before["json"]
    assert app.after_request_funcs.get(None) == before["after"].get(None)
    assert app.teardown_appcontext_funcs == before["teardown"]
    assert dict(app.config) == before["config"]
    assert app.template_context_processors[None] == before["processors"]
    assert list(app.cli.commands) == before["commands"]


def test_an_application_gets_it_from_the_constructor_or_from_a_factory() -> None:
    one, other = Flask("one"), Flask("other")
    Modelyard(one, url_prefix="/ml", models=["echo"])
    extension = Modelyard(models=["echo"])
    runtime = extension.init_app(other, url_prefix="/ml")
    assert rules(one) == rules(other)
    assert other.extensions["modelyard"] is runtime
    assert one.extensions["modelyard"] is not runtime


def test_one_extension_serves_many_applications() -> None:
    extension = Modelyard(models=["echo"])
    runtimes = [extension.init_app(Flask(name), url_prefix=f"/{name}") for name in ("one", "two")]
    assert runtimes[0] is not runtimes[1]
    assert [runtime.settings.prefix for runtime in runtimes] == ["/one", "/two"]
    assert runtimes[0].settings.instance_name != runtimes[1].settings.instance_name


@pytest.mark.parametrize("way", ["constructor", "init_app"])
def test_a_callback_after_the_start_is_given_to_either(way: str) -> None:
    app, calls = Flask("app"), []
    if way == "constructor":
        Modelyard(app, models=[], placement="inline", after_start=calls.append)
    else:
        Modelyard(models=[], placement="inline").init_app(app, after_start=calls.append)
    runtime = app.extensions["modelyard"]
    runtime.start()
    try:
        wait_until(lambda: calls == [runtime.manager], "it was called with the manager")
    finally:
        runtime.stop()


@pytest.mark.parametrize("way", ["constructor", "init_app"])
def test_the_worker_api_can_be_left_out(way: str) -> None:
    app = Flask("app", static_folder=None)
    if way == "constructor":
        Modelyard(app, worker=False)
    else:
        Modelyard().init_app(app, worker=False)
    assert {rule for rule, _ in rules(app)} == {"/api/health", "/api/healthz", "/api/readyz", "/api/openapi.json"}


def test_the_config_of_the_application_counts_less_than_what_is_said_in_code() -> None:
    app = Flask("app")
    app.config.update(MODELYARD_THREADS=64, MODELYARD_RESERVE=4, MODELYARD_MODELS=["echo"])
    runtime = Modelyard(threads=32).init_app(app)
    assert (runtime.budget.threads, runtime.budget.reserve, runtime.names) == (32, 4, ["echo"])


@pytest.mark.parametrize("options", [{"thraeds": 3}, {"threads": "many"}, {"models": ["nobody"]}, {"url_prefix": "x"}])
def test_what_does_not_fit_is_told_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Modelyard(Flask("app"), **options)


def test_a_name_in_the_config_that_is_no_setting_is_refused_with_the_nearest() -> None:
    app = Flask("theirs")
    app.config.update(MODELYARD_PROT=9, MODELYARD_XYZZY=1, PORT=9)
    with pytest.raises(ConfigError) as caught:
        Modelyard(app)
    assert str(caught.value) == (
        "app.config['MODELYARD_PROT']: no such setting (did you mean MODELYARD_PORT?); "
        "app.config['MODELYARD_XYZZY']: no such setting"
    )


def test_a_variable_that_nothing_reads_is_refused_before_the_server_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_PROT", "9")
    with pytest.raises(ConfigError, match=r"environment, MODELYARD_PROT: nothing reads it \(did you mean"):
        Modelyard(Flask("theirs"))


def test_it_starts_no_model_that_nobody_named() -> None:
    assert Modelyard().init_app(Flask("app")).names == []


def test_nothing_starts_before_the_first_request(tmp_path: Path, started: list[Runtime]) -> None:
    app = Flask("app")
    before = threading.active_count()
    started.append(Modelyard(models=["echo"]).init_app(app))
    assert threading.active_count() == before
    assert not (tmp_path / "state").exists()
    assert app.test_client().get("/nowhere").status_code == 404
    assert started[0].wait_loaded(10)
    assert app.test_client().get("/api/readyz").json["ready"] is True


def test_it_may_be_started_before_the_first_request(started: list[Runtime]) -> None:
    runtime = Modelyard(models=["echo"]).init_app(Flask("app"))
    started.append(runtime)
    runtime.start()
    assert runtime.wait_loaded(10)
    assert runtime.manager.count_token("echo", "one two") == 2


def registered(path: Path) -> dict[str, str]:
    """Return the addresses of the instances in the registry in a file, by key."""
    return {row.key: row.url for row in SqliteRegistry(path).instances(healthy_only=True)}


@pytest.mark.parametrize("placement", ["inline", "hosted"])
def test_an_application_is_registered_at_the_port_that_it_listens_on(
    tmp_path: Path, started: list[Runtime], placement: str
) -> None:
    app, port, path = Flask("app"), free_port(), tmp_path / "registry.db"
    options = {"models": ["echo"], "placement": placement, "registry": f"sqlite:///{path}"}
    started.append(Modelyard(**options).init_app(app, url_prefix="/ml/api"))
    with serving(app, port):
        requests.get(f"http://127.0.0.1:{port}/", timeout=10)
        assert started[0].wait_loaded(20)
        status = requests.get(f"http://127.0.0.1:{port}/ml/api/readyz", timeout=10).json()
        url = f"http://127.0.0.1:{port}/ml/api"
        assert registered(path) == {"WorkerManager@service": url, "echo@llm": url}
        assert status["cluster"] == {"url": url, "registered": ["WorkerManager@service", "echo@llm"], "error": None}


def test_an_application_whose_port_is_not_known_is_not_registered_and_says_so(
    tmp_path: Path, started: list[Runtime], caplog: pytest.LogCaptureFixture
) -> None:
    app, port, path = Flask("app"), free_port(), tmp_path / "registry.db"
    options = {"models": ["echo"], "placement": "inline", "registry": f"sqlite:///{path}"}
    runtime = Modelyard(**options).init_app(app)
    started.append(runtime)
    runtime.start()
    assert runtime.wait_loaded(10)
    status = runtime.status()
    assert status["ready"]
    assert status["cluster"]["url"] == ""
    assert "set advertise, or port" in status["cluster"]["error"]
    assert "set advertise, or port" in caplog.text
    assert registered(path) == {}
    with serving(app, port):
        assert requests.get(f"http://127.0.0.1:{port}/", timeout=10).status_code == 404
        url = f"http://127.0.0.1:{port}/api"
        wait_until(lambda: registered(path) == {"WorkerManager@service": url, "echo@llm": url}, "it knows its port")
        assert runtime.status()["cluster"]["error"] is None


def test_a_host_that_is_started_before_the_port_is_known_says_so_and_is_registered_with_the_first_request(
    tmp_path: Path, started: list[Runtime]
) -> None:
    app, port, path = Flask("app"), free_port(), tmp_path / "registry.db"
    runtime = Modelyard(models=["echo"], registry=f"sqlite:///{path}").init_app(app)
    started.append(runtime)
    runtime.start()
    assert runtime.wait_loaded(20)
    assert "set advertise, or port" in runtime.status()["cluster"]["error"]
    assert registered(path) == {}
    pid = runtime.status()["host"]["pid"]
    with serving(app, port):
        assert requests.get(f"http://127.0.0.1:{port}/", timeout=10).status_code == 404
        url = f"http://127.0.0.1:{port}/api"
        cluster = {"url": url, "registered": ["WorkerManager@service", "echo@llm"], "error": None}
        # The host notes it after the registry has the rows.
        wait_until(lambda: runtime.status()["cluster"] == cluster, "it has the port")
        assert registered(path) == {"WorkerManager@service": url, "echo@llm": url}
        status = runtime.status()
    assert status["host"]["pid"] == pid, "the models are not started twice"


@pytest.mark.parametrize("started_by", ["the first request", "the caller"])
def test_our_application_without_hooks_is_registered_at_the_port_of_its_first_request(
    tmp_path: Path,
    started: list[Runtime],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    started_by: str,
) -> None:
    monkeypatch.setenv("MODELYARD_MODELS", "echo")
    app, port = create_app(), free_port()
    runtime = app.extensions["modelyard"]
    started.append(runtime)
    path = tmp_path / "state" / "standalone-8000" / "registry.db"
    if started_by == "the caller":
        runtime.start()
        assert runtime.wait_loaded(10)
        assert runtime.status()["cluster"]["registered"] == []
        assert caplog.text.count("set advertise, or port") == 1
        assert registered(path) == {}
    with serving(app, port):
        assert requests.get(f"http://127.0.0.1:{port}/healthz", timeout=10).status_code == 200
        url = f"http://127.0.0.1:{port}/api"
        wait_until(lambda: "echo@llm" in registered(path), "it has the port")
        assert registered(path) == {"WorkerManager@service": url, "echo@llm": url}
        assert [folder.name for folder in (tmp_path / "state").iterdir()] == ["standalone-8000"]


def test_a_port_of_the_environment_is_that_of_our_application(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_PORT", "21125")
    runtime = create_app().extensions["modelyard"]
    assert (runtime.settings.port, runtime.settings.instance_name) == (21125, "standalone-21125")


def test_a_port_that_is_set_needs_no_request(tmp_path: Path, started: list[Runtime]) -> None:
    path = tmp_path / "registry.db"
    options = {"models": ["echo"], "placement": "inline", "registry": f"sqlite:///{path}", "port": 21125}
    runtime = Modelyard(**options).init_app(Flask("app"))
    started.append(runtime)
    runtime.start()
    assert runtime.wait_loaded(10)
    assert registered(path)["echo@llm"] == "http://127.0.0.1:21125/api"


def test_the_runtime_is_that_of_the_current_application() -> None:
    app = Flask("app")
    runtime = Modelyard().init_app(app)
    with app.app_context():
        assert current_modelyard() is runtime
    with Flask("other").app_context(), pytest.raises(RuntimeError, match="Modelyard"):
        current_modelyard()


def test_the_manager_may_be_swapped(started: list[Runtime]) -> None:
    class Other:
        def count_token(self, model: str | None, prompt: str, **options: Any) -> int:
            return 42

    app = Flask("app")
    runtime = Modelyard(models=["echo"]).init_app(app)
    started.append(runtime)
    runtime.manager = Other()  # type: ignore[assignment]
    assert app.test_client().post("/api/worker/count_token", json={"prompt": "x"}).json == 42


def test_a_refusal_by_an_earlier_before_request_is_the_applications_own(started: list[Runtime]) -> None:
    app = Flask("app")
    app.before_request(lambda: ("not you", 403))
    started.append(Modelyard(models=["echo"]).init_app(app))
    for call in ("generate", "generate_stream", "embeddings", "apply"):
        answer = app.test_client().post(f"/api/worker/{call}", json={})
        assert (answer.status_code, answer.text) == (403, "not you")
