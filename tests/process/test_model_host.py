"""A monolith of several processes has each model once: in a model host, which every one of its processes reaches."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clients import DELTA, NO_WAIT, chunks_of
from monoliths import (
    API,
    PREFIX,
    SHOP,
    TABLES,
    ask,
    begin,
    host_pid,
    host_processes,
    journal_of,
    kill,
    monolith,
    wait_gone,
    wait_host,
    wait_workers,
    web_pids,
)
from processes import processes_of
from running import ROOT, Service, Services, console_script, wait_until
from scraped import value_in

from scripts import journal, script

SERVERS = {
    "gthread": ("gthread", []),
    "gthread, preloaded": ("gthread", ["--preload"]),
    "sync, preloaded": ("sync", ["--preload"]),
    "gevent": ("gevent", []),
}


@pytest.fixture(scope="module", params=SERVERS)
def shop(request: pytest.FixtureRequest, run_module: Services) -> Iterator[Service]:
    """A monolith of four processes; no test of it changes what runs in the end."""
    worker_class, arguments = SERVERS[request.param]
    service = monolith(run_module, *arguments, worker_class=worker_class, metrics="guarded")
    wait_workers(service, 4)
    yield service
    service.kill()


def said(answer: tuple[Any, bytes]) -> Any:
    head, body = answer
    assert head.status == 200, body
    return json.loads(body)


# Each model once, in four processes


def test_each_model_is_in_memory_once_and_every_process_answers_with_it(shop: Service) -> None:
    told = set()
    for pid in web_pids(shop):
        assert said(ask(shop, pid, "POST", f"{API}generate", script(pieces=2)))["text"] == "xx"
        assert said(ask(shop, pid, "POST", f"{API}count_token", {"model": "script", "prompt": "12345"})) == 5
        status = said(ask(shop, pid, "GET", f"{PREFIX}/readyz"))
        assert [model["state"] for model in status["models"]] == ["ready", "ready"]
        told.add(status["host"]["pid"])
    started = {int(line.split()[1]) for line in journal(shop, "start")}
    assert len(journal(shop, "start")) == 2
    assert len(told) == 1
    assert started | told == set(host_processes(shop.folder))


def test_nothing_of_the_monolith_is_imported_into_the_host(shop: Service) -> None:
    imported = {int(pid) for pid in (shop.folder / "imports").read_text().split()}
    # The master, where it loads the application once for all; else each process does.
    assert imported <= {shop.pid, *web_pids(shop)}
    assert imported


def test_embeddings_of_all_processes_meet_in_one_engine(shop: Service) -> None:
    before = len(journal(shop, "computed"))
    for pid in web_pids(shop):
        body = {"model": "vectors", "input": [json.dumps({"name": f"of {pid}"})]}
        assert said(ask(shop, pid, "POST", f"{API}embeddings", body)) == [[1.0, 0.0]]
    assert journal(shop, "computed")[before:] == [f"computed of {pid}" for pid in web_pids(shop)]


def test_a_scrape_of_any_process_shows_the_sum_of_all_and_of_the_host(shop: Service) -> None:
    def counted(pid: int) -> list[float]:
        text = ask(shop, pid, "GET", f"{PREFIX}/metrics")[1].decode()
        of_model = value_in(text, "request_success_total", model="script")
        return [of_model, value_in(text, "http_requests_total", call="worker.generate", status="200")]

    pids = web_pids(shop)
    before = counted(pids[0])
    for pid in pids:
        assert said(ask(shop, pid, "POST", f"{API}generate", script(pieces=2)))["text"] == "xx"

    def is_everywhere() -> bool:
        # What earlier tests have brought may come late too.
        first, last = counted(pids[0]), counted(pids[3])
        return first == last and first[0] >= before[0] + 4 and first[1] >= before[1] + 4

    wait_until(is_everywhere, "all have written", interval=0.1)
    text = ask(shop, pids[1], "GET", f"{PREFIX}/metrics")[1].decode()
    assert value_in(text, "processes") == 5
    assert value_in(text, "model_state", model="script", state="ready") == 1
    assert value_in(text, "num_slots", model="script") == 2


def test_a_limit_is_one_over_all_processes(shop: Service) -> None:
    one, two, three, four = web_pids(shop)
    streams = [begin(shop, pid, script(pieces=1000, each=0.05)) for pid in (one, two)]
    try:
        for pid in (three, four):
            head, _ = ask(shop, pid, "POST", f"{API}generate", script(), NO_WAIT)
            assert (head.status, head.headers["modelyard-load"]) == (503, "slots=2;free=0;waiting=0")
    finally:
        for stream in streams:
            stream.close()
    for pid in (three, four):
        wait_until(
            lambda pid=pid: ask(shop, pid, "POST", f"{API}generate", script(), NO_WAIT)[0].status == 200, "a free slot"
        )


def test_what_one_process_changes_all_see(shop: Service) -> None:
    one, two, three, four = web_pids(shop)

    def state(pid: int, key: str) -> str | None:
        models = json.loads(ask(shop, pid, "GET", f"{PREFIX}/readyz")[1])["models"]
        return next((model["state"] for model in models if model["model"] == key), None)

    def apply(pid: int, what: str, **params: Any) -> None:
        body = {"model": "script", "apply_type": what, "params": params}
        assert said(ask(shop, pid, "POST", f"{API}apply", body))["success"]

    apply(one, "update_params", flavour="strange")
    for pid in (two, three):
        listed = said(ask(shop, pid, "GET", f"{API}parameter/descriptions?model=script"))
        assert {one["param_name"]: one["default_value"] for one in listed}["flavour"] == "strange"
    apply(four, "update_params", flavour="plain")

    apply(two, "stop")
    assert {state(pid, "script@llm") for pid in web_pids(shop)} == {"stopped"}
    assert ask(shop, one, "POST", f"{API}generate", script())[0].status == 503
    apply(three, "start")
    assert ask(shop, one, "POST", f"{API}generate", script())[0].status == 200

    body = {"model": "script", "worker_type": "reranker", "params": {}}
    assert said(ask(shop, four, "POST", f"{API}models/startup", body)) is None
    assert {state(pid, "script@reranker") for pid in web_pids(shop)} == {"ready"}
    assert said(ask(shop, one, "POST", f"{API}models/shutdown", body)) is None
    assert {state(pid, "script@reranker") for pid in web_pids(shop)} == {None}


# In roles of our own


def replies(service: Service) -> list[dict[str, Any]]:
    """Return the chunks of a stream that a service of ours answers with."""
    return chunks_of(service.post("generate_stream", script(pieces=3), headers=DELTA).content)


def our_own(run: Services, *arguments: str, **options: Any) -> Service:
    folder = run.folder()
    tables = TABLES.format(journal=journal_of(folder), slots=2)
    service = run.start(tables, *arguments, folder=folder, **options)
    return service


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "--workers", "4"],
        ["serve", "--workers", "2", "--http-threads", "gevent"],
        ["gunicorn", "-w", "4"],
        ["gunicorn", "-w", "4", "--preload"],
    ],
    ids=" ".join,
)
def test_a_service_of_ours_may_run_in_several_processes(run: Services, arguments: list[str]) -> None:
    what, *others = arguments
    command = {"command": [console_script("gunicorn"), "wsgi:app"], "cwd": ROOT} if what == "gunicorn" else {}
    service = our_own(run, *others, **command)
    wait_workers(service, 4 if "4" in arguments else 2)
    for _ in range(12):
        assert [chunk["text"] for chunk in replies(service)][:3] == ["x", "x", "x"]
    assert len(journal(service, "start")) == 2
    assert len(host_processes(service.folder)) == 2


def test_inline_in_several_processes_is_refused(run: Services) -> None:
    service = our_own(run, "--placement", "inline", "--workers", "2", wait="nothing")
    assert service.wait_ended(20) != 0
    assert "each would load all of them" in service.log()


def test_its_models_are_registered_at_the_address_of_the_web_side(run: Services) -> None:
    controller = run.start(role="controller")
    place = f"http://127.0.0.1:{controller.port}/api"
    worker = our_own(run, "--workers", "2", role="worker", registry=place)
    shop = monolith(run, workers=2, registry=place)

    def registered(key: str) -> set[str]:
        rows = controller.get("/api/controller/instances").json()
        return {row["url"] for row in rows if row["key"] == key and row["healthy"]}

    wanted = {f"http://127.0.0.1:{worker.port}/api", f"http://127.0.0.1:{shop.port}{PREFIX}"}
    wait_until(lambda: registered("script@llm") == wanted == registered("vectors@text2vec"), "both are registered")
    gateway = run.start(role="gateway", registry=place, remote_headers="Shop-Login=bob")
    wait_until(lambda: len(gateway.status()["models"]) == 2, "the gateway knows of them")
    for number in range(30):  # requests that begin alike are one session, which stays at one instance
        assert gateway.post("generate", script(pieces=2, number=number)).json()["text"] == "xx"
    for service in (worker, shop):
        assert journal(service, "begin"), "each was asked"
    worker.signal(signal.SIGTERM)
    assert worker.wait_ended(20) == 0
    wait_until(
        lambda: registered("script@llm") == wanted - {f"http://127.0.0.1:{worker.port}/api"}, "its last word", 10
    )


def test_one_of_several_processes_with_a_registry_of_its_own_asks_its_host_directly(run: Services) -> None:
    service = our_own(run, "--workers", "2")
    rows = wait_until(lambda: service.get("/api/controller/instances").json(), "its models are registered")
    assert {row["url"] for row in rows} == {f"http://127.0.0.1:{service.port}/api"}
    before = len(service.access_lines())
    assert [chunk["text"] for chunk in replies(service)][:3] == ["x", "x", "x"]
    service.wait_for_line(path="/api/worker/generate_stream")
    asked = [line for line in service.access_lines()[before:] if line["path"] == "/api/worker/generate_stream"]
    assert len(asked) == 1, "through no address of its own"


# More than one on a machine


def test_two_monoliths_on_one_machine_have_hosts_of_their_own(run: Services) -> None:
    folder = run.folder()
    shutil.copytree(SHOP, folder / "other", ignore=shutil.ignore_patterns("__pycache__"))
    # Of the name of a module that the host imports, and nobody else: the host must not find it.
    (folder / "other" / "scripted.py").write_text("raise SystemExit('of the monolith')")
    one = monolith(run, workers=2, state_dir=folder / "state")
    other = monolith(run, workers=2, state_dir=folder / "state", cwd=folder / "other")
    assert host_pid(one) != host_pid(other)
    kept = host_pid(other)
    assert one.post(f"{API}apply", {"model": "script", "apply_type": "stop"}).json()["success"]
    one.kill()
    wait_gone(one.folder)
    assert other.post(f"{API}generate", script(pieces=2)).json()["text"] == "xx"
    assert host_pid(other) == kept


def test_a_standalone_service_on_the_same_state_folder_comes_and_goes(run: Services) -> None:
    state = run.folder() / "state"
    first = our_own(run, state_dir=state)
    shop = monolith(run, workers=2, state_dir=state)
    kept = host_pid(shop)
    assert first.post("generate", script()).status_code == 200
    first.signal(signal.SIGTERM)
    assert first.wait_ended(20) == 0
    second = our_own(run, state_dir=state, port=first.port)
    for service, path in ((shop, f"{API}generate"), (second, "generate")):
        assert service.post(path, script(pieces=2)).json()["text"] == "xx"
    assert host_pid(shop) == kept
    assert len(journal(shop, "start")) == 2


def test_each_process_calls_back_after_the_start(run: Services) -> None:
    folder = run.folder()
    service = monolith(run, workers=2, folder=folder, environ={"SHOP_STARTS": str(folder / "starts")})
    for pid in wait_workers(service, 2):
        ask(service, pid, "GET", f"{PREFIX}/readyz")

    def starts() -> list[str]:
        path = folder / "starts"
        return path.read_text().splitlines() if path.exists() else []

    wait_until(lambda: len(starts()) == 2, "both have called back")
    assert sorted(starts()) == sorted(f"{pid} script@llm vectors@text2vec" for pid in web_pids(service))


# Without our hooks, or gunicorn's

FLASK = [sys.executable, "-m", "flask", "--app", "wsgi:app", "run", "--port", "{port}"]
WSGIREF = [
    sys.executable,
    "-c",
    "import sys; sys.path.insert(0, '.'); from wsgi import app; from wsgiref.simple_server import make_server; "
    "make_server('127.0.0.1', {port}, app).serve_forever()",
]


@pytest.mark.parametrize(
    ("command", "number"), [(FLASK, signal.SIGTERM), (WSGIREF, signal.SIGKILL)], ids=["flask run", "wsgiref"]
)
def test_without_hooks_it_starts_with_the_first_request_and_ends_with_the_process(
    run: Services, command: list[str], number: int
) -> None:
    folder = run.folder()
    service = run.start(
        TABLES.format(journal=journal_of(folder), slots=2),
        folder=folder,
        command=command,
        cwd=SHOP,
        probes=PREFIX,
        wait="nothing",
        environ={"SHOP_MODELS": "script,vectors", "SHOP_IMPORTS": str(folder / "imports")},
    )
    service.session.headers["Shop-Login"] = "bob"
    wait_until(lambda: (folder / "imports").exists(), "its application")
    assert not (folder / "state").exists()
    wait_until(lambda: service.answers("/") is not None, "an answer")
    service.wait_ready()
    assert service.post(f"{API}generate", script(pieces=2)).json()["text"] == "xx"
    assert len(host_processes(folder)) == 2
    service.signal(number)
    service.wait_ended(20)
    wait_gone(folder)
    assert len(journal(service, "start")) == len(journal(service, "stop")) == 2


# Where it may not write


def test_where_the_state_folder_can_not_be_written_all_processes_use_one_elsewhere(run: Services) -> None:
    folder = run.folder()
    (folder / "file").touch()
    service = monolith(run, folder=folder, state_dir=folder / "file" / "state")
    for pid in wait_workers(service, 4):
        assert said(ask(service, pid, "POST", f"{API}generate", script(pieces=2)))["text"] == "xx"
    assert "can't be used" in service.log()
    assert len(host_processes(folder)) == 2


def test_where_nothing_can_be_written_its_own_pages_live_and_the_models_say_why_not(run: Services) -> None:
    folder = run.folder()
    (folder / "file").touch()
    (folder / "tmp").mkdir()
    (folder / "tmp" / f"modelyard-{os.getuid()}").touch()
    service = monolith(
        run, workers=2, folder=folder, state_dir=folder / "file" / "state", wait="nothing", host_timeout=0
    )
    service.may_show_tracebacks = True
    status = wait_until(service.status, "it answers")
    assert not status["ready"]
    assert f"modelyard-{os.getuid()}" in status["reason"]
    for _ in range(4):
        assert service.get("/").status_code == 200
        refused = service.post(f"{API}generate", script())
        assert (refused.status_code, "Retry-After" in refused.headers) == (503, True), refused.text
        assert f"modelyard-{os.getuid()}" in refused.text
    assert not host_processes(folder)
    (folder / "tmp" / f"modelyard-{os.getuid()}").unlink()
    service.wait_ready()


def test_the_path_of_the_state_folder_may_be_longer_than_a_sockets_may_be(run: Services) -> None:
    folder = run.folder()
    service = monolith(run, workers=2, folder=folder, state_dir=folder / ("long" * 40) / ("longer" * 20))
    for pid in wait_workers(service, 2):
        assert said(ask(service, pid, "POST", f"{API}generate", script(pieces=2)))["text"] == "xx"
    assert len(host_processes(folder)) == 2
    service.kill()
    wait_gone(folder)
    assert not list(Path(folder / "tmp").rglob("*.sock")), "it takes its socket with it"


@pytest.mark.parametrize("start", [monolith, our_own])
def test_a_host_ends_by_itself_when_its_service_has_ended(run: Services, start: Callable[..., Service]) -> None:
    service = start(run, *(["--preload"] if start is monolith else []), workers=2)
    assert len(processes_of(service.folder)) == 5
    service.signal(signal.SIGTERM)
    assert service.wait_ended(20) == 0
    wait_gone(service.folder)
    # It was told to: its engines ended as well.
    assert len(journal(service, "stop")) == 2


def test_what_is_said_of_its_models_counts_at_a_restart_however_soon_it_comes(run: Services) -> None:
    first = monolith(run, workers=2)
    first.signal(signal.SIGTERM)
    assert first.wait_ended(20) == 0
    second = monolith(run, workers=2, folder=first.folder, models="vectors", port=first.port)
    wait_until(lambda: [m["model"] for m in second.status()["models"]] == ["vectors@text2vec"], "its models alone")
    wait_until(lambda: len(host_processes(first.folder)) == 2, "one host")
    assert second.post(f"{API}embeddings", {"model": "vectors", "input": ["x"]}).json() == [[1.0, 0.0]]


def test_what_was_said_over_http_is_forgotten_once_a_run_if_that_is_wanted(run: Services) -> None:
    def flavour(service: Service) -> str:
        listed = service.get("parameter/descriptions?model=script").json()
        return str({one["param_name"]: one["default_value"] for one in listed}["flavour"])

    def change(service: Service, to: str) -> None:
        body = {"model": "script", "apply_type": "update_params", "params": {"flavour": to}}
        assert service.post("apply", body).json()["success"]

    folder = run.folder()
    tables = TABLES.format(journal=journal_of(folder), slots=2)
    first = run.start(tables, "--workers", "2", folder=folder)
    change(first, "strange")
    first.signal(signal.SIGTERM)
    assert first.wait_ended(20) == 0
    second = run.start(tables, "--workers", "2", "--fresh", folder=folder, port=first.port)
    assert flavour(second) == "plain"
    change(second, "new")
    kill(*host_processes(folder))
    wait_until(lambda: second.get("parameter/descriptions?model=script").status_code == 200, "the next host")
    assert flavour(second) == "new"


def test_a_run_that_was_killed_leaves_nothing_that_hinders_the_next(run: Services) -> None:
    first = monolith(run, workers=2)
    host = host_processes(first.folder)
    first.kill()
    kill(*host)
    wait_gone(first.folder)
    left = {path.name for path in (first.folder / "state").rglob("*")}
    assert {"host.lock", "host.life", "host.sock"} <= left
    second = monolith(run, workers=2, folder=first.folder)
    assert wait_host(second) not in host
    assert second.post(f"{API}generate", script(pieces=2)).json()["text"] == "xx"
