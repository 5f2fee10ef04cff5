"""The first page, and the streams that keep it up to date: what they show, to whom, and how they end."""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from modelyard.access.keys import new_key
from modelyard.access.tokens import digest_of, parse_scopes
from modelyard.blueprints.pages import live, watch
from modelyard.blueprints.pages.live import LiveStreams
from modelyard.blueprints.pages.watch import KEPT_FOR, Counted, Look, ModelView, Watch
from modelyard.server.extension import KEY
from modelyard.telemetry.metrics import ENGINE, ROUTED, Metrics
from modelyard.telemetry.shared_metrics import Sample
from modelyard.types import GenerateRequest
from pages_service import SECRETS, TOKENS, Build, building, read_keys, sign_in

THREADS = {"wsgi.multithread": True}
CHAT = {"model": "echo", "messages": [{"role": "user", "content": "one two three"}]}


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    with building(tmp_path) as build:
        yield build


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams that look again at once."""
    monkeypatch.setattr(live, "TICK", 0.01)
    monkeypatch.setattr(watch, "LOOK_INTERVAL", 0.0)


def stream_of(app: Flask, path: str = "/ui/events") -> Any:
    return app.test_client().get(path, environ_overrides=THREADS)


def next_event(response: Any) -> str:
    """Return the data of the next event that is no comment."""
    for chunk in response.response:
        if chunk.startswith(b"data: "):
            return "\n".join(line.removeprefix("data: ") for line in chunk.decode().splitlines())
    raise AssertionError("the stream has ended")


# The page


def test_of_many_models_it_shows_a_part_those_that_have_failed_first_and_those_that_are_looked_for(
    build: Build, monkeypatch: pytest.MonkeyPatch
):
    def view(name: str, state: str = "ready") -> ModelView:
        instance = {"url": f"http://10.0.0.7:8000/{name}", "state": "usable", "reason": "", "heartbeat": 1.0}
        loads = {"running": 3, "waiting": 0, "slots": 8}
        return ModelView(f"{name}@llm", state, "", 4096, **loads, instances=[{**instance, **loads}])

    models = [*(view(f"m-{number:03}") for number in range(130)), view("z-broken", "failed")]
    look = Look(0.0, {"state": "ready", "reason": None}, models, {}, [])
    monkeypatch.setattr(Watch, "look", lambda self: look)
    app = build()
    client = app.test_client()
    first = client.get("/ui/").text
    assert names_in(first)[:2] == ["z-broken", "m-000"]
    assert (len(names_in(first)), "131 models" in first, ">1 of 3<" in first) == (50, True, True)
    assert first.count("http://10.0.0.7") == 50, "the instances are those of the part"
    assert len(first.encode()) < 80_000, "with its files it is below 100 KB"
    third = client.get("/ui/?part=9").text
    assert names_in(third) == [f"m-{number:03}" for number in range(99, 130)]
    assert names_in(next_event(stream_of(app, "/ui/events?part=3"))) == names_in(third)
    assert names_in(client.get("/ui/?find=m-12").text) == [f"m-{number}" for number in range(120, 130)]
    assert names_in(client.get("/ui/?find=failed").text) == ["z-broken"]
    assert "No model is named so" in client.get("/ui/?find=<x>").text


def names_in(page: str) -> list[str]:
    return re.findall(r'<a href="/ui/model\?[^"]*">([^<]*)</a>', page)


def test_it_shows_models_with_states_reasons_and_instances(build: Build):
    tables = ({"name": "echo"}, {"name": "absent", "engine": "llama.cpp", "model_path": "absent.gguf"})
    app = build(model_tables=tables)
    app.extensions[KEY].cluster.view.refresh()
    page = app.test_client().get("/ui/").text
    assert '<span class="state bad">failed</span>' in page
    assert "there is no model file absent.gguf" in page
    assert '<span class="state good">ready</span>' in page
    assert "http://127.0.0.1:8000/api" in page
    assert len(page.encode()) < 100_000


def test_names_and_reasons_are_text(build: Build):
    name = "<img src=x onerror=alert(1)>"
    app = build(model_tables=({"name": name, "engine": "echo"},))
    for path in "/ui/", f"/ui/model?name={name}&type=llm":
        page = app.test_client().get(path).text
        assert "&lt;img src=x" in page
        assert "<img src=x" not in page


def test_a_state_that_is_not_known_here_has_its_name(build: Build, monkeypatch: pytest.MonkeyPatch):
    app = build()
    status = app.extensions[KEY].status()
    status["models"][0] |= {"state": "unloaded", "reason": "idle for an hour"}
    monkeypatch.setattr(app.extensions[KEY], "status", lambda: status)
    page = app.test_client().get("/ui/").text
    assert '<span class="state neutral">unloaded</span>' in page
    assert "idle for an hour" in page


def test_a_trouble_of_the_registry_and_of_the_keys_is_told(build: Build, monkeypatch: pytest.MonkeyPatch):
    app = build()
    status = {**app.extensions[KEY].status(), "unsaved": "disk full", "keys": {"error": "no store", "count": None}}
    status["cluster"]["error"] = "no registry"
    monkeypatch.setattr(app.extensions[KEY], "status", lambda: status)
    page = app.test_client().get("/ui/").text
    assert all(text in page for text in ("disk full", "no store", "no registry"))


def test_a_key_for_some_models_sees_those_alone(build: Build):
    app = build(model_tables=({"name": "echo"}, {"name": "concealed", "engine": "echo"}), key_store="memory:")
    app.extensions[KEY].keys.store.add(new_key("ann", digest_of("secret"), parse_scopes("infer"), ["echo"]))
    read_keys(app)
    browser = app.test_client()
    sign_in(browser, "secret")
    page = browser.get("/ui/").text
    assert "echo" in page
    assert "concealed" not in page
    refused = browser.get("/ui/model?name=concealed&type=llm")
    assert refused.status_code == 403
    assert "may not use the model" in refused.text


def test_a_worker_s_token_sees_the_cluster_and_no_parameters(build: Build):
    browser = build(tokens=TOKENS).test_client()
    sign_in(browser, SECRETS["worker"])
    page = browser.get("/ui/")
    assert page.status_code == 200
    assert "/ui/model" not in page.text
    assert browser.get("/ui/model?name=echo&type=llm").status_code == 403


# Rates


def test_rates_are_over_the_last_seconds_and_the_mean_over_the_last_minute():
    earlier = [(0.0, {"m": Counted(tokens=100)}), (50.0, {"m": Counted(400, 8, 0, 4.0, 8)})]
    now = {"m": Counted(460, 10, 0, 4.5, 10), "other": Counted(1000, 1000)}
    pace = Look(62.0, {}, [], now, earlier).pace(["m"])
    assert pace == (5.0, 10.0, 0.45)
    idle = Look(200.0, {}, [], now, [(130.0, now)]).pace(["m"])
    assert idle == (0.0, 0.0, 0.45), "the mean since the start"
    assert Look(1.0, {}, [], now, []).pace(["m"]) == (None, None, 0.45)
    assert Look(62.0, {}, [], now, earlier).curve(["m"]) == [(12.0, 6.0), (0.0, 5.0)]


class Place:
    """A service whose counts a test sets."""

    def __init__(self, *, routes: bool = True) -> None:
        self.settings = type("Settings", (), {"routes": routes})
        self.metrics = Metrics()

    def status(self) -> dict[str, Any]:
        return {"models": []}

    def instances(self) -> list[Any]:
        return []

    def sample(self) -> Sample:
        return Sample(self.metrics.counts(), {})


@pytest.mark.parametrize("families", [ROUTED, ENGINE])
def test_a_router_shows_what_it_routes_and_others_what_their_models_do(families: Any):
    place, now = Place(routes=families is ROUTED), [100.0]
    looks = Watch(place, lambda: now[0])  # type: ignore[arg-type]
    looks.look()
    place.metrics.add(families.generation_tokens, "m", "llm", amount=40)
    place.metrics.add((ENGINE if families is ROUTED else ROUTED).generation_tokens, "m", "llm", amount=7000)
    place.metrics.add(families.prompt_tokens, "e", "text2vec", amount=20)
    place.metrics.observe(families.first_token, 0.25, "m", "llm")
    assert looks.look().counted == {}, "shared within a second"
    now[0] += 10
    look = looks.look()
    assert look.pace(["m@llm"]) == (4.0, 0.0, 0.25)
    assert look.pace(["m@llm", "e@text2vec"]).tokens == 6.0
    now[0] += KEPT_FOR + 1
    assert looks.look().earlier == []


def test_the_figures_are_of_requests_that_were_answered(build: Build, quick: None):
    app = build()
    app.test_client().get("/ui/")
    app.extensions[KEY].manager.generate(GenerateRequest(**CHAT))  # type: ignore[arg-type]
    page = app.test_client().get("/ui/").text
    tokens = page.partition("<dt>Tokens a second</dt>")[2].partition("</dd>")[0].rpartition(">")[2]
    assert float(tokens.replace("\u202f", "")) > 0


# Streams


def test_a_stream_has_the_region_at_once_and_then_each_change(build: Build, quick: None):
    app = build()
    response = stream_of(app)
    assert response.mimetype == "text/event-stream"
    assert response.headers["X-Accel-Buffering"] == "no"
    assert "<h1>Cluster</h1>" in next_event(response)
    app.extensions[KEY].manager.worker_apply("echo", "stop", None, {})
    assert '<span class="state neutral">stopped</span>' in next_event(response)
    response.close()


def test_a_process_has_a_few_streams_and_a_closed_one_leaves_its_place(build: Build, quick: None):
    app = build()
    streams = [stream_of(app) for _ in range(live.MOST)]
    assert {response.status_code for response in streams} == {200}
    assert stream_of(app).status_code == 204
    streams[0].close()
    streams[0].close()
    again = stream_of(app)
    assert again.status_code == 200
    assert stream_of(app).status_code == 204
    for response in [*streams, again]:
        response.close()


def test_a_page_without_a_stream_reads_its_region_alone(build: Build, monkeypatch: pytest.MonkeyPatch):
    app = build(tokens=TOKENS)
    browser = app.test_client()
    headers = {"Accept": "text/plain"}
    assert browser.get("/ui/events", headers=headers).status_code == 401
    sign_in(browser, SECRETS["admin"])

    def fail(*arguments: Any) -> Any:
        raise AssertionError("the parameters need no second look")

    monkeypatch.setattr(app.extensions[KEY].manager, "parameter_descriptions", fail)
    for path in "/ui/events", "/ui/model/events?name=echo&type=llm":
        region = browser.get(path, headers=headers, environ_overrides=THREADS)
        assert (region.status_code, region.mimetype) == (200, "text/plain")
        assert '<span class="state good">ready</span>' in region.text
        assert "<form" not in region.text
        assert "<html" not in region.text


def test_a_client_that_reads_nothing_does_not_hold_a_stream(build: Build):
    app = build(write_timeout=7.0)
    for is_blocking, was_timed in (True, None), (False, 7.0):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(is_blocking)
            environ = {**THREADS, "gunicorn.socket": ours}
            response = app.test_client().get("/ui/events", environ_overrides=environ)
            assert ours.gettimeout() == was_timed
            if is_blocking:
                timeval = ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, 16)
                assert struct.unpack("ll", timeval) == (7, 0)
            response.close()
            assert ours.gettimeout() is None


def test_a_process_with_one_thread_has_no_stream(build: Build):
    assert build().test_client().get("/ui/events", environ_overrides={"wsgi.multithread": False}).status_code == 204


def test_a_stream_ends_when_the_process_drains_and_after_its_time(build: Build):
    app = build()
    runtime = app.extensions[KEY]
    for lifetime, ends in (0.0, lambda: None), (300.0, lambda: runtime.drain(0)):
        streams = LiveStreams(runtime, tick=60, lifetime=lifetime)
        events = streams._events(lambda: "x", lambda: True)
        assert [next(events), next(events)] == [b"retry: 2000\n\n", b"data: x\n\n"]
        threading.Timer(0.05, ends).start()
        assert list(events) == []


def test_a_stream_ends_with_what_its_visitor_has_signed_in_with(build: Build, quick: None):
    app = build(key_store="memory:")
    opened = stream_of(app)
    next_event(opened)
    keys = app.extensions[KEY].keys
    key = new_key("ann", digest_of("secret"), parse_scopes("infer"))
    keys.store.add(key)
    read_keys(app)
    assert not [chunk for chunk in opened.response if chunk.startswith(b"data")], "now everybody needs a key"
    browser = app.test_client()
    sign_in(browser, "secret")
    signed_in = browser.get("/ui/events", environ_overrides=THREADS)
    next_event(signed_in)
    keys.store.revoke(key.id)
    read_keys(app)
    assert not [chunk for chunk in signed_in.response if chunk.startswith(b"data")]
    for response in opened, signed_in:
        response.close()


def test_a_stream_of_a_model_ends_when_the_model_has_gone(build: Build, quick: None):
    app = build(registry_refresh=0.05)
    response = stream_of(app, "/ui/model/events?name=echo&type=llm")
    assert "ready" in next_event(response)
    app.extensions[KEY].own.model_shutdown("echo", None)
    for chunk in response.response:  # until the registry has forgotten it too
        assert chunk.startswith((b"data:", b":"))
    response.close()
    assert stream_of(app, "/ui/model/events?name=echo&type=llm").status_code == 404


def test_a_stream_that_no_server_takes_leaves_its_place(build: Build):
    app = build()

    @app.after_request
    def fail(response: Any) -> Any:
        raise RuntimeError("of the application")

    for _ in range(live.MOST + 1):
        assert stream_of(app).status_code == 500
