"""One process of a role: what it declares and starts, what it says meanwhile, what it keeps, and how it ends."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import steered
from flask import Flask
from modelyard import Modelyard
from modelyard.errors import ConfigError, Draining, ModelyardError, NotReady, StartFailed, UnknownModel
from modelyard.server import state
from modelyard.server.recovery import Recovery
from modelyard.server.runtime import LOADER_TIMEOUT, Runtime
from modelyard.server.state import OwnerLock, StateFile
from modelyard.settings.settings import Settings
from modelyard.streams import Cancel
from modelyard.types import GenerateRequest, WorkerType
from modelyard.worker.protocol import WorkerManager
from modelyard.worker.states import State
from running import wait_until
from steered import Steered

Make = Callable[..., Runtime]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes runtimes over one state folder, and stops them in the end: those made later are their successors."""
    Steered.reset()
    made: list[Runtime] = []

    def runtime(*tables: dict[str, Any], **options: Any) -> Runtime:
        after_start = options.pop("after_start", None)
        given = {"state_dir": str(tmp_path / "state"), "models_dirs": [str(tmp_path / "models")], **options}
        settings = Settings(**given)
        settings.model_tables = tables
        made.append(Runtime(settings, {}, after_start))
        return made[-1]

    yield runtime
    Steered.go.set()
    for one in made:
        one.stop()
    assert Steered.running() == []


@pytest.fixture
def loaded(make) -> Make:
    def runtime(*tables: dict[str, Any], **options: Any) -> Runtime:
        one = make(*tables, **options)
        one.start()
        assert one.wait_loaded(30)
        return one

    return runtime


def table(name: str, **params: Any) -> dict[str, Any]:
    return {"name": name, "worker_class": steered.PATH, **params}


def states(runtime: Runtime) -> dict[str, str]:
    return {model["model"]: model["state"] for model in runtime.status()["models"]}


def state_file(tmp_path: Path) -> StateFile:
    return StateFile(tmp_path / "state" / "standalone-8000" / "models.json")


# Before the start


def test_making_one_starts_nothing(make, tmp_path):
    threads = threading.active_count()
    runtime = make(table("a"))
    assert threading.active_count() == threads
    assert not (tmp_path / "state").exists()
    assert (Steered.made, runtime.local.models.workers()) == ([], [])
    status = runtime.status()
    assert status.pop("cluster") == {"url": "", "registered": [], "error": None}
    assert status == {
        "ready": False,
        "state": "starting",
        "reason": "models are starting",
        "models": [],
        "unsaved": None,
        "keys": {"count": None, "error": None},
    }


def test_what_does_not_fit_is_refused_when_it_is_made(make):
    with pytest.raises(ConfigError, match="no model 'nope'"):
        make(models=["nope"])
    with pytest.raises(ConfigError, match="share the environment prefix"):
        make(table("a-b"), table("a.b"))


def test_the_first_request_starts_it(make):
    runtime = make(table("a"))
    runtime.check_open()
    assert runtime.wait_loaded(30)
    assert states(runtime) == {"a@llm": "ready"}


def test_starting_twice_starts_once(make):
    runtime = make(table("a"))
    for _ in range(3):
        runtime.start()
    assert runtime.wait_loaded(30)
    assert len(Steered.running()) == 1


# What is started


def test_the_models_of_the_configuration_are_started(loaded):
    runtime = loaded(table("a"), table("b", start=False), table("c", worker_type="text2vec"))
    assert states(runtime) == {"a@llm": "ready", "c@text2vec": "ready"}
    assert runtime.status()["ready"]


def test_the_models_that_are_named_are_started_instead(loaded):
    assert states(loaded(table("a"), table("b", start=False), models=["b", "echo"])) == {
        "b@llm": "ready",
        "echo@llm": "ready",
    }


def test_nothing_configured_is_ready(loaded):
    status = loaded(models=[], role="worker").status()
    assert status.pop("keys") == {"count": 0, "error": None}
    assert status == {"ready": True, "state": "ready", "reason": None, "models": [], "unsaved": None}


def test_one_that_fails_is_told_and_the_others_answer(loaded):
    runtime = loaded(table("a", fail="file"), table("b"))
    status = runtime.status()
    assert (status["ready"], states(runtime)) == (True, {"a@llm": "failed", "b@llm": "ready"})
    assert "weights.bin" in status["models"][0]["reason"]
    assert runtime.manager.generate(GenerateRequest("b", prompt="x")).text == " x"


def test_when_all_fail_it_is_not_ready(loaded):
    status = loaded(table("a", fail="other")).status()
    assert (status["ready"], status["state"], status["reason"]) == (False, "failed", "no model is ready")


def test_one_that_can_not_even_be_declared_is_told_and_the_others_answer(loaded):
    runtime = loaded(table("a", size=99), table("b"), table("c", worker_class="steered:AsyncSteered"))
    assert states(runtime) == {"b@llm": "ready", "a": "failed", "c": "failed"}
    reasons = {model["model"]: model["reason"] for model in runtime.status()["models"]}
    assert "size: 99 is more than 9" in reasons["a"]
    assert "asynchronous" in reasons["c"]


def test_slots_over_the_budget_are_told_with_the_numbers(loaded):
    runtime = loaded(table("a", limit_model_concurrency=50), table("b"), threads=64)
    assert states(runtime) == {"a@llm": "ready", "b": "failed"}
    assert "50 of the 56" in runtime.problems["b"]


def test_a_failed_start_ends_the_process_if_that_is_wanted(make):
    for wanted, told in (("exit", 1), ("stay", 0)):
        fatal: list[str] = []
        runtime = make(table("a", fail="other"), table("b", size=99), on_load_failure=wanted, instance=wanted)
        runtime.start(fatal.append)
        assert runtime.wait_loaded(30)
        wait_until(lambda fatal=fatal, told=told: len(fatal) == told, "it was told, or not")
        runtime._loader.join(30)
        assert len(fatal) == told
        assert all("a@llm: model 'a' did not start" in text and "b: " in text for text in fatal)


def test_while_models_start_it_is_up_and_not_ready(make):
    runtime = make(table("a"), table("b", hold_start=True))
    runtime.start()
    wait_until(lambda: Steered.holding == 1, "the second starts")
    status = runtime.status()
    assert (status["ready"], status["state"], status["reason"]) == (False, "starting", "models are starting")
    assert status["models"][1] == {"model": "b@llm", "state": "starting", "reason": "stretching"}
    runtime.check_open()
    assert runtime.manager.generate(GenerateRequest("a", prompt="x")).text == " x", "the first answers already"
    with pytest.raises(NotReady, match=r"'b' is starting \(stretching\)"):
        runtime.manager.generate(GenerateRequest("b", prompt="x"))
    Steered.go.set()
    assert runtime.wait_loaded(30)
    assert runtime.status()["ready"]


@pytest.mark.parametrize("role", ["worker", "standalone", "gateway"])
def test_callbacks_are_called_in_order_when_models_were_started_or_have_failed(make, role, tmp_path):
    calls: list[tuple[int, WorkerManager, list[str]]] = []

    def note(number: int, manager: WorkerManager) -> None:
        instances = manager.get_all_model_instances(healthy_only=False)
        calls.append((number, manager, [f"{one.model_name} {one.healthy}" for one in instances]))

    options = {"role": role, "registry": f"sqlite:///{tmp_path}/registry.db" if role == "gateway" else None}
    runtime = make(table("a", fail="other"), table("b"), after_start=lambda manager: note(1, manager), **options)
    runtime.manager.after_start(lambda manager: note(2, manager))
    assert calls == []
    runtime.start()
    wait_until(lambda: len(calls) == 2, "both were called")
    models = [] if role == "gateway" else ["a@llm False", "b@llm True"]
    assert calls == [(1, runtime.manager, models), (2, runtime.manager, models)]


def test_callbacks_of_a_process_that_is_stopped_while_it_starts_are_not_called(make):
    calls: list[WorkerManager] = []
    runtime = make(table("a", hold_start=True), after_start=calls.append)
    runtime.start()
    wait_until(lambda: Steered.holding, "it loads")
    stop = threading.Thread(target=runtime.stop)
    stop.start()
    wait_until(lambda: runtime._halt.is_set(), "it stops")
    Steered.go.set()
    stop.join(30)
    runtime._loader.join(30)
    assert calls == []


@pytest.mark.parametrize("failure", [RuntimeError("odd"), SystemExit(3)])
def test_a_callback_that_raises_ends_no_service(make, caplog, failure):
    def warm_up(manager: WorkerManager) -> None:
        raise failure

    runtime = make(table("a"), after_start=warm_up)
    runtime.start()
    runtime._loader.join(30)
    assert "warm_up failed" in caplog.text
    assert runtime.status()["state"] == "ready"
    assert runtime.manager.generate(GenerateRequest("a", prompt="x")).text == " x"


# What it keeps


def test_a_model_started_over_http_comes_back_with_its_parameters(loaded):
    first = loaded(table("a"), table("spare", start=False))
    first.manager.model_startup("spare", None, {"size": 5})
    first.manager.worker_apply("spare", "update_params", None, {"max_waiting": 3})
    first.stop()
    second = loaded(table("a"), table("spare", start=False))
    assert states(second) == {"a@llm": "ready", "spare@llm": "ready"}
    params = second.local.models.workers()[1].params
    assert (params.size, params.max_waiting) == (5, 3)


def test_a_model_that_only_a_request_knew_comes_back(loaded, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "weights.bin").touch()
    first = loaded(models=[])
    first.manager.model_startup("mine", WorkerType.TEXT2VEC, {"engine": "echo", "model_path": "weights.bin"})
    first.stop()
    assert states(loaded(models=[])) == {"mine@text2vec": "ready"}


def test_parameters_of_a_configured_model_set_over_http_stay(loaded):
    first = loaded(table("a", size=2))
    first.manager.worker_apply("a", "update_params", None, {"size": 7})
    first.stop()
    assert loaded(table("a", size=2)).local.models.workers()[0].params.size == 7


@pytest.mark.parametrize("how", ["stop", "shutdown"])
def test_a_configured_model_stopped_over_http_stays_stopped_until_it_is_started(loaded, how):
    first = loaded(table("a"), table("b"))
    if how == "stop":
        first.manager.worker_apply("a", "stop", None, {})
    else:
        first.manager.model_shutdown("a", None)
    first.stop()
    second = loaded(table("a"), table("b"))
    assert states(second) == {"a@llm": "stopped", "b@llm": "ready"}
    assert second.manager.worker_apply("a", "start", None, {}).success
    second.stop()
    assert states(loaded(table("a"), table("b"))) == {"a@llm": "ready", "b@llm": "ready"}


def test_a_model_started_and_shut_down_over_http_is_forgotten(loaded, tmp_path):
    first = loaded(table("spare", start=False))
    first.manager.model_startup("spare", None, {})
    first.manager.model_shutdown("spare", None)
    first.stop()
    assert states(loaded(table("spare", start=False))) == {}


def test_a_startup_that_failed_leaves_no_trace(loaded, tmp_path):
    first = loaded(table("a"), table("spare", start=False))
    with pytest.raises(StartFailed):
        first.manager.model_startup("spare", None, {"fail": "other"})
    first.stop()
    assert "spare@llm" not in state_file(tmp_path).models()


def test_a_model_that_failed_to_start_is_tried_again_by_the_next(loaded):
    first = loaded(table("a", fail="other"))
    assert not first.manager.worker_apply("a", "restart", None, {}).success
    with pytest.raises(StartFailed):
        first.manager.model_startup("a", None, {})
    first.stop()
    assert states(loaded(table("a"))) == {"a@llm": "ready"}


def test_one_name_in_two_types_keeps_the_parameters_apart(loaded):
    first = loaded(table("a", size=2))
    first.manager.model_startup("a", WorkerType.TEXT2VEC, {"size": 5, "limit_model_concurrency": 4})
    first.stop()
    second = loaded(table("a", size=2))
    assert {w.key: w.params.size for w in second.local.models.workers()} == {"a@llm": 2, "a@text2vec": 5}


def test_an_alias_given_over_http_does_not_rename_the_configured_model(loaded):
    first = loaded(table("a"))
    first.manager.model_startup("a", None, {"model_alias": "nick"})
    first.stop()
    assert states(loaded(table("a"))) == {"a@llm": "ready", "nick@llm": "ready"}


def test_fresh_forgets(loaded, tmp_path):
    first = loaded(table("a"), table("spare", start=False))
    first.manager.model_startup("spare", None, {})
    first.manager.worker_apply("a", "update_params", None, {"size": 7})
    first.manager.worker_apply("a", "stop", None, {})
    first.stop()
    second = loaded(table("a"), table("spare", start=False), fresh=True)
    assert states(second) == {"a@llm": "ready"}
    assert second.local.models.workers()[0].params.size == 1


def test_a_stop_of_the_process_is_no_stop_of_its_models(loaded):
    first = loaded(table("a"))
    first.drain(0)
    first.stop()
    assert states(loaded(table("a"))) == {"a@llm": "ready"}


def test_what_is_written_of_a_model_is_what_the_docstring_says(loaded, tmp_path):
    runtime = loaded(table("a"), table("spare", start=False))
    runtime.manager.model_startup("spare", None, {})
    state = state_file(tmp_path)
    state.begin_start("a@llm")
    state.count_deaths()
    state.begin_start("a@llm")
    written = {name for entry in state_file(tmp_path).models().values() for name in entry}
    assert written == set(re.findall(r"``(\w+)``", StateFile.__doc__ or ""))


# Models that kill their process


def test_a_model_that_killed_its_process_twice_is_left_out_until_it_is_started_by_hand(loaded, tmp_path):
    loaded(table("a"), table("b")).stop()
    for _ in range(2):
        state_file(tmp_path).begin_start("a@llm")
        state_file(tmp_path).count_deaths()
    second = loaded(table("a"), table("b"))
    assert states(second) == {"a@llm": "failed", "b@llm": "ready"}
    assert "quarantined" in second.status()["models"][0]["reason"]
    assert second.status()["ready"]
    second.stop()
    third = loaded(table("a"), table("b"))
    assert states(third)["a@llm"] == "failed"
    assert third.manager.worker_apply("a", "start", None, {}).success
    third.stop()
    assert states(loaded(table("a"), table("b"))) == {"a@llm": "ready", "b@llm": "ready"}


def test_while_a_model_loads_it_is_noted_and_after_that_no_more(make, tmp_path):
    runtime = make(table("a", hold_start=True))
    runtime.start()
    wait_until(lambda: Steered.holding, "it loads")
    assert state_file(tmp_path).models()["a@llm"]["loading"] is True
    Steered.go.set()
    assert runtime.wait_loaded(30)
    assert state_file(tmp_path).models()["a@llm"]["loading"] is False


def test_a_model_that_waits_for_memory_is_not_noted_as_one_that_loads(loaded, tmp_path):
    runtime = loaded(*(table(name, memory=600) for name in "ab"), memory_budget=1000)
    with runtime.manager.generate_stream(GenerateRequest("a", prompt="hold")) as running:
        next(running)
        with runtime.manager.generate_stream(GenerateRequest("b", prompt="x")) as waiting:
            worker = runtime.local.models.find("b@llm")
            wait_until(lambda: worker.reason == "waiting for memory", "it waits")
            assert not state_file(tmp_path).models()["b@llm"].get("loading")
            waiting.cancel.set()


def test_a_model_whose_engine_was_lost_is_started_again_beside_the_others(loaded):
    runtime = loaded(table("a"), table("b"))
    a, b = runtime.local.models.workers()
    for worker, cause, ready in ((a, "restart", True), (a, "call", False), (b, "restart", True)):
        a.state = b.state = State.READY
        worker.state, worker.cause = State.STARTING, cause
        assert runtime.status()["ready"] is ready
    a.state, a.cause = State.STARTING, "restart"
    assert runtime.status()["state"] == "starting", "none answers"
    a.state = b.state = State.READY


def test_a_process_that_is_stopped_while_it_loads_was_not_killed_by_the_model(make, tmp_path):
    runtime = make(table("a", hold_start=True), drain_timeout=0.05)
    runtime.start()
    wait_until(lambda: Steered.holding, "it loads")
    began = time.monotonic()
    runtime.stop()
    assert time.monotonic() - began < LOADER_TIMEOUT, "it waits no longer than drain_timeout"
    assert state_file(tmp_path).count_deaths() == []
    assert state_file(tmp_path).models()["a@llm"].get("deaths", 0) == 0


# The lock


def test_a_successor_waits_and_says_so_and_starts_when_the_other_has_gone(make, loaded):
    first = loaded(table("a"))
    second = make(table("a"))
    second.start()
    wait_until(lambda: second.status()["state"] == "waiting", "it waits")
    with pytest.raises(NotReady, match="still holds the models"):
        second.check_open()
    assert len(Steered.running()) == 1, "never two copies of the weights"
    first.stop()
    assert second.wait_loaded(30)
    assert states(second) == {"a@llm": "ready"}
    second.check_open()


def test_a_second_application_of_one_factory_says_that_the_first_holds_the_models(tmp_path):
    def factory() -> Runtime:
        app = Flask("shop")
        Modelyard(app, placement="inline", models=["echo"], state_dir=str(tmp_path))
        return app.extensions["modelyard"]

    first, second = factory(), factory()
    try:
        first.start()
        assert first.wait_loaded(30)
        second.start()
        wait_until(lambda: "another application of this process" in (second.status()["reason"] or ""), "the reason")
        assert "Modelyard(app, instance=NAME)" in second.status()["reason"]
        assert first.status()["ready"] is True
    finally:
        second.stop()
        first.stop()


def test_a_successor_that_is_stopped_while_it_waits_ends_and_loads_nothing(make, loaded):
    loaded(table("a"))
    second = make(table("a"))
    second.start()
    wait_until(lambda: second.status()["state"] == "waiting", "it waits")
    second.stop()
    assert second._loader is not None
    assert not second._loader.is_alive()
    assert len(Steered.running()) == 1
    with pytest.raises(NotReady, match="about to end"):
        second.manager.generate(GenerateRequest("a", prompt="x"))


ON_A: dict[str, Callable[[WorkerManager], object]] = {
    "generate": lambda manager: manager.generate(GenerateRequest("a", prompt="x")),
    "count_token": lambda manager: manager.count_token(None, "x"),
    "metadata": lambda manager: manager.model_metadata("a"),
    "apply": lambda manager: manager.worker_apply("a", "stop", None, {}),
    "shutdown": lambda manager: manager.model_shutdown("a", None),
}


@pytest.mark.parametrize("role", ["worker", "standalone"])
def test_until_its_models_are_declared_none_of_them_is_unknown(make, monkeypatch, role):
    held, declare = threading.Event(), Recovery.declare
    monkeypatch.setattr(Recovery, "declare", lambda self, names: held.wait(30) and declare(self, names))
    runtime = make(table("a"), role=role)
    runtime.start()
    if runtime.cluster is not None:
        runtime.cluster.view.refresh()
        assert runtime.cluster.view.complete
    for call in ON_A.values():
        with pytest.raises(NotReady, match="models are starting") as refused:
            call(runtime.manager)
        assert refused.value.retry_after
    held.set()
    assert runtime.wait_loaded(30)
    for call in ON_A.values():
        call(runtime.manager)
    with pytest.raises(UnknownModel):
        ON_A["generate"](runtime.manager)


def test_until_its_host_has_started_no_model_of_a_standalone_service_is_unknown(make, tmp_path):
    runtime = make(table("a"), placement="hosted", registry=f"sqlite:///{tmp_path}/registry.db")
    runtime.cluster.view.refresh()
    assert runtime.cluster.view.complete
    for call in ON_A.values():
        with pytest.raises(NotReady):
            call(runtime.manager)


def test_services_of_other_ports_do_not_wait_for_each_other(loaded):
    loaded(table("a"))
    assert states(loaded(table("a"), port=8001)) == {"a@llm": "ready"}


def test_the_lock_is_given_back_at_the_end(loaded, tmp_path):
    loaded(table("a")).stop()
    lock = OwnerLock(tmp_path / "state" / "standalone-8000" / "lock")
    assert lock.acquire()
    lock.release()


@pytest.mark.parametrize("obstacle", ["folder", "lock", "file"])
def test_a_state_folder_that_can_not_be_used_is_said_and_models_start(loaded, tmp_path, caplog, obstacle):
    folder = tmp_path / "state" / "standalone-8000"
    if obstacle == "folder":
        folder.parent.write_text("a file where the folder should be")
    else:
        (folder / {"lock": "lock", "file": "models.json"}[obstacle] / "x").mkdir(parents=True)
    runtime = loaded(table("a"))
    assert states(runtime) == {"a@llm": "ready"}
    outcome = runtime.manager.worker_apply("a", "update_params", None, {"size": 2})
    assert outcome.success
    assert "can't be" in caplog.text
    unsaved = runtime.status()["unsaved"]
    if obstacle == "file":  # it was set aside
        assert unsaved is None
        return
    assert "can't be used" in unsaved
    assert outcome.message.endswith(f"; this will not be remembered: {unsaved}")


def test_state_that_can_not_be_kept_any_more_is_said_until_it_can(loaded, tmp_path, monkeypatch):
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    runtime = loaded(table("a"))
    assert runtime.status()["unsaved"] is None
    with monkeypatch.context() as patch:
        patch.setattr(state, "write_atomically", full)
        outcome = runtime.manager.worker_apply("a", "update_params", None, {"size": 2})
        assert "will not be remembered: " in outcome.message
        assert "No space left on device" in outcome.message
        assert "No space left on device" in runtime.status()["unsaved"]
    assert runtime.status()["ready"]
    assert "remembered" not in runtime.manager.worker_apply("a", "update_params", None, {"size": 3}).message
    assert runtime.status()["unsaved"] is None


def test_a_state_folder_that_was_removed_is_said(loaded, tmp_path):
    runtime = loaded(table("a"))
    shutil.rmtree(tmp_path / "state")
    assert re.search(r"the state folder .* was removed", runtime.status()["unsaved"])
    outcome = runtime.manager.worker_apply("a", "update_params", None, {"size": 2})
    assert outcome.success
    assert "was removed" in outcome.message


def test_a_registry_of_its_own_that_is_broken_is_set_aside(loaded, tmp_path):
    folder = tmp_path / "state" / "standalone-8000"
    folder.mkdir(parents=True)
    (folder / "registry.db").write_bytes(b"nonsense " * 500)
    runtime = loaded(table("a"))
    assert (folder / "registry.db.bad").exists()
    assert runtime.status()["cluster"] | {"url": ""} == {
        "url": "",
        "registered": ["WorkerManager@service", "a@llm"],
        "error": None,
    }
    assert [one.key for one in runtime.cluster.registry.instances()] == ["WorkerManager@service", "a@llm"]


def test_a_state_file_of_nonsense_is_set_aside(loaded, tmp_path):
    folder = tmp_path / "state" / "standalone-8000"
    folder.mkdir(parents=True)
    (folder / "models.json").write_text("{nonsense")
    assert states(loaded(table("a"))) == {"a@llm": "ready"}
    assert (folder / "models.bad").read_text() == "{nonsense"


@pytest.mark.parametrize(
    "entry",
    [{"added": True}, {"added": True, "model": "spare"}, {"model": 5, "params": 7}, {"params": {"size": "x"}}],
    ids=str,
)
def test_an_entry_that_makes_no_sense_harms_no_other_model(loaded, tmp_path, entry):
    folder = tmp_path / "state" / "standalone-8000"
    folder.mkdir(parents=True)
    entries = {"nonsense": entry, "x@what": entry, "spare@llm": entry}
    (folder / "models.json").write_text(json.dumps({"models": entries}))
    assert states(loaded(table("a")))["a@llm"] == "ready"


# The end


def ask(runtime: Runtime) -> tuple[Cancel, Callable[[], object]]:
    """Begin an answer that never ends by itself, as a request does; return its cancel, and what waits for its end."""
    cancel, outcome, began = Cancel(), [], threading.Event()
    runtime.requests.add(cancel)

    def read() -> None:
        try:
            for burst in runtime.manager.generate_stream(GenerateRequest("a", prompt="hold"), cancel):
                if burst:
                    began.set()
        except ModelyardError as error:
            outcome.append(error)
        finally:
            runtime.requests.discard(cancel)

    thread = threading.Thread(target=read)
    thread.start()
    assert began.wait(30)

    def end() -> object:
        thread.join(30)
        return outcome[0]

    return cancel, end


def test_a_drain_without_requests_ends_at_once_and_refuses_new_ones(loaded):
    runtime = loaded(table("a"))
    runtime.drain(3600)
    with pytest.raises(Draining):
        runtime.check_open()
    status = runtime.status()
    assert (status["ready"], status["state"], status["reason"]) == (False, "draining", "draining")


def test_a_drain_waits_for_answers_that_end(loaded):
    runtime = loaded(table("a"))
    cancel, end = ask(runtime)
    drained = threading.Event()
    thread = threading.Thread(target=lambda: (runtime.drain(3600), drained.set()))
    thread.start()
    wait_until(lambda: runtime.status()["state"] == "draining", "it drains")
    assert not drained.is_set()
    assert not cancel.is_set()
    cancel.set()
    end()
    assert drained.wait(30)
    thread.join(30)


def test_a_drain_cuts_off_what_takes_too_long_with_the_reason(loaded):
    runtime = loaded(table("a"))
    _, end = ask(runtime)
    runtime.drain(0.05)
    assert runtime.requests == set(), "it waits until those cut off have said so"
    error = end()
    assert isinstance(error, Draining)
    assert "drain_timeout 0.05 s" in str(error)


def test_the_setting_is_the_limit_when_none_is_given(loaded):
    runtime = loaded(table("a"), drain_timeout=0.05)
    _, end = ask(runtime)
    runtime.drain()
    assert "drain_timeout 0.05 s" in str(end())


def test_stopping_twice_stops_once_and_leaves_no_thread(loaded):
    before = set(threading.enumerate())
    runtime = loaded(table("a"))
    runtime.stop()
    runtime.stop()
    assert [engine.stops for engine in Steered.made] == [1]
    assert set(threading.enumerate()) <= before


def test_stopping_what_was_never_started_does_nothing(make):
    runtime = make(table("a"))
    runtime.stop()
    runtime.start()
    assert not runtime.wait_loaded(0)
    assert Steered.made == []


def test_each_step_of_the_stop_is_guarded(loaded, monkeypatch, caplog):
    runtime = loaded(table("a"))
    stop = runtime.local.models.stop

    def fail(*, timeout: float) -> None:
        stop(timeout=timeout)
        raise RuntimeError("odd")

    monkeypatch.setattr(runtime.local.models, "stop", fail)
    runtime.stop()
    assert "stop: models" in caplog.text
    successor = loaded(table("a"))
    assert states(successor) == {"a@llm": "ready"}
