"""modelyard.Client over real gunicorn workers: each call, leaving early, tokens, TLS, threads, gevent."""

from __future__ import annotations

import ssl
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faulty import faulty, output, says, streamed
from modelyard import Client, errors
from modelyard.access.tokens import Token, add_to_file, digest_of, new_secret, parse_scopes
from running import Service, Services, wait_until

MODELS = """
[[models]]
name = "echo"
reply = "prompt"

[[models]]
name = "narrow"
engine = "echo"
delay = 0.05
limit_model_concurrency = 1
max_waiting = 0

[[models]]
name = "spare"
engine = "echo"
start = false

[[models]]
name = "echo-embed"
"""


@pytest.fixture(scope="module")
def service(run_module: Services) -> Service:
    return run_module.start(MODELS)


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(f"http://127.0.0.1:{service.port}", token="", retries=0) as made:
        yield made


def test_each_call_of_a_model_is_answered(client: Client) -> None:
    assert client.chat("one two", model="echo", max_new_tokens=3) == " one two one"
    answer = client.generate([{"role": "user", "content": "one"}], model="echo", max_new_tokens=1, metrics=True)
    assert (answer.text, answer.finish_reason) == (" one", "length")
    assert answer.usage == {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    with client.stream(prompt="a b c", model="echo", max_new_tokens=200) as stream:
        assert sum(1 for _ in stream) == 200
    rows = client.embeddings(["a kitten naps", "the price of oil"])
    assert [len(row) for row in rows] == [384, 384]
    scores = client.rerank("a kitten", ["a kitten naps", "the price of oil"])
    assert scores[0] > scores[1]
    assert client.count_token("one two three", model="echo") == 3


def test_what_runs_is_started_stopped_and_changed(client: Client) -> None:
    def state(name: str) -> str:
        return next((model.state for model in client.models() if model.name == name), "")

    assert state("echo") == "ready"
    client.start("spare", "llm")
    assert state("spare") == "ready"
    client.start("spare")
    assert client.chat("x", model="spare", max_new_tokens=1) == " token"
    outcome = client.apply("spare", "update_params", params={"default_max_new_tokens": 2})
    assert outcome.success
    assert client.chat("x", model="spare") == " token token"
    client.stop("spare")
    assert state("spare") == "stopped"
    with pytest.raises(errors.NotReady):
        client.chat("x", model="spare")
    client.stop("spare", forget=True)
    assert state("spare") == ""
    with pytest.raises(errors.UnknownModel):
        client.stop("spare")
    with pytest.raises(errors.InvalidRequest, match="delay"):
        client.start("spare", delay="long")


def test_errors_are_the_services_own(client: Client) -> None:
    with pytest.raises(errors.UnknownModel, match="'nobody'"):
        client.stream("x", model="nobody")
    with pytest.raises(errors.InvalidRequest) as invalid:
        client.chat("x", model="echo", temperature=-1)
    assert [error["field"] for error in invalid.value.errors] == ["temperature"]
    with pytest.raises(errors.Unsupported):
        client.embeddings(["x"], model="echo")
    with pytest.raises(errors.InvalidRequest, match=r"name one of those at .*: echo, narrow"):
        client.chat("x")


def test_a_stream_that_is_left_frees_its_slot_and_is_noted_as_cancelled(service: Service, client: Client) -> None:
    before = len(service.access_lines())
    with client.stream("x", model="narrow", max_new_tokens=100_000) as stream:
        assert next(stream) == " token"
        with pytest.raises(errors.Overloaded) as full:
            client.chat("x", model="narrow")
        assert full.value.retry_after >= 1

    def answers() -> bool:
        try:
            return client.chat("x", model="narrow", max_new_tokens=1) == " token"
        except errors.Overloaded:
            return False

    wait_until(answers, "the slot is free", timeout=5)
    wait_until(
        lambda: [line for line in service.access_lines()[before:] if line.get("error") == "cancelled"],
        "the stream is noted as cancelled",
    )


def test_another_thread_may_end_a_stream_that_waits_in_silence(service: Service) -> None:
    with Client(service.url("/api")) as client, ThreadPoolExecutor(1) as pool:
        stream = client.stream("x", model="narrow", max_new_tokens=100_000)
        reading = pool.submit(lambda: sum(1 for _ in stream))
        wait_until(lambda: stream.text, "pieces come")
        stream.close()
        assert reading.result(10) >= 1


def test_threads_share_one_client(service: Service) -> None:
    with Client(service.url("/api"), retries=0) as client, ThreadPoolExecutor(8) as pool:
        said = pool.map(lambda number: client.chat(f"n{number}", model="echo", max_new_tokens=1), range(100))
        assert list(said) == [f" n{number}" for number in range(100)]


UNDER_GEVENT = """
from gevent import monkey; monkey.patch_all()
import sys, gevent
import modelyard
with modelyard.Client(sys.argv[1]) as client:
    jobs = [gevent.spawn(client.chat, f"n{n}", model="echo", max_new_tokens=1) for n in range(20)]
    stream = client.stream("x", model="narrow", max_new_tokens=100_000)
    reading = gevent.spawn(list, stream)
    gevent.spawn_later(0.3, stream.close)
    assert [job.get(timeout=20) for job in jobs] == [f" n{n}" for n in range(20)]
    assert len(reading.get(timeout=20)) >= 1
print("done")
"""


def test_it_works_under_gevent(service: Service) -> None:
    command = [sys.executable, "-c", UNDER_GEVENT, service.url("/api")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout) == (0, "done\n"), ran.stderr


def test_a_service_with_tokens_wants_one(run: Services, tmp_path: Path) -> None:
    file, secret = tmp_path / "tokens", new_secret()
    add_to_file(file, Token("job", parse_scopes("infer"), digest_of(secret)))
    service = run.start(MODELS, tokens_file=file)
    with Client(service.url("/api"), token="") as stranger:
        for call in (lambda: stranger.chat("x", model="echo"), lambda: stranger.embeddings(["x"], model="echo-embed")):
            with pytest.raises(errors.Unauthorized):
                call()
    with Client(service.url("/api"), token=secret) as job:
        assert job.chat("x", model="echo", max_new_tokens=1) == " x"
        with pytest.raises(errors.Forbidden):
            job.stop("echo")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost that signs itself, with its key beside it."""
    file = tmp_path_factory.mktemp("tls") / "cert.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    try:
        subprocess.run(
            [*command.split(), "-keyout", f"{file}.key", "-out", str(file)], capture_output=True, check=True, timeout=60
        )
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return file


def test_https_is_spoken_where_the_certificate_is_trusted(certificate: Path) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, f"{certificate}.key")
    with faulty(says(streamed(output("Hi"))), tls=tls) as server:
        with Client(server.url, ca=str(certificate)) as client:
            assert client.chat("x", model="m") == "Hi"
            with client.stream("x", model="m") as stream:
                pass
            assert list(stream) == []
        with Client(server.url, retries=3) as strange, pytest.raises(errors.WorkerUnreachable, match="certificate"):
            strange.chat("x", model="m")
        assert len(server.requests) == 2
