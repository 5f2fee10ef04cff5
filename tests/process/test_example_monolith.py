"""examples/monolith as its README runs it: gunicorn with four processes, its jobs apart, one model host for all."""

from __future__ import annotations

import html
import re
import shutil
import signal
import sqlite3
import subprocess
import sys

import pytest
import requests
from monoliths import host_pid, host_processes, wait_gone, wait_workers
from running import ROOT, Service, Services, console_script, free_port, surroundings_of

EXAMPLE = ROOT / "examples" / "monolith"
PROCESSES = 4
PASSWORD = "s3cret-of-somebody"


def run_example(run: Services) -> Service:
    folder = run.folder()
    home = folder / "monolith"
    shutil.copytree(EXAMPLE, home, ignore=shutil.ignore_patterns("__pycache__", "*.sqlite"))
    return run.start(
        folder=folder,
        cwd=home,
        command=[console_script("gunicorn"), "wsgi:app", "--bind", "127.0.0.1:{port}"],
        environ={"NOTEBOOK_MODEL": "echo", "ECHO_REPLY": "prompt", "ECHO_DELAY": "0.01"},
        probes="/ml/api",
    )


@pytest.fixture(scope="module")
def notebook(run_module: Services) -> Service:
    """One for the tests that leave it running, each with a user of its own."""
    return run_example(run_module)


def log_in(service: Service, name: str) -> None:
    user = {"name": name, "password": PASSWORD}
    service.post("/register", data=user)
    assert service.post("/login", data=user).url == service.url("/")


def ask(service: Service, question: str) -> requests.Response:
    return service.post("/ask", data={"question": question}, stream=True)


def do_jobs(service: Service, url: str = "") -> str:
    """Run what is due, as cron would; return what the job says."""
    ran = subprocess.run(
        [sys.executable, "-m", "jobs", "--once"],
        cwd=service.folder / "monolith",
        env={
            **surroundings_of(service.folder),
            "MODELYARD_URL": url or service.url("/ml/api"),
            "NOTEBOOK_MODEL": "echo",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stderr


def test_only_who_is_logged_in_may_ask(notebook: Service) -> None:
    user = {"name": "ann", "password": PASSWORD}
    notebook.post("/logout")
    assert notebook.get("/").url == notebook.url("/login")
    assert ask(notebook, "a b").url == notebook.url("/login")
    notebook.post("/register", data=user)
    assert "is taken" in notebook.post("/register", data=user).text
    refused = notebook.post("/login", data={**user, "password": "guess"})
    assert "Nobody of that name has that password." in refused.text
    assert notebook.post("/login", data=user).url == notebook.url("/")
    assert notebook.post("/logout").url == notebook.url("/login")
    assert notebook.get("/").url == notebook.url("/login")
    assert PASSWORD.encode() not in (notebook.folder / "monolith" / "notebook.sqlite").read_bytes()


def test_an_answer_streams_into_the_page_is_kept_and_gets_its_title_from_a_job(notebook: Service) -> None:
    log_in(notebook, "bob")
    question = 'what is <img src="/x">'
    with ask(notebook, question) as response:
        assert response.headers["Content-Type"].startswith("text/plain")
        pieces = [piece.decode() for piece in response.iter_content(None)]
    # One after the other, as they are computed.
    assert len(pieces) > 20
    words = "".join(pieces).split()
    assert words == (question.split() * 100)[: len(words)]
    page = notebook.get("/").text
    assert "…" in page
    assert "<img" not in page
    assert " ".join(words) in html.unescape(page)
    assert "has a title" in do_jobs(notebook)
    titles = re.findall("<h2>(.*)</h2>", notebook.get("/").text)
    assert len(titles) == 1
    assert question in html.unescape(titles[0])
    assert do_jobs(notebook) == ""


def test_a_job_that_finds_nobody_is_done_later(notebook: Service) -> None:
    log_in(notebook, "cid")
    with ask(notebook, "a b") as response:
        assert response.text
    assert "no service answers" in do_jobs(notebook, f"http://127.0.0.1:{free_port()}/ml/api")
    assert do_jobs(notebook) == ""
    with sqlite3.connect(notebook.folder / "monolith" / "notebook.sqlite") as db:
        db.execute("UPDATE job SET due = 0")
    db.close()
    assert "has a title" in do_jobs(notebook)


def test_the_page_takes_no_words_for_markup(notebook: Service) -> None:
    script = notebook.get("/static/ask.js").text
    assert "answer.append(part.value)" in script
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write", script)
    assert notebook.get("/login").headers["Content-Security-Policy"] == "default-src 'self'"


def test_a_reload_during_an_answer_breaks_nothing_and_keeps_the_host(notebook: Service) -> None:
    log_in(notebook, "dan")
    before = set(wait_workers(notebook, PROCESSES))
    host = host_pid(notebook)
    with ask(notebook, "a b") as response:
        pieces = response.iter_content(None)
        first = next(pieces)
        notebook.signal(signal.SIGHUP)
        rest = b"".join(pieces)
    assert (first + rest).split() == [b"a", b"b"] * 100
    wait_workers(notebook, PROCESSES, without=before)
    with ask(notebook, "c") as response:
        assert set(response.text.split()) == {"c"}
    assert host_pid(notebook) == host
    assert host in host_processes(notebook.folder)


def test_four_processes_have_one_host_that_ends_with_them(run: Services) -> None:
    service = run_example(run)
    wait_workers(service, PROCESSES)
    assert len({host_pid(service) for _ in range(40)}) == 1
    # gunicorn's master, and the one process with the model.
    assert len(host_processes(service.folder)) == 2
    service.signal(signal.SIGTERM)
    assert service.wait_ended(60) == 0
    wait_gone(service.folder)
