"""DB-GPT's ModelRegistryClient against our controller."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from both import Both, TheirClient, TheirError
from running import Service, wait_until

TIMEOUT = 2.0
PLACE = {"host": "127.0.0.1", "port": 18001}


@pytest.fixture(scope="module")
def controller(sides: Both) -> Service:
    return sides.controller(heartbeat_timeout=TIMEOUT)


@pytest.fixture(scope="module")
def client(sides: Both, controller: Service) -> TheirClient:
    return sides.client(controller)


@pytest.fixture
def key(client: TheirClient, request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"{request.node.name.partition('[')[0]}@llm"
    yield name
    for row in client.get_all_instances(model_name=name):
        client.deregister_instance(model_name=name, host=row["host"], port=row["port"], remove_from_registry=True)


def only(client: TheirClient, key: str) -> dict[str, Any]:
    (found,) = client.get_all_instances(model_name=key)
    return found


def check_what_is_registered_is_found_healthy_and_selected(client, key):
    assert client.register_instance(model_name=key, weight=2.0, prompt_template="t", **PLACE) is True
    row = only(client, key)
    assert {name: row[name] for name in ("model_name", "host", "port", "weight", "prompt_template")} == {
        **{"model_name": key, "weight": 2.0, "prompt_template": "t"},
        **PLACE,
    }
    assert (row["healthy"], row["enabled"], row["check_healthy"]) == (True, True, True)
    assert client.select_one_health_instance(model_name=key)["port"] == PLACE["port"]
    assert client.sync_get_all_instances(model_name=key) == [row]
    assert row in client.get_all_model_instances()


def check_what_is_deregistered_stays_and_is_not_healthy(client, key):
    client.register_instance(model_name=key, **PLACE)
    assert client.deregister_instance(model_name=key, **PLACE) is True
    assert only(client, key)["healthy"] is False
    assert client.get_all_instances(model_name=key, healthy_only=True) == []
    assert client.select_one_health_instance(model_name=key) is None
    client.register_instance(model_name=key, **PLACE)
    assert only(client, key)["healthy"] is True


def check_what_is_removed_from_the_registry_is_gone(client, key):
    client.register_instance(model_name=key, **PLACE)
    assert client.deregister_instance(model_name=key, remove_from_registry=True, **PLACE) is True
    assert client.get_all_instances(model_name=key) == []


def check_a_heartbeat_registers_what_is_unknown(client, key):
    assert client.send_heartbeat(model_name=key, **PLACE) is True
    assert only(client, key)["healthy"] is True


def check_heartbeats_keep_an_instance_healthy_and_their_absence_does_not(client, key):
    client.register_instance(model_name=key, **PLACE)
    end = time.monotonic() + 2 * TIMEOUT
    while time.monotonic() < end:
        client.send_heartbeat(model_name=key, **PLACE)
        assert only(client, key)["healthy"] is True
        time.sleep(0.1)
    wait_until(lambda: not only(client, key)["healthy"], "no heartbeat: not healthy", TIMEOUT + 5)
    assert client.select_one_health_instance(model_name=key) is None
    client.send_heartbeat(model_name=key, **PLACE)
    assert only(client, key)["healthy"] is True


def check_what_wants_no_heartbeats_stays_healthy_without(client, key):
    client.register_instance(model_name=key, check_healthy=False, **PLACE)
    other = f"a-{key}"
    client.register_instance(model_name=other, **PLACE)
    wait_until(lambda: not only(client, other)["healthy"], "the other one is late", TIMEOUT + 5)
    assert only(client, key)["healthy"] is True
    client.deregister_instance(model_name=other, remove_from_registry=True, **PLACE)


def check_what_is_disabled_is_not_selected(client, key):
    client.register_instance(model_name=key, enabled=False, **PLACE)
    assert len(client.get_all_instances(model_name=key, healthy_only=True)) == 1
    assert client.select_one_health_instance(model_name=key) is None


def check_instances_of_one_key_are_told_apart_by_host_and_port(client, key):
    client.register_instance(model_name=key, **PLACE)
    client.register_instance(model_name=key, host="localhost", port=18001)
    client.register_instance(model_name=key, host="127.0.0.1", port=18002)
    client.register_instance(model_name=key, **PLACE)
    found = {(row["host"], row["port"]) for row in client.get_all_instances(model_name=key)}
    assert found == {("127.0.0.1", 18001), ("localhost", 18001), ("127.0.0.1", 18002)}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"model_name": "no-type", **PLACE}, "must be name@type"),
        ({"model_name": "m@llm", "host": "", "port": 1}, "host"),
        ({"model_name": "m@llm", "host": "127.0.0.1", "port": 70000}, "port"),
    ],
)
def check_a_refusal_says_what_is_wrong(client, wrong, says):
    with pytest.raises(TheirError, match="error code: 422") as raised:
        client.register_instance(**wrong)
    assert says in str(raised.value)
