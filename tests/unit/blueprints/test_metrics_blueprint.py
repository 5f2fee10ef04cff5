"""``/metrics``: what a service that has done one of everything shows, in which format, and to whom."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import steered
import yaml
from flask import Flask
from flask.testing import FlaskClient
from modelyard.access.tokens import Token, digest_of, new_secret
from modelyard.cluster.registry.base import Instance
from modelyard.errors import RegistryUnavailable
from modelyard.server.extension import KEY, Modelyard, create_app
from modelyard.server.runtime import Runtime
from modelyard.settings.settings import Settings
from modelyard.telemetry.metrics import FAMILIES, ROUTED
from modelyard.types import GenerateRequest
from prometheus_client import REGISTRY
from running import ROOT
from scraped import samples_in, value_in
from steered import Steered

DEPLOY = ROOT / "deploy"
TABLES: tuple[dict[str, Any], ...] = (
    {"name": "s", "worker_class": steered.PATH, "limit_model_concurrency": 1, "max_waiting": 1},
    {"name": "echo"},
    {"name": "emb", "engine": "echo", "worker_type": "text2vec"},
    {"name": "rank", "engine": "echo", "worker_type": "reranker"},
    {"name": "absent", "engine": "llama.cpp", "model_path": "absent.gguf"},
)
CHAT = "/v1/chat/completions"


def made(folder: Path, **settings: Any) -> Flask:
    given = {"state_dir": str(folder / "state"), "models_dirs": [str(folder)], "registry": "memory:"}
    return create_app(Settings(**{**given, "model_tables": TABLES, **settings}))


Build = Callable[..., Flask]


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    """Give what makes applications, whose runtimes are stopped in the end."""
    Steered.reset()
    with ExitStack() as stack:

        def build(**settings: Any) -> Flask:
            app = made(tmp_path, **settings)
            stack.callback(app.extensions[KEY].stop)
            return app

        yield build
        Steered.go.set()


@pytest.fixture
def app(build: Build) -> Flask:
    app = build()
    runtime: Runtime = app.extensions[KEY]
    runtime.start()
    assert runtime.wait_loaded(10)
    return app


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def scraped(client: FlaskClient) -> str:
    response = client.get("/metrics")
    assert response.status_code == 200
    return response.text


def value(client: FlaskClient, name: str, **labels: str) -> float:
    return value_in(scraped(client), name, **labels)


def chat(client: FlaskClient, model: str = "echo", **more: Any) -> Any:
    body = {"model": model, "messages": [{"role": "user", "content": "one two three"}], **more}
    response = client.post(CHAT, json=body)
    response.get_data()
    response.close()
    return response


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_counted_once(client: FlaskClient, stream: bool):
    chat(client, stream=stream)
    labels = {"model": "echo", "worker_type": "llm"}
    assert value(client, "request_success_total", **labels) == 1
    for name in ("request_queue_time", "time_to_first_token", "e2e_request_latency"):
        assert value(client, f"{name}_seconds_count", **labels) == 1, name
    assert value(client, "request_time_per_output_token_seconds_count", **labels) == 1
    assert value(client, "prompt_tokens_total", **labels) > 0
    assert value(client, "generation_tokens_total", **labels) >= 3
    assert value(client, "routed_request_success_total", **labels) == 1
    assert value(client, "http_requests_total", status="200") == 1


def test_an_answer_that_breaks_off_has_tokens_and_no_duration(client: FlaskClient, app: Flask):
    manager = app.extensions[KEY].manager
    stream = manager.generate_stream(GenerateRequest("echo", prompt="one", max_new_tokens=100))
    assert next(stream) is not None
    stream.close()
    assert value(client, "request_failure_total", model="echo", error="cancelled") == 1
    assert value(client, "generation_tokens_total", model="echo") == 64
    assert value(client, "e2e_request_latency_seconds_count", model="echo") == 0


def test_texts_are_counted_by_call(client: FlaskClient):
    assert client.post("/v1/embeddings", json={"model": "emb", "input": ["a", "b", "c"]}).status_code == 200
    body = {"model": "rank", "query": "a", "documents": ["b", "c"]}
    assert client.post("/v1/rerank", json=body).status_code == 200
    assert value(client, "texts_total", model="emb", worker_type="text2vec") == 3
    assert value(client, "texts_total", model="rank", worker_type="reranker") == 3, "the query is one"
    assert value(client, "request_texts_bucket", model="emb", le="4.0") == 1
    assert value(client, "request_texts_bucket", model="emb", le="2.0") == 0
    assert (value(client, "batch_texts_count", model="emb"), value(client, "batch_texts_sum", model="emb")) == (1, 3)
    assert value(client, "batch_texts_count", model="rank") == 0, "a reranker embeds nothing"


def test_lines_and_refusals_are_seen_while_the_model_is_full(client: FlaskClient, app: Flask):
    runtime: Runtime = app.extensions[KEY]
    before = runtime.metrics.counts()
    with ExitStack() as streams:
        for _ in range(2):
            streams.enter_context(runtime.manager.generate_stream(GenerateRequest("s", prompt="hold")))
        assert value(client, "num_requests_running", model="s") == 1
        assert value(client, "num_requests_waiting", model="s", priority="interactive") == 1
        assert value(client, "num_slots", model="s") == 1
        assert value(client, "num_waiting_places", model="s") == 1
        assert chat(client, "s").status_code == 503
    assert value(client, "requests_refused_total", reason="overloaded") == 1
    assert value(client, "request_failure_total", model="s", error="overloaded") == 1
    assert value(client, "request_failure_total", model="s", error="cancelled") == 2
    assert value(client, "num_requests_running", model="s") == 0
    assert set(before) <= set(FAMILIES)


def test_a_scrape_takes_no_thread_and_is_answered_while_the_service_drains(client: FlaskClient, app: Flask):
    runtime: Runtime = app.extensions[KEY]
    for _ in range(runtime.budget.total):
        runtime.budget.enter()
    assert value(client, "threads_held") == runtime.budget.total
    assert value(client, "threads_reserved") == runtime.settings.reserve
    for _ in range(runtime.budget.total):
        runtime.budget.leave()
    runtime.drain(0)
    assert value(client, "threads_held") == 0


def test_states_and_starts_of_models(client: FlaskClient):
    assert value(client, "model_state", model="echo", state="ready") == 1
    assert value(client, "model_state", model="echo", state="failed") == 0
    assert value(client, "model_state", model="absent", state="failed") == 1
    assert value(client, "model_load_seconds_count", model="echo") == 1
    assert value(client, "model_load_failures_total", model="absent") == 1


def test_a_controller_shows_its_registry_which_is_read_for_a_scrape_alone(
    build: Build, monkeypatch: pytest.MonkeyPatch
):
    app = build(role="controller", model_tables=())
    runtime: Runtime = app.extensions[KEY]
    assert runtime.cluster is not None
    registry = runtime.cluster.registry
    registry.beat([Instance("m@llm", f"http://10.0.0.{number}:8000/api") for number in (7, 8)])
    registry.deregister([Instance("m@llm", "http://10.0.0.8:8000/api")])
    client = app.test_client()
    assert value(client, "instances", model="m", worker_type="llm", state="usable") == 1
    assert value(client, "instances", model="m", worker_type="llm", state="unhealthy") == 1
    assert value(client, "registry_up") == 1
    reads: list[None] = []

    def fail(*_: object, **__: object) -> list[Instance]:
        reads.append(None)
        raise RegistryUnavailable("away")

    monkeypatch.setattr(registry, "instances", fail)
    assert value(client, "registry_up") == 0
    assert len(reads) == 1


def test_what_a_client_writes_is_no_label(client: FlaskClient):
    assert chat(client, "no-such-model").status_code == 404
    client.open("/v1/chat/completions", method="BREW")
    client.get("/v1/no/such/path")
    text = client.get("/metrics").text
    assert not re.search("no-such-model|BREW|no/such", text)
    assert value(client, "http_requests_total", call="openai.chat_completions", status="404") == 1


# The format


def test_the_scraper_chooses_the_format(client: FlaskClient):
    plain = client.get("/metrics")
    assert plain.content_type.startswith("text/plain; version=0.0.4")
    accept = {"Accept": "application/openmetrics-text; version=1.0.0; charset=utf-8"}
    openmetrics = client.get("/metrics", headers=accept)
    assert openmetrics.content_type.startswith("application/openmetrics-text; version=")
    assert openmetrics.text.endswith("# EOF\n")


def test_nothing_is_registered_where_an_application_looks(client: FlaskClient):
    chat(client)
    assert not [family.name for family in REGISTRY.collect() if family.name.startswith("modelyard")]


def test_the_files_of_an_application_with_several_processes_are_left_alone(tmp_path: Path):
    # What it sets for metrics of its own; prometheus-client reads it at its import.
    script = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "import prometheus_client\nfrom test_metrics_blueprint import KEY, Path, chat, made\n"
        "app = made(Path(sys.argv[1]))\napp.extensions[KEY].start()\napp.extensions[KEY].wait_loaded(10)\n"
        "assert chat(app.test_client()).status_code == 200\n"
        "assert b'modelyard_request_success_total{' in app.test_client().get('/metrics').data\n"
        "app.extensions[KEY].stop()"
    )
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(theirs)}
    folders = [str(Path(module.__file__ or "").parent) for module in (steered, sys.modules[__name__])]
    subprocess.run([sys.executable, "-c", script, str(tmp_path), *folders], env=environ, check=True, timeout=60)
    assert not [path for path in theirs.iterdir() if b"modelyard" in path.read_bytes()]


# Who may read


SECRETS = {scope: new_secret() for scope in ("infer", "worker", "metrics", "admin")}
TOKENS = [Token(scope, frozenset({scope}), digest_of(secret)).line for scope, secret in SECRETS.items()]


@pytest.mark.parametrize(
    ("scope", "status"), [("infer", 403), ("worker", 403), ("metrics", 200), ("admin", 200), (None, 401)]
)
def test_tokens_need_the_scope(build: Build, scope: str | None, status: int):
    client = build(tokens=TOKENS).test_client()
    headers = {} if scope is None else {"Authorization": f"Bearer {SECRETS[scope]}"}
    assert client.get("/metrics", headers=headers).status_code == status


def test_a_token_for_metrics_is_for_nothing_else(build: Build):
    client = build(tokens=TOKENS).test_client()
    headers = {"Authorization": f"Bearer {SECRETS['metrics']}"}
    assert client.get("/v1/models", headers=headers).status_code == 403
    assert client.get("/api/controller/instances", headers=headers).status_code == 403


def test_a_network_may_have_the_scope(build: Build):
    client = build(tokens=TOKENS, trusted_networks=["10.0.0.0/8=metrics"]).test_client()
    inside, outside = ({"REMOTE_ADDR": address} for address in ("10.1.2.3", "11.1.2.3"))
    assert client.get("/metrics", environ_overrides=inside).status_code == 200
    assert client.get("/metrics", environ_overrides=outside).status_code == 401


def test_everybody_may_read_where_they_are_open_and_nobody_where_they_are_off(build: Build):
    outside = {"REMOTE_ADDR": "11.1.2.3"}
    app = build(tokens=TOKENS, metrics="open")
    assert app.test_client().get("/metrics", environ_overrides=outside).status_code == 200
    app = build(metrics="off")
    assert app.test_client().get("/metrics").status_code == 404


def test_an_application_has_metrics_if_it_asks(tmp_path: Path):
    options: dict[str, Any] = {"url_prefix": "/ml", "state_dir": str(tmp_path), "models": [], "placement": "inline"}
    for metrics, status in (({}, 404), ({"metrics": "guarded"}, 200)):
        app = Flask("theirs")
        runtime = Modelyard().init_app(app, **options, **metrics)
        try:
            assert app.test_client().get("/ml/metrics").status_code == status
        finally:
            runtime.stop()


# What is shipped with it, and written about it


def exposed_names(client: FlaskClient) -> set[str]:
    """Return the names of all samples, and those that families without any would have."""
    names = {f"modelyard_{name}" for name in samples_in(scraped(client))}
    for family in FAMILIES.values():
        endings = ("_bucket", "_sum", "_count") if family.kind == "histogram" else ("",)
        names |= {family.exposed_name + ending for ending in endings}
    return names


def test_the_dashboard_and_the_alerts_read_metrics_that_there_are(client: FlaskClient):
    alerts = yaml.safe_load((DEPLOY / "prometheus-alerts.yml").read_text())
    rules = [rule for group in alerts["groups"] for rule in group["rules"]]
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    targets = [target for panel in dashboard["panels"] for target in panel.get("targets", ())]
    queries = [variable["definition"] for variable in dashboard["templating"]["list"] if "definition" in variable]
    expressions = [rule["expr"] for rule in rules] + [target["expr"] for target in targets] + queries
    read = {name for expression in expressions for name in re.findall(r"modelyard_\w+", expression)}
    assert read - exposed_names(client) == set()
    assert len(read) > 20
    assert len({rule["alert"] for rule in rules}) == len(rules)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_the_labels_in_expressions_are_those_of_the_metrics():
    texts = [(DEPLOY / name).read_text() for name in ("prometheus-alerts.yml", "grafana-dashboard.json")]
    families = {
        family.exposed_name + ending: family
        for family in FAMILIES.values()
        for ending in ("", "_bucket", "_sum", "_count")
    }
    for text in texts:
        for name, selector in re.findall(r"(modelyard_\w+)\{([^}]*)\}", text.replace('\\"', '"')):
            labels = set(re.findall(r"(\w+)[!=]~?", selector)) - {"job", "instance"}
            assert labels <= set(families[name].labels), name


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_loads_the_alerts():
    subprocess.run(["promtool", "check", "rules", DEPLOY / "prometheus-alerts.yml"], check=True, timeout=30)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_each_alert_fires_when_it_should_and_at_no_other_time():
    path = Path(__file__).with_name("alerts_test.yml")
    (group,) = yaml.safe_load((DEPLOY / "prometheus-alerts.yml").read_text())["groups"]
    *cases, quiet = yaml.safe_load(path.read_text())["tests"]
    alerts = [rule["alert"] for rule in group["rules"]]
    assert [case["name"] for case in cases] == [each["alertname"] for each in quiet["alert_rule_test"]] == alerts
    ran = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize("role", ["standalone", "worker", "controller", "gateway"])
def test_promtool_has_nothing_to_say_of_a_scrape(build: Build, role: str):
    app = build(role=role, metrics="open")
    runtime: Runtime = app.extensions[KEY]
    runtime.start()
    assert runtime.wait_loaded(10)
    client = app.test_client()
    for path in (CHAT, "/api/worker/generate", "/api/controller/instances"):
        client.post(path, json={"model": "echo", "messages": [{"role": "user", "content": "x"}]})
    scrape = client.get("/metrics").data
    checked = subprocess.run(["promtool", "check", "metrics"], input=scrape, timeout=30, capture_output=True)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_the_page_lists_the_metrics_as_they_are():
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(modelyard_\w+)` \| (\w+) \| (.*?) ?\| (.*?) \|$", page, re.MULTILINE)
    listed = [(name, kind, tuple(re.findall(r"`(\w+)`", labels)), text) for name, kind, labels, text in rows]
    routed = {family.name for family in ROUTED}
    families = [family for family in FAMILIES.values() if family.name not in routed]
    assert listed == [(family.exposed_name, family.kind, family.labels, family.help) for family in families]
