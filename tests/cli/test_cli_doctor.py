"""``modelyard doctor``: each check of a configuration and of this machine, and the command."""

from __future__ import annotations

import math
import stat
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from commands import modelyard
from in_process import service, url_of
from modelyard.cli import config_checks
from modelyard.cli.examine import Examination, examine
from modelyard.cli.findings import Finding, Level
from modelyard.cli.machine import Machine
from modelyard.cluster.registry import open_registry
from modelyard.cluster.registry.base import MANAGER_KEY, Instance
from modelyard.settings.sizes import size
from tiny_gguf import make

ROOMY = Machine({}, 20_000, 1e12, lambda count: count)


@pytest.fixture(autouse=True)
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def report(toml: str = '[[models]]\nname = "echo"\n', **options: object) -> Examination:
    Path("c.toml").write_text(toml)
    given = {"config": "c.toml", "state_dir": "state", **{name: str(value) for name, value in options.items()}}
    return examine(given, (), {})


def only(findings: Iterable[Finding]) -> Finding:
    (finding,) = findings
    assert (finding.advice is None) == (finding.level is Level.OK)
    return finding


def test_faults_and_missing_weights_are_failures_with_what_to_do():
    findings = [*config_checks.check_configuration(report('[[models]]\nname = "smollm2-135m"\n', port=0))]
    assert [(it.check, it.level) for it in findings] == [("configuration", "failure"), ("weights", "failure")]
    assert "0 is less than 1" in findings[0].result
    assert "modelyard pull smollm2-135m" in findings[1].result
    assert only(config_checks.check_configuration(report())).result == "standalone with echo@llm"


@pytest.mark.parametrize(
    ("options", "result"),
    [
        ({"role": "controller"}, "controller with a registry, and no models"),
        ({"role": "gateway", "registry": "http://10.0.0.7:8000/api"}, "gateway with the models of its registry"),
        ({"role": "worker", "models": ""}, "worker with no model"),
    ],
)
def test_a_role_without_models_is_shown_with_what_it_has(options: dict[str, str], result: str):
    assert only(config_checks.check_configuration(report("", **options))).result == result


def test_of_a_role_that_does_not_fit_no_models_are_looked_for():
    (finding,) = config_checks.check_configuration(report("", role="gateway"))
    assert "a gateway needs --registry" in finding.result


def test_who_reaches_an_address_is_said(at: Path):
    assert only(config_checks.check_access(report())).result == (
        "only programs of this machine reach 127.0.0.1; they need no key"
    )
    assert only(config_checks.check_access(report(tokens_file="tokens"))).result.endswith("a trusted address")
    gateway = report("", role="gateway", registry="http://10.0.0.7:8000/api")
    assert only(config_checks.check_access(gateway)).result.startswith("only programs of this machine reach 127.0.0.1")
    store = only(config_checks.check_access(report(host="0.0.0.0", key_store="ftp://keys")))
    assert store.result.startswith("the store of the keys can't be opened")


def test_the_advice_on_an_open_address_is_what_to_do():
    finding = only(config_checks.check_access(report(host="0.0.0.0")))
    assert finding.result == "0.0.0.0 can be reached from other machines, and no token is required"
    assert str(finding.advice).startswith("make tokens (modelyard token new --file FILE)")


def test_a_set_of_a_model_that_is_not_started_is_a_warning():
    Path("c.toml").write_text('[[models]]\nname = "echo"\n')
    made = examine({"config": "c.toml"}, ["echo-embed.delay=1"], {})
    warning, _ = config_checks.check_configuration(made)
    assert (warning.level, "echo-embed" in warning.result) == (Level.WARNING, True)


@pytest.mark.parametrize(
    ("options", "level"),
    [
        ({}, "ok"),
        ({"host": "0.0.0.0"}, "failure"),
        ({"host": "0.0.0.0", "insecure": "yes"}, "warning"),
        ({"host": "0.0.0.0", "trusted_networks": "10.0.0.0/8=infer"}, "ok"),
    ],
)
def test_a_service_that_everybody_may_use_is_named(options: dict[str, str], level: str):
    assert only(config_checks.check_access(report(**options))).level == level


@pytest.mark.parametrize(("slots", "level"), [(8, "ok"), (200, "warning")])
def test_threads_leave_room_for_a_line(slots: int, level: str):
    toml = f'[[models]]\nname = "echo"\nlimit_model_concurrency = {slots}\n'
    finding = only(config_checks.check_threads(report(toml)))
    assert (finding.level, f"{slots} slots of models, 248 threads" in finding.result) == (level, True)
    assert level == "ok" or "raise threads, to 408" in str(finding.advice)


def test_fewer_threads_than_slots_are_refused_by_the_configuration_itself():
    made = report('[[models]]\nname = "echo"\nlimit_model_concurrency = 300\n')
    assert any("raise --threads" in it.result for it in config_checks.check_configuration(made))


def test_a_limit_of_tasks_below_the_threads_is_a_failure():
    assert only(config_checks.check_tasks(report(), ROOMY)).level == "ok"
    finding = only(config_checks.check_tasks(report(), replace(ROOMY, startable=lambda count: 100)))
    assert (finding.level, finding.result) == ("failure", "only 100 of 256 threads can be started")


@pytest.mark.parametrize(("files", "level"), [(896, "ok"), (-1, "ok"), (895, "warning")])
def test_a_limit_of_open_files_below_what_the_threads_need_is_a_warning(files: int, level: str):
    assert only(config_checks.check_files(report(), replace(ROOMY, files=files))).level == level


def test_folders_that_can_not_be_used_are_failures(at: Path):
    assert only(config_checks.check_folders(report())).level == "ok"
    findings = [*config_checks.check_folders(report(token_file="absent", log_file="/absent/log", models_dirs="absent"))]
    assert [it.level for it in findings] == ["failure", "failure", "warning"]
    assert [it.result.partition(" ")[0] for it in findings] == ["token_file", "log_file", "models_dirs:"]
    (at / "state").touch()
    finding = only(config_checks.check_folders(report()))
    assert "can't be written" in finding.result


def test_memory_that_is_less_than_the_models_take_is_a_warning(at: Path):
    (at / "models").mkdir()
    make(at / "models" / "mine.gguf")
    made = report('[[models]]\nname = "mine"\nmodel_path = "mine.gguf"\n', models_dirs="models")
    need = made.models[0].memory
    assert need > (at / "models" / "mine.gguf").stat().st_size, "the context is part of it"
    for free, level in (2.0 * need, "ok"), (1.0 * need, "warning"):
        assert only(config_checks.check_memory(made, replace(ROOMY, memory=free))).level == level
    assert [*config_checks.check_memory(made, replace(ROOMY, memory=math.inf))] == [], "the system does not tell"
    twice = "".join(f'[[models]]\nname = "{name}"\nmodel_path = "mine.gguf"\n' for name in ("mine", "yours"))
    shared = report(f"[service]\nmemory_budget = {need}\n{twice}", models_dirs="models")
    finding = only(config_checks.check_memory(shared, replace(ROOMY, memory=2.0 * need)))
    assert (finding.level, "memory_budget is" in finding.result) == ("ok", True)
    assert [*config_checks.check_memory(report(), ROOMY)] == [], "an engine without weights"


def test_a_model_that_memory_budget_has_no_room_for_is_a_failure(at: Path):
    (at / "models").mkdir()
    make(at / "models" / "mine.gguf")
    table = '[[models]]\nname = "{}"\nmodel_path = "mine.gguf"\n{}\n'
    models = table.format("one", "pinned = true") + table.format("two", "")
    need = report(models, models_dirs="models").models[0].memory
    failures: dict[int, list[Level]] = {2 * need: [], 2 * need - 1: ["failure"], need - 1: ["failure", "failure"]}
    for budget, levels in failures.items():
        made = report(f"[service]\nmemory_budget = {budget}\n{models}", models_dirs="models")
        findings = [*config_checks.check_memory(made, ROOMY)]
        assert [finding.level for finding in findings] == [*levels, "ok"]
    assert f"model one takes {size(need)}; memory_budget has {size(need - 1)} for it" in findings[0].result


def test_an_engine_without_its_library_is_a_failure_with_the_extra(monkeypatch: pytest.MonkeyPatch):
    assert only(config_checks.check_libraries(report())).level == "ok"
    monkeypatch.setitem(config_checks.LIBRARIES, "echo", ("llama", ("no_such_library",)))
    finding = only(config_checks.check_libraries(report()))
    assert (finding.result, finding.advice) == ("model echo needs no_such_library", "pip install 'modelyard[llama]'")


@pytest.mark.parametrize(
    ("environ", "level"),
    [
        ({}, "ok"),
        ({"NO_PROXY": "*"}, "ok"),
        ({"HTTP_PROXY": "http://p:3128"}, "warning"),
        ({"https_proxy": "http://p:3128", "no_proxy": "localhost"}, "warning"),
        ({"HTTP_PROXY": "http://p:3128", "NO_PROXY": "localhost,10.0.0.0/8"}, "ok"),
    ],
)
def test_proxies_that_catch_calls_of_the_cluster_are_named(environ: dict[str, str], level: str):
    made = report(role="worker", registry="http://10.0.0.7:8000/api")
    finding = only(config_checks.check_proxies(made, replace(ROOMY, environ=environ)))
    assert finding.level == level
    assert level == "ok" or str(finding.advice).endswith("10.0.0.7")


@pytest.mark.parametrize(
    ("options", "level"),
    [
        ({}, "failure"),
        ({"advertise": "http://10.0.0.9:8001"}, "ok"),
        ({"advertise": "10.0.0.9"}, "failure"),
        ({"host": "10.0.0.9"}, "ok"),
        ({"registry": "http://127.0.0.1:8000/api"}, "ok"),
    ],
)
def test_an_address_that_the_registry_would_take_for_itself_is_a_failure(options: dict[str, str], level: str):
    made = report(**{"role": "worker", "registry": "http://10.0.0.7:8000/api", **options})
    assert only(config_checks.check_address(made)).level == level


def test_a_service_that_registers_nothing_has_no_address_to_check():
    assert [*config_checks.check_address(report(role="worker"))] == []
    assert [*config_checks.check_address(report(role="gateway", registry="http://127.0.0.1:8000/api"))] == []
    assert [*config_checks.check_registry(report())] == []


def test_a_registry_that_does_not_answer_is_a_failure(at: Path):
    made = report(role="worker", registry="http://127.0.0.1:1/api")
    assert only(config_checks.check_registry(made)).level == "failure"
    made = report(role="worker", registry=f"sqlite:///{at}/registry.db")
    assert only(config_checks.check_registry(made)).result == "its file is made when the service starts"
    assert not (at / "registry.db").exists(), "it only looks"
    with closing(open_registry(f"sqlite:///{at}/registry.db")) as registry:
        registry.beat([Instance("echo@llm", "http://h/api"), Instance(MANAGER_KEY, "http://h/api")])
    assert only(config_checks.check_registry(made)).result == "answers; instances of models: 1, healthy: 1"


# The command


def test_without_a_service_the_configuration_is_checked(at: Path):
    report()
    ran = modelyard("doctor", "--config", "c.toml", "--state-dir", "state", "--port", "1")
    assert ran.status in (0, 3), ran.out
    assert ran.table[0]["CHECK"] == "configuration"
    assert "only the configuration was checked" in ran.out
    assert not (at / "state").exists(), "it only looks"


@pytest.mark.parametrize(
    ("words", "status"),
    [(["--url", "http://127.0.0.1:1/api"], 1), (["--host", "0.0.0.0", "--insecure"], 3), (["--url", "nonsense"], 1)],
)
def test_the_status_is_that_of_the_worst_finding(words: list[str], status: int):
    report()
    ran = modelyard("doctor", "--config", "c.toml", "--state-dir", "state", "--port", "1", *words, "--json")
    assert ran.status == status, ran.out
    assert ran.json["worst"] == {1: "failure", 3: "warning"}[status]


def test_a_running_service_is_checked_with_its_own_configuration(at: Path):
    with service(at / "s", [{"name": "echo", "delay": 0.01}], registry="memory:") as running:
        Path("c.toml").write_text('[[models]]\nname = "echo"\n')
        ran = modelyard("doctor", "--config", "c.toml", "--state-dir", "state", "--url", url_of(running), "--json")
    findings = {finding["check"]: finding for finding in ran.json["findings"]}
    service_checks = {"service", "token", "versions", "its registry", "clocks", "stream"}
    assert {findings[name]["level"] for name in service_checks} == {"ok"}, ran.out
    assert findings["stream"]["result"].endswith("nothing buffers")


def test_private_values_are_never_shown(at: Path):
    (at / "token").write_text("hunter2hunter2")
    (at / "token").chmod(stat.S_IRUSR)
    report(role="worker")
    registry = "http://user:hunter2@127.0.0.1:1/api"
    ran = modelyard("doctor", "worker", "--registry", registry, "--token-file", "token", "-m", "echo")
    assert "hunter2" not in ran.out + ran.err
