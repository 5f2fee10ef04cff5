"""A monolith with a past of its own takes Modelyard in: all its own keeps working, under real gunicorn."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clients import DELTA, NO_WAIT, Connection, chunks_of, outputs
from running import Service, Services, console_script, seconds_until, services, wait_until

from scripts import script

SHOP = Path(__file__).with_name("shop")
TABLES = """
[[models]]
name = "script"
worker_class = "scripted:Scripted"
journal = "{journal}"
limit_model_concurrency = 2
"""
LOGIN = {"Shop-Login": "bob"}
WORKER_CLASSES = ("gthread", "gevent")


def start(run: Services, worker_class: str, application: str = "wsgi:app", **options: Any) -> Service:
    folder = run.folder()
    command = [console_script("gunicorn"), application, "--bind", "127.0.0.1:{port}"]
    command += ["--worker-class", worker_class]
    command += ["--threads", "32"] if worker_class == "gthread" else []
    service = run.start(
        TABLES.format(journal=folder / "journal"),
        folder=folder,
        command=command,
        cwd=SHOP,
        probes="/ml/api",
        **options,
    )
    service.session.headers.update(LOGIN)
    return service


@pytest.fixture(scope="module", params=WORKER_CLASSES)
def shop(request: pytest.FixtureRequest, run_module: Services) -> Iterator[Service]:
    service = start(run_module, request.param, first_output_timeout=0.2)
    yield service
    service.kill()


# Its own


def test_its_own_pages_answer(shop: Service) -> None:
    assert shop.get("/").text == "<h1>The Shop</h1>"


def test_its_own_json_is_written_its_own_way(shop: Service) -> None:
    assert shop.get("/price").json() == {"shop": "7 EUR"}


def test_its_packages_named_service_and_blueprints_are_its_own(shop: Service) -> None:
    assert shop.get("/owner").json() == {"shop": "shop"}


def test_its_own_errors_are_its_own(shop: Service) -> None:
    for method, path, status, said in (
        ("GET", "/nowhere", 404, "we have no such thing"),
        ("GET", "/ml/api/worker/nothing", 404, "we have no such thing"),
        ("GET", "/ml/api/worker/generate", 405, "not like that"),
        ("POST", "/price", 405, "not like that"),
        ("GET", "/broken", 500, "broken: out of paper"),
    ):
        answer = shop.session.request(method, shop.url(path), timeout=10)
        assert (answer.status_code, answer.json()) == (status, {"shop": said}), path


def test_its_own_limit_holds_for_its_own_requests_only(shop: Service) -> None:
    order = {"what": "x" * 5000}
    assert shop.post("/order", order).json() == {"shop": "too much"}
    answer = shop.post("/ml/api/worker/generate", {"model": "echo", "prompt": "x" * 5000})
    assert answer.json()["error_code"] == 0


def test_its_login_is_asked_of_everybody(shop: Service) -> None:
    for method, path in (("GET", "/"), ("POST", "/ml/api/worker/generate"), ("GET", "/ml/api/worker/models/supports")):
        answer = shop.session.request(method, shop.url(path), headers={"Shop-Login": "eve"}, timeout=10)
        assert (answer.status_code, answer.json()) == (401, {"shop": "who are you?"})


def test_its_after_request_sees_every_answer(shop: Service) -> None:
    for answer in (
        shop.get("/"),
        shop.get("/nowhere"),
        shop.get("/ml/api/healthz"),
        shop.post("/ml/api/worker/generate", {"model": "echo", "prompt": "x"}),
        shop.post("/ml/api/worker/generate_stream", {"model": "echo", "prompt": "x"}),
        shop.post("/ml/api/worker/generate", {"model": "nobody", "prompt": "x"}),
        shop.post("/ml/api/worker/apply", {}),
    ):
        assert answer.headers["Shop"] == "yes", answer.url


# Modelyard's


def test_the_worker_api_stands_under_the_prefix_of_its_choice(shop: Service) -> None:
    with shop.post(
        "/ml/api/worker/generate_stream", {"model": "echo", "prompt": "x", "max_new_tokens": 2}, stream=True
    ) as response:
        assert [chunk["text"] for chunk in outputs(response)] == [" token", " token token"]
    assert shop.post("/ml/api/worker/generate", {"model": "echo", "prompt": "x"}).json()["error_code"] == 0
    assert len(shop.post("/ml/api/worker/embeddings", {"model": "echo-embed", "input": ["a"]}).json()[0]) == 384
    assert shop.post("/ml/api/worker/count_token", {"model": "echo", "prompt": "a b"}).json() == 2
    assert shop.post("/ml/api/worker/model_metadata", {"model": "echo"}).json()["model"] == "echo"
    assert shop.get("/ml/api/worker/parameter/descriptions?model=echo").json()[0]["param_name"] == "model_name"
    assert shop.get("/ml/api/worker/models/supports").json()[0]["models"]
    outcome = shop.post("/ml/api/worker/apply", {"model": "echo-embed", "apply_type": "restart"}).json()
    assert outcome["success"] is True
    assert shop.get("/api/worker/models/supports").status_code == 404


def test_health_stands_there_too(shop: Service) -> None:
    assert shop.get("/ml/api/health").json() == {"status": "ok"}
    assert shop.get("/ml/api/healthz").json() == {"status": "ok"}
    assert shop.get("/ml/api/readyz").json()["ready"] is True
    assert shop.get("/healthz").status_code == 404


def test_its_errors_are_modelyards_whatever_the_shop_handles(shop: Service) -> None:
    shop.may_show_tracebacks = True
    refused = shop.post("/ml/api/worker/apply", {"model": "echo"})
    assert (refused.status_code, refused.headers["Content-Type"]) == (422, "application/problem+json")
    unknown = shop.post("/ml/api/worker/embeddings", {"model": "nobody", "input": ["x"]})
    assert (unknown.status_code, unknown.json()["type"]) == (404, "urn:modelyard:error:unknown_model")
    generated = shop.post("/ml/api/worker/generate", {"model": "nobody", "prompt": "x"})
    assert (generated.status_code, generated.json()["error_code"]) == (200, 404)
    broken = shop.post("/ml/api/worker/generate_stream", script(fail_at=0))
    assert chunks_of(broken.content)[0]["error_code"] == 500
    large = shop.post("/ml/api/worker/generate", data=b" " * (17 * 1024 * 1024))
    assert (large.status_code, large.json()["error_code"]) == (413, 413)


def test_a_setting_in_the_shops_config_counts(shop: Service) -> None:
    with Connection(shop.port) as client:
        client.send("POST", "/ml/api/worker/generate_stream", script(before=60), LOGIN)
        client.read_head()
        assert client.read_http_chunk() == b"\0"
        # silence_timeout is a second there, ten by default.
        client.sock.settimeout(8)
        assert client.read_http_chunk() == b"\0"


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize("call", ["generate_stream", "generate"])
def test_a_client_that_hangs_up_frees_its_slot_within_a_second(shop: Service, call: str, reset: bool) -> None:
    clients = [Connection(shop.port) for _ in range(2)]
    for client in clients:
        client.send("POST", f"/ml/api/worker/{call}", script(before=60), LOGIN)

    def is_free() -> bool:
        return shop.post("/ml/api/worker/generate", script(), headers=NO_WAIT).status_code == 200

    wait_until(lambda: not is_free(), "two busy slots")
    for client in clients:
        client.reset() if reset else client.close()
    assert seconds_until(is_free) < 1


# Both


def test_its_own_views_call_the_manager(shop: Service) -> None:
    assert shop.get("/answer?q=hello").json() == {"shop": " token token"}
    assert shop.get("/count?q=one+two+three").json() == {"shop": 3}
    with shop.get("/ask?model=echo&q=hello", stream=True) as response:
        assert response.raw.read().strip() == b"token token token token token"


def test_a_stream_to_its_own_page_leaves_piece_by_piece_and_ends_with_the_client(shop: Service) -> None:
    plan = json.dumps({"pieces": 100, "each": 0.05})
    with Connection(shop.port) as client:
        client.send("GET", f"/ask?model=script&q={plan.replace(' ', '')}", headers=LOGIN)
        client.read_head()
        assert client.read_http_chunk() == b"x"
    wait_until(
        lambda: (
            shop.post("/ml/api/worker/generate", script(), headers=NO_WAIT).headers["Modelyard-Load"]
            # As it stood when this request was taken.
            == "slots=2;free=1;waiting=0"
        ),
        "the other slot is free",
        timeout=3,
    )


def test_an_error_of_the_manager_in_its_own_view_is_its_own_to_handle(shop: Service) -> None:
    answer = shop.get("/ask?model=nobody&q=x")
    assert answer.status_code == 500
    assert answer.json()["shop"].startswith("broken: there is no model 'nobody'")


# Life


@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_nothing_starts_before_the_first_request(run: Services, worker_class: str) -> None:
    service = start(run, worker_class, wait="nothing")
    loaded = wait_until(lambda: re.search(r"the shop is loaded; its threads: (.*)", service.log()), "its application")
    assert "modelyard" not in loaded[1]
    assert "watcher" not in loaded[1]
    assert not (service.folder / "state").exists()
    assert not (service.folder / "journal").exists()
    # A request for a page of its own is the first: it starts the models.
    assert service.get("/").status_code == 200
    service.wait_ready()
    assert (service.folder / "journal").read_text().startswith("start")
    assert service.get("/answer?q=x").json() == {"shop": " token token"}


@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_the_worker_api_can_be_left_out(run: Services, worker_class: str) -> None:
    service = start(run, worker_class, environ={"SHOP_LEAVES_OUT_THE_WORKER": "1"})
    assert service.post("/ml/api/worker/generate", {"model": "echo", "prompt": "x"}).json() == {
        "shop": "we have no such thing"
    }
    assert service.get("/ml/api/healthz").status_code == 200
    assert service.get("/answer?q=hello").json() == {"shop": " token token"}


@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_two_applications_in_one_process_have_models_of_their_own(run: Services, worker_class: str) -> None:
    service = start(run, worker_class, "wsgi:both")
    wait_until(lambda: service.get("/office/models/readyz").json()["ready"], "the office to be ready")
    assert [m["model"] for m in service.get("/office/models/readyz").json()["models"]] == ["echo-embed@text2vec"]
    assert (
        len(service.post("/office/models/worker/embeddings", {"model": "echo-embed", "input": ["a"]}).json()[0]) == 384
    )
    assert service.post("/office/models/worker/generate", {"model": "echo", "prompt": "x"}).json()["error_code"] == 404
    assert service.post("/ml/api/worker/generate", {"model": "echo", "prompt": "x"}).json()["error_code"] == 0


@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_when_it_is_told_to(run: Services, worker_class: str, number: int) -> None:
    service = start(run, worker_class)
    assert service.post("/ml/api/worker/generate", {"model": "echo", "prompt": "x"}).status_code == 200
    service.signal(number)
    assert service.wait_ended(20) == 0


@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_running_streams_complete_when_it_is_told_to_end(run: Services, worker_class: str) -> None:
    service = start(run, worker_class)
    with Connection(service.port) as client:
        client.send("POST", "/ml/api/worker/generate_stream", script(pieces=20, each=0.05), LOGIN | DELTA)
        head = client.read_head()
        client.read_http_chunk()
        service.signal(signal.SIGTERM)
        last = chunks_of(client.read_body(head))[-1]
    assert last["finish_reason"] == "stop"
    assert service.wait_ended(20) == 0


@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_its_models_come_back_after_its_worker_was_killed(run: Services, worker_class: str) -> None:
    service = start(run, worker_class)
    body = {"model": "echo", "worker_type": "reranker", "params": {}}
    assert service.post("/ml/api/worker/models/startup", body).status_code == 200
    before = service.worker_pid()
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: service.worker_pid() not in (0, before), "another worker")
    service.wait_ready()
    assert service.model("echo@reranker")["state"] == "ready"


def test_a_real_model_answers_in_it(models_dir: Path) -> None:
    with services(models_dir) as run:
        service = start(run, "gthread", environ={"SHOP_MODELS": "smollm2-135m"})
        wanted = {"model": "smollm2-135m", "prompt": "The capital of France is", "temperature": 0, "max_new_tokens": 4}
        answer = service.post("/ml/api/worker/generate", wanted)
        assert answer.json()["text"].startswith(" Paris")
        service.signal(signal.SIGTERM)
        assert service.wait_ended(30) == 0
        assert "terminate called" not in service.log()
        assert "was sent SIG" not in service.log()
