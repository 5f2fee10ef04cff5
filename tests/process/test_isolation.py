"""Engines in processes of their own: killed, hung, out of memory, orphaned; what is left goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kept_spans import lines_of
from modelyard.cluster.hosting import isolation
from modelyard.cluster.hosting.isolation import IsolatedEngine
from modelyard.engines.base import Engine
from modelyard.engines.llama_cpp import LlamaCpp
from modelyard.errors import (
    BadModelFile,
    Cancelled,
    EngineError,
    EngineLost,
    ModelyardError,
    Overloaded,
    StartFailed,
    StartTimeout,
)
from modelyard.settings.settings import Settings
from modelyard.streams import Cancel, OutputStream
from modelyard.types import GenerateRequest
from modelyard.worker.states import State
from modelyard.worker.worker import ModelWorker
from processes import children, is_alive, resident_bytes
from running import ENGINES, Service, Services, services, wait_until

from scripts import script

Start = Callable[..., ModelWorker]


@pytest.fixture(autouse=True)
def engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ENGINES)


@pytest.fixture
def start(engines: None) -> Iterator[Start]:
    """Starts the engine ``scripted``, isolated; it is stopped in the end, and its process has ended."""
    made: list[ModelWorker] = []

    def start(
        name: str = "m", settings: Settings | None = None, engine: str = "Scripted", **params: Any
    ) -> ModelWorker:
        import scripted

        kind = getattr(scripted, engine)
        inner = kind(kind.Params(model_name=name, engine="scripted", isolation="process", **params))
        worker = ModelWorker(IsolatedEngine(inner, settings or Settings()))
        made.append(worker)
        worker.start()
        return worker

    yield start
    pids = [pid for worker in made if (pid := pid_of(worker))]
    for worker in made:
        worker.stop()
    assert not [pid for pid in pids if is_alive(pid)]
    # A start that was given up ends in a thread of its own.
    wait_until(
        lambda: not [t.name for t in threading.enumerate() if t.name.startswith("isolated-")], "no thread is left"
    )


def threads_named(prefix: str) -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(prefix)]


def pid_of(worker: ModelWorker) -> int:
    """Return the process of a model; 0 without one."""
    assert isinstance(worker.engine, IsolatedEngine)
    return worker.engine.pid


def begin(worker: ModelWorker, **plan: Any) -> OutputStream:
    return worker.generate_stream(GenerateRequest(worker.name, prompt=json.dumps(plan)), Cancel())


def answer_of(worker: ModelWorker, **plan: Any) -> str:
    return worker.generate(GenerateRequest(worker.name, prompt=json.dumps(plan)), Cancel()).text


def first_of(stream: OutputStream) -> None:
    next(burst for burst in stream if burst)


def failure_of(stream: OutputStream) -> ModelyardError:
    """Return the error that ends a stream."""
    with stream, pytest.raises(ModelyardError) as caught:
        list(stream)
    return caught.value


def test_a_process_that_is_killed_fails_its_own_requests_and_no_others(start: Start, tmp_path: Path) -> None:
    killed, other = start("killed", limit_model_concurrency=2), start("other")
    begun, silent = begin(killed, each=0.02, pieces=10_000), begin(killed, before=60)
    unharmed = begin(other, until=str(tmp_path / "go"), pieces=2)
    first_of(begun)
    first_of(unharmed)
    next(silent)
    os.kill(pid_of(killed), signal.SIGKILL)
    why = "the process of model killed@llm was killed by SIGKILL"
    lost, unreachable = failure_of(begun), failure_of(silent)
    assert (type(lost), str(lost), lost.status) == (EngineError, why, 500)
    assert (type(unreachable), str(unreachable), unreachable.status) == (EngineLost, why, 503)
    wait_until(lambda: (killed.state, killed.reason) == (State.FAILED, why), "its model has failed")
    (tmp_path / "go").touch()
    assert [burst.finish_reason for burst in unharmed if burst][-1] == "stop"
    killed.start()
    assert answer_of(killed) == "x"


def test_a_process_that_hangs_is_killed_after_the_read_timeout(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "LOOK_INTERVAL", 0.05)
    worker = start(settings=Settings(read_timeout=0.4))
    stream = begin(worker, each=0.01, pieces=10_000)
    first_of(stream)
    os.kill(pid_of(worker), signal.SIGSTOP)
    assert str(failure_of(stream)) == "the process of model m@llm did not answer for 0.4 s, and was killed"
    wait_until(lambda: worker.state is State.FAILED, "its model has failed")


def test_a_process_that_dies_while_it_loads_leaves_its_last_lines(start: Start, tmp_path: Path) -> None:
    (tmp_path / "die").touch()
    with pytest.raises(StartFailed) as caught:
        start(die_while=str(tmp_path / "die"))
    why = "the process of model m@llm was killed by SIGKILL while it loaded; its last lines: "
    assert str(caught.value) == f"{why}model m@llm: reading the script"


def test_the_error_of_a_load_is_that_of_the_engine(start: Start, tmp_path: Path) -> None:
    (tmp_path / "fail").touch()
    with pytest.raises(StartFailed, match="'m' did not start: RuntimeError: the script says so"):
        start(fail_while=str(tmp_path / "fail"))
    (tmp_path / "bad.gguf").write_bytes(b"no weights")
    params = LlamaCpp.Params(model_name="m", engine="llama.cpp")
    with pytest.raises(BadModelFile, match=r"bad\.gguf"):
        IsolatedEngine(LlamaCpp(params, tmp_path / "bad.gguf"), Settings()).start(lambda sentence: None)


def test_a_load_that_never_ends_is_given_up_and_its_process_with_it(start: Start) -> None:
    before = children(os.getpid())
    with pytest.raises(StartTimeout, match=r"did not start within 1\.5 s"):
        start(engine="Stubborn", start_timeout=1.5)
    wait_until(lambda: children(os.getpid()) == before, "its process has ended")


def test_a_stop_ends_the_process_that_loads() -> None:
    import scripted

    kind = scripted.Stubborn
    engine = IsolatedEngine(kind(kind.Params(model_name="m", engine="scripted", isolation="process")), Settings())
    worker = ModelWorker(engine)
    before = children(os.getpid())
    errors: list[ModelyardError] = []

    def start() -> None:
        try:
            worker.start()
        except ModelyardError as error:
            errors.append(error)

    starting = threading.Thread(target=start)
    starting.start()
    wait_until(lambda: children(os.getpid()) != before, "its process loads")
    worker.cancel_start()
    starting.join(20)
    assert worker.state is State.STOPPED
    assert list(map(str, errors)) == ["model 'm' was stopped"]
    wait_until(lambda: children(os.getpid()) == before, "its process has ended")


def test_without_room_for_a_thread_no_process_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_reader(thread: threading.Thread) -> None:
        if thread.name.startswith("isolated-log-"):
            raise Overloaded("can't start new thread")
        thread.start()

    monkeypatch.setattr("modelyard.cluster.hosting.child.start_thread", no_reader)
    before = children(os.getpid())
    engine = LlamaCpp(LlamaCpp.Params(model_name="m", engine="llama.cpp"))
    with pytest.raises(Overloaded, match="can't start new thread"):
        IsolatedEngine(engine, Settings()).start(lambda sentence: None)
    assert children(os.getpid()) == before


def test_a_process_out_of_memory_says_so(start: Start) -> None:
    worker = start(memory_limit=400_000_000)
    assert str(failure_of(begin(worker, megabytes=1000))) == "the engine of model 'm' failed: MemoryError"
    assert answer_of(worker) == "x", "the others go on"
    error = failure_of(begin(worker, abort=True))
    assert str(error) == "the process of model m@llm was killed by SIGABRT (memory_limit is 400.0 MB)"


def test_a_cancel_reaches_the_engine_within_a_step(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    journal = tmp_path / "journal"
    worker = start(journal=str(journal))
    stream = begin(worker, name="long", each=0.05, pieces=10_000)
    first_of(stream)
    stream.close()
    wait_until(lambda: "end long" in journal.read_text(), "the engine has ended the answer")
    cancel, embedder = Cancel(), start(worker_type="text2vec", journal=str(journal))

    def cancel_it() -> None:
        wait_until(lambda: "begin vectors" in journal.read_text(), "it computes")
        cancel.set()

    threading.Thread(target=cancel_it).start()
    with pytest.raises(Cancelled):
        embedder.embeddings([json.dumps({"name": "vectors", "before": 60})], cancel)
    wait_until(lambda: "cancelled vectors" in journal.read_text(), "the engine has ended the computation")
    worker.stop()
    assert "model m@llm is stopped" in caplog.text
    assert "Traceback" not in caplog.text


def test_every_call_and_value_of_an_engine_is_passed_on() -> None:
    declared = {name for name in vars(Engine) if not name.startswith("_")}
    of_the_class = {"Params", "worker_types", "needs_weights", "is_proxy", "worker_type_of", "passes_on"}
    of_the_class |= {name for name in declared if name.startswith("default_")}
    made_of_others = {"memory"}
    assert declared - of_the_class - made_of_others - set(vars(IsolatedEngine)) == set()


def test_its_parameters_are_neither_on_its_command_line_nor_in_its_environment(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELYARD_M_SECRET", "hunter2")
    process = Path(f"/proc/{pid_of(start(secret='hunter2'))}")
    assert process.joinpath("cmdline").read_bytes().endswith(b"modelyard.server.isolated_process\0m@llm\0")
    assert b"hunter2" not in process.joinpath("environ").read_bytes()


GEVENT = """
from gevent import monkey
monkey.patch_all()
import json, os, signal, sys
import gevent
from modelyard.cluster.hosting.isolation import IsolatedEngine
from modelyard.engines.echo import Echo
from modelyard.errors import EngineLost
from modelyard.settings.settings import Settings
from modelyard.streams import Cancel
from modelyard.types import GenerateRequest
from modelyard.worker.worker import ModelWorker

forks, ticks, ends = [], [], []
os.register_at_fork(before=lambda: forks.append(os.getpid()))

def tick():
    while True:
        ticks.append(len(ends))
        gevent.sleep(0.005)

gevent.spawn(tick)
engine = IsolatedEngine(Echo(Echo.Params(model_name="m", engine="echo", isolation="process")), Settings())
worker = ModelWorker(engine)
worker.start()
ends.append("start")
before = len(ticks)
text = worker.generate(GenerateRequest("m", prompt="a"), Cancel()).text
os.kill(engine.pid, signal.SIGKILL)
while not worker.reason:
    gevent.sleep(0.005)
print(json.dumps([forks, before, bool(text), worker.reason]))
"""


def test_under_gevent_it_is_started_without_a_fork_in_python_and_blocks_no_other_greenlet() -> None:
    command = [sys.executable, "-c", GEVENT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    forks, ticks, answered, reason = json.loads(done.stdout)
    assert (forks, answered) == ([], True)
    assert reason == "the process of model m@llm was killed by SIGKILL"
    assert ticks > 10, "they go on while the process starts"


def test_it_has_the_variables_of_its_parameters_over_those_of_its_parent(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PARTS", "WHOLE"):
        monkeypatch.setenv(name, "inherited")
    worker = start(environment={"PARTS": "a=b, c", "MORE": "1"})
    variables = Path(f"/proc/{pid_of(worker)}/environ").read_bytes().split(b"\0")
    assert {b"PARTS=a=b, c", b"MORE=1", b"WHOLE=inherited"} <= set(variables)
    assert answer_of(worker) == "x"


ORPHAN = """
import os, sys, time
from modelyard.cluster.hosting.isolation import IsolatedEngine
from modelyard.engines.echo import Echo
from modelyard.settings.settings import Settings
engine = IsolatedEngine(Echo(Echo.Params(model_name="m", engine="echo")), Settings())
engine.start(lambda sentence: None)
print(engine.pid, flush=True)
sys.stdin.read()
"""


def test_no_process_survives_the_kill_of_its_parent_even_one_that_hangs() -> None:
    command = [sys.executable, "-c", ORPHAN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, signal.SIGSTOP)
        assert is_alive(pid)
        parent.kill()
        wait_until(lambda: not is_alive(pid), "the process of the engine has ended")


# Whole services

TRACE = "0af7651916cd43dd8448eb211c80319c"
TABLES = """
[[models]]
name = "script"
worker_class = "scripted:Scripted"
isolation = "process"

[[models]]
name = "echo"
"""


def isolated_pids(service: Service) -> list[int]:
    """Return the processes of engines below a service, its host included."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            is_one = b"isolated_process" in line.read_bytes()
            is_ours = f"TMPDIR={service.folder / 'tmp'}".encode() in line.with_name("environ").read_bytes()
        except OSError:
            continue
        if is_one and is_ours and is_alive(int(line.parent.name)):
            found.append(int(line.parent.name))
    return found


def traced_pids(spans: Path) -> set[int]:
    """Return the processes that have computed in the trace, by the spans of their models."""
    return {row["pid"] for row in lines_of(spans) if row["trace_id"] == TRACE and row["name"] == "worker.generate"}


@pytest.mark.parametrize("placement", ["inline", "hosted"])
def test_a_service_goes_on_when_an_engine_is_killed(run: Services, placement: str) -> None:
    folder = run.folder()
    spans = folder / "spans.jsonl"
    service = run.start(TABLES, folder=folder, placement=placement, tracing=f"file:{spans}", models="script,echo")
    (pid,) = isolated_pids(service)
    trace = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
    body = script(pieces=2)
    asked = {"model": "script", "stream": False, "messages": [{"role": "user", "content": '{"before": 60}'}]}
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.append(service.post("/v1/chat/completions", asked)))
    asking.start()
    wait_until(lambda: service.model("script@llm").get("running") == 1, "it computes")
    os.kill(pid, signal.SIGKILL)
    asking.join(30)
    assert answers[0].status_code == 503, answers[0].text
    error = answers[0].json()["error"]
    assert (error["code"], answers[0].headers["Retry-After"]) == ("engine_lost", "1")
    assert error["message"] == "the process of model script@llm was killed by SIGKILL"
    assert service.post("generate", {"model": "echo", "prompt": "x"}).status_code == 200
    wait_until(lambda: isolated_pids(service) not in ([], [pid]), "another process")
    wait_until(lambda: service.model("script@llm").get("state") == "ready", "its model is ready again")
    # A router leaves an instance alone for the second that its error names.
    wait_until(lambda: service.post("generate", body, headers=trace).status_code == 200, "it answers")
    assert f"model script@llm, pid {pid}: " in service.log()
    wait_until(lambda: len(traced_pids(spans)) == 2, "one trace over both processes")
    service.signal(signal.SIGTERM)
    service.wait_ended(20)
    wait_until(lambda: not isolated_pids(service), "no process is left")


def test_the_default_model_answers_from_its_own_process_and_gives_its_memory_back(models_dir: Path) -> None:
    with services(models_dir) as run:
        service = run.start('[[models]]\nname = "smollm2-135m"\nisolation = "process"\n')
        (pid,) = isolated_pids(service)
        body = {"model": "smollm2-135m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
        answer = service.post("/v1/chat/completions", body).json()
        assert answer["usage"]["completion_tokens"] == 4
        assert resident_bytes(pid) > 200e6 > resident_bytes(service.worker_pid())
        stopped = service.post("apply", {"model": "smollm2-135m", "apply_type": "stop"})
        assert stopped.json()["success"]
        assert not is_alive(pid)
