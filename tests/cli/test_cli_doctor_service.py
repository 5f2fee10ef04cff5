"""``modelyard doctor``: the checks of a running service, and a real proxy that buffers."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import pytest
from in_process import SCRIPTED, service, url_of
from modelyard.access.tokens import digest_of
from modelyard.cli import service_checks
from modelyard.cli.findings import Finding
from modelyard.cli.readings import Reading
from modelyard.cli.service_checks import Arrival, Probe, Visit
from modelyard.client.client import Client
from modelyard.cluster.registry.base import Instance
from modelyard.engines.scripted import Answers
from modelyard.errors import ConfigError, EngineError, Forbidden
from modelyard.server.runtime import Runtime
from modelyard.sessions.session import Session
from modelyard.types import JSONObject
from modelyard.version import __version__
from nginx import Nginx
from running import Services
from scripted_peer import Peer


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    tables = [{"name": "echo", "delay": 0.01}]
    with service(tmp_path_factory.mktemp("service"), tables, registry="memory:") as runtime:
        yield runtime


@pytest.fixture
def visit(running: Runtime) -> Iterator[Visit]:
    with Client(url_of(running), token="", retries=0) as client:
        yield Visit.to(client)


def seen(visit: Visit, *, probes: dict[str, Probe] | None = None, status: JSONObject | None = None, **values) -> Visit:
    """Return the visit of a service that has said otherwise."""
    reading: Reading = replace(visit.reading, status={**visit.reading.status, **(status or {})}, **values)
    return replace(visit, reading=reading, probes=visit.probes if probes is None else probes)


def levels(findings: Iterable[Finding]) -> list[str]:
    made = [*findings]
    assert all((it.advice is None) == (it.level == "ok") for it in made)
    return [it.level for it in made]


def test_all_is_well_with_a_service_that_is(visit: Visit):
    for check in (
        service_checks.check_service,
        service_checks.check_token,
        service_checks.check_registry_of_service,
        service_checks.check_versions,
        service_checks.check_clocks,
        service_checks.check_stream,
    ):
        assert levels(check(visit)) == ["ok"], check


def test_a_service_that_is_not_ready_and_a_model_that_failed_are_named(visit: Visit):
    models = [{"model": "a@llm", "state": "failed", "reason": "no memory"}]
    status = {"ready": False, "state": "failed", "reason": "no model is ready", "models": models, "unsaved": "full"}
    findings = [*service_checks.check_service(seen(visit, status=status))]
    assert levels(findings) == ["warning", "failure", "warning"]
    assert ["no model is ready" in findings[0].result, findings[1].result] == [True, "model a@llm: no memory"]


def test_a_token_that_is_refused_is_a_failure(tmp_path: Path):
    tokens = [f"other metrics {digest_of('modelyard_of_another').hex()}"]
    with (
        service(tmp_path, [{"name": "echo"}], tokens=tokens) as closed,
        Client(url_of(closed), token="wrong", retries=0) as client,
    ):
        visit = Visit.to(client)
        (finding,) = service_checks.check_token(visit)
        (stream,) = service_checks.check_stream(visit)
    assert (finding.level, "MODELYARD_TOKEN" in str(finding.advice)) == ("failure", True)
    assert (stream.level, "infer" in str(stream.advice)) == ("failure", True)


def test_a_model_that_fails_is_not_taken_for_a_proxy_that_cuts_it_off(tmp_path: Path):
    answers = Answers()
    answers.fail(EngineError("no memory"))
    tables = [{"name": "m", "worker_class": SCRIPTED, "script": answers.key}]
    with service(tmp_path, tables) as made, Client(url_of(made), retries=0) as client:
        (finding,) = service_checks.check_stream(Visit.to(client))
    assert (finding.level, finding.result) == ("failure", "m does not answer: no memory")
    assert "nginx" not in str(finding.advice)


def test_metrics_that_are_not_shown_are_a_warning(visit: Visit):
    refused = seen(visit, error=Forbidden("no"), labels={})
    assert levels(service_checks.check_token(refused)) == ["warning"]
    off = seen(visit, error=ConfigError("no /metrics"), labels={})
    assert levels(service_checks.check_token(off)) == ["ok"]


def test_another_version_is_a_warning(visit: Visit):
    probes = {**visit.probes, "http://a/api": Probe(None, version="0.0.1"), "http://dbgpt/api": Probe(None)}
    (finding,) = service_checks.check_versions(seen(visit, probes=probes))
    assert (finding.level, finding.result) == ("warning", f"{__version__} here, 0.0.1 at http://a/api")


def test_addresses_of_the_registry_are_sent_no_token(running: Runtime):
    assert running.cluster is not None
    with Peer({}) as (url, requests):
        instances = [Instance("far@llm", url)]
        running.cluster.registry.beat(instances)
        try:
            with Client(url_of(running), token="modelyard_secret", retries=0) as client:
                Visit.to(client)
        finally:
            running.cluster.registry.deregister(instances, forget=True)
    assert requests
    assert not any("modelyard_secret" in str(headers) for headers in requests)


def test_a_clock_that_is_off_is_a_warning(visit: Visit):
    probes = {"http://a/api": Probe(None, 0.4), "http://b/api": Probe(None, -90.0), "http://c/api": Probe("dead", None)}
    (finding,) = service_checks.check_clocks(seen(visit, probes=probes))
    assert (finding.level, finding.result) == ("warning", "http://b/api is 90 s behind this machine")


@pytest.mark.parametrize(("ahead", "least", "most"), [(0, -0.1, 0.1), (-60, -61, -58), (60, 58, 61)])
def test_the_clock_of_an_address_is_that_of_its_date(ahead: int, least: float, most: float):
    with Peer({"Date": formatdate(time.time() + ahead, usegmt=True)}) as (url, _):
        probe = service_checks._probe(Session(), url)
    assert probe.error is None and probe.clock is not None and probe.version is None
    assert least <= probe.clock <= most


def test_a_registry_that_is_not_reached_and_silent_instances_are_named(running: Runtime, visit: Visit):
    broken = seen(visit, status={"cluster": {"error": "refused"}})
    assert levels(service_checks.check_registry_of_service(broken)) == ["failure"]
    row = {"key": "a@llm", "url": "http://h/api", "healthy": False, "last_heartbeat": "2026-01-01T00:00:00Z"}
    (finding,) = service_checks.check_registry_of_service(seen(visit, instances=[row, {**row, "enabled": False}]))
    assert (finding.level, "a@llm at http://h/api" in finding.result) == ("warning", True)


def test_a_registered_address_that_does_not_answer_is_a_failure(running: Runtime):
    assert running.cluster is not None
    wrong = [Instance("far@llm", "http://127.0.0.1:1/api")]
    running.cluster.registry.beat(wrong)
    try:
        with Client(url_of(running), token="", retries=0) as client:
            (finding,) = service_checks.check_addresses(Visit.to(client))
    finally:
        running.cluster.registry.deregister(wrong, forget=True)
    assert (finding.level, "http://127.0.0.1:1/api (rows in the registry: 1)" in finding.result) == ("failure", True)
    assert "advertise" in str(finding.advice)


def test_instances_that_the_service_does_not_reach_are_a_failure(visit: Visit):
    sums = {"modelyard_instances failing": {("far", "llm"): 2.0}}
    (finding,) = service_checks.check_addresses(seen(visit, sums=sums))
    assert (finding.level, "instances of far@llm that the service does not reach: 2" in finding.result) == (
        "failure",
        True,
    )


# A stream

STEADY = [0.1 * step for step in range(1, 11)]


@pytest.mark.parametrize(
    ("arrival", "is_held"),
    [
        (Arrival(STEADY, 1.0), False),
        (Arrival([0.99] * 10, 1.0), True),
        (Arrival([0.5] * 20 + [1.0] * 20, 1.0), True),
        (Arrival([0.01] * 10, 0.02), False),
        (Arrival([], 1.0), False),
        (Arrival([2.0, 2.1, 2.4], 2.4, first_at_engine=2.0), False),
        (Arrival([2.39, 2.4, 2.4], 2.4, first_at_engine=2.0), True),
        (Arrival([2.0, 2.01], 2.01, first_at_engine=2.0), False),
    ],
)
def test_pieces_that_come_at_the_end_were_held(arrival: Arrival, is_held: bool):
    assert arrival.is_held == is_held


def test_a_model_that_is_slow_to_begin_is_no_failure_without_the_times_of_its_engine():
    assert service_checks._judged(Arrival([0.99] * 9, 1.0), "m").level == "warning"
    assert service_checks._judged(Arrival([0.99] * 9, 1.0, first_at_engine=0.1), "m").level == "failure"


def buffering(port: int, upstreams: Sequence[int]) -> str:
    """Return the configuration of a proxy that passes an answer on when a buffer is full, or at its end."""
    (upstream,) = upstreams
    held = "proxy_http_version 1.0; proxy_ignore_headers X-Accel-Buffering;"
    return f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://127.0.0.1:{upstream}; {held} }} }}"


def test_a_real_nginx_that_buffers_is_seen(run: Services):
    upstream = run.start('[[models]]\nname = "echo"\ndelay = 0.01\n')
    for options, level in ({}, "ok"), ({"configured": buffering}, "warning"):
        proxy = Nginx(upstream.port, **options)
        try:
            proxy.start()
            with Client(f"http://127.0.0.1:{proxy.port}/api", token="", retries=0) as client:
                (finding,) = service_checks.check_stream(Visit.to(client))
        finally:
            proxy.close()
        assert finding.level == level, finding
