"""``modelyard instances``, and what is done on one of several hosts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import steered
from commands import modelyard
from in_process import service, url_of
from modelyard.cluster.registry.base import MANAGER_KEY, Instance
from modelyard.server.runtime import Runtime
from running import wait_until
from steered import Steered

SPARE = [{"name": "spare", "worker_class": steered.PATH, "start": False}]


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Runtime]:
    with service(tmp_path / "c", role="controller", registry="memory:") as made:
        registry = made.cluster.registry
        registry.beat([Instance("a@llm", "http://10.0.0.1:8001/api", load="slots=8;free=3;waiting=0")])
        registry.beat([Instance("a@llm", "http://10.0.0.2:8001/api", enabled=False), Instance("b@llm", "http://h/api")])
        registry.deregister([Instance("b@llm", "http://h/api")])
        yield made


def test_what_is_registered_is_listed(controller):
    ran = modelyard("instances", "--url", url_of(controller))
    assert ran.status == 0, ran.err
    heads, first, second, third = ran.out.splitlines()
    assert heads.split("  ")[0] == "KEY"
    assert first.startswith("a@llm  http://10.0.0.1:8001/api  yes") and "slots=8;free=3;waiting=0" in first
    assert second.endswith("disabled")
    assert third.startswith("b@llm  http://h/api              no")


@pytest.mark.parametrize(
    ("words", "keys"), [(["b"], ["b@llm"]), (["b@llm"], ["b@llm"]), (["--healthy"], ["a@llm"] * 2)]
)
def test_it_may_be_of_one_name_or_of_the_healthy_only(controller, words, keys):
    ran = modelyard("instances", *words, "--json", "--url", url_of(controller))
    assert [row["key"] for row in ran.json] == keys


def test_where_there_is_none_it_says_so(controller):
    assert modelyard("instances", "nope", "--url", url_of(controller)).out == "nothing is registered as nope\n"


def test_a_gateway_lists_the_instances_that_it_sees(controller, tmp_path):
    with service(tmp_path / "g", role="gateway", registry=url_of(controller)) as gateway:
        wait_until(lambda: gateway.cluster.view.complete, "the gateway has read its registry")
        ran = modelyard("instances", "--healthy", "--json", "--url", url_of(gateway))
        rows = requests.get(f"{url_of(controller)}/controller/instances", {"healthy": "true"}, timeout=10).json()
        assert requests.post(f"{url_of(gateway)}/controller/instances", json=rows, timeout=10).status_code == 405
    assert ran.json == rows
    assert len(rows) == 2


def test_a_worker_has_none(tmp_path):
    with service(tmp_path, role="worker") as worker:
        ran = modelyard("instances", "--url", url_of(worker))
    assert ran.status == 1
    assert "a controller, a standalone and a gateway have one, a worker not: is --url right?" in ran.err


def test_a_model_is_started_and_forgotten_on_the_host_that_is_named(controller, tmp_path):
    Steered.reset()
    registry = url_of(controller)
    with (
        service(tmp_path / "one", SPARE, role="worker", registry=registry) as one,
        service(tmp_path / "two", SPARE, role="worker", registry=registry) as two,
        service(tmp_path / "g", role="gateway", registry=registry) as gateway,
    ):
        wait_until(lambda: len(gateway.cluster.view.instances(MANAGER_KEY)) == 2, "both hosts are in view")
        at = ("--at", f"127.0.0.1:{two.settings.port}", "--url", url_of(gateway))
        ran = modelyard("models", "start", "spare", "--url", url_of(gateway))
        assert (ran.status, "several hosts" in ran.err) == (1, True)
        ran = modelyard("models", "start", "spare", "size=3", *at)
        assert ran.status == 0, ran.err
        assert [r.local.models.has("spare", None) for r in (one, two)] == [False, True]
        wait_until(lambda: "spare" in modelyard("models", "list", "--url", url_of(gateway)).out, "it is in view")
        ran = modelyard("models", "stop", "spare", "--forget", *at)
        assert ran.status == 0, ran.err
        assert not two.local.models.has("spare", None)


@pytest.mark.parametrize("at", ["here", "host:", ":80", "host:x"])
def test_a_host_that_is_none_is_a_misuse(at):
    ran = modelyard("models", "start", "spare", "--at", at)
    assert ran.status == 2
    assert "HOST:PORT" in ran.err


def test_a_stop_of_all_instances_takes_no_host():
    ran = modelyard("models", "stop", "spare", "--at", "h:1")
    assert ran.status == 2
    assert "--forget" in ran.err
