"""The controller over Flask's test client: DB-GPT's calls to the letter, ours whole, one table beneath both."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from clocks import Clock
from flask import Flask
from flask.testing import FlaskClient
from modelyard.access.tokens import WORKER, Token, digest_of
from modelyard.blueprints.controller import controller_blueprint
from modelyard.cluster.registry.memory import MemoryRegistry
from modelyard.cluster.registry.row_json import MAX_INSTANCES
from modelyard.errors import RegistryUnavailable
from modelyard.settings.settings import Settings

SECRET = "modelyard_for-this-test"
MODEL_INSTANCE_KEYS = [
    *("model_name", "host", "port", "weight", "check_healthy", "healthy", "enabled"),
    *("prompt_template", "last_heartbeat"),
]
ROW_KEYS = {
    *("key", "url", "weight", "enabled", "check_healthy", "capabilities", "load", "prompt_template"),
    *("generation", "last_heartbeat", "healthy"),
}
URL = "http://10.0.0.7:18100/api"
TIMEOUT = 30.0


@pytest.fixture
def clock() -> Clock:
    return Clock(1_800_000_000.25)


@pytest.fixture
def registry(clock) -> MemoryRegistry:
    return MemoryRegistry(TIMEOUT, clock=clock)


def client_of(registry: Any, **options: Any) -> FlaskClient:
    settings = Settings(role="controller", **options)
    app = Flask("controller")
    app.register_blueprint(controller_blueprint(lambda: registry, settings, "/api"))
    return app.test_client()


@pytest.fixture
def client(registry) -> Iterator[FlaskClient]:
    """A client whose token lets it register any host."""
    token = Token("worker", frozenset({WORKER}), digest_of(SECRET))
    made = client_of(registry, tokens=[token.line], max_body_bytes=4 * 1024 * 1024)
    made.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {SECRET}"
    yield made


def model(name: str = "echo@llm", **fields: Any) -> dict[str, Any]:
    """Return what DB-GPT 0.8 sends."""
    return {
        "model_name": name,
        "host": "10.0.0.7",
        "port": 18100,
        "weight": 1.0,
        "check_healthy": True,
        "healthy": False,
        "enabled": True,
        "prompt_template": None,
        "last_heartbeat": None,
        "remove_from_registry": False,
        **fields,
    }


def instance(**fields: Any) -> dict[str, Any]:
    return {"key": "echo@llm", "url": URL, **fields}


def send(client: FlaskClient, method: str, call: str, body: Any = None) -> Any:
    """Send a call that has to succeed; return its answer."""
    response = client.open(f"/api/controller/{call}", method=method, json=body)
    assert response.status_code == 200, response.data
    assert response.content_type == "application/json"
    return response.json


def refused(client: FlaskClient, method: str, call: str, body: Any = None, status: int = 422) -> list[str]:
    """Send a call that has to be refused; return the fields that the refusal names."""
    response = client.open(f"/api/controller/{call}", method=method, json=body)
    assert response.status_code == status, response.data
    assert response.content_type == "application/problem+json"
    assert response.json["detail"]
    return [error["field"] for error in response.json.get("errors", [])]


def models(client: FlaskClient, query: str = "") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = send(client, "GET", f"models{query}")
    return found


# DB-GPT's calls


def test_a_registered_model_is_listed_with_the_nine_keys(client, clock):
    assert send(client, "POST", "models", model(prompt_template="vicuna", weight=2)) is True
    assert models(client) == [
        {
            "model_name": "echo@llm",
            "host": "10.0.0.7",
            "port": 18100,
            "weight": 2,
            "check_healthy": True,
            "healthy": True,
            "enabled": True,
            "prompt_template": "vicuna",
            "last_heartbeat": "2027-01-15T08:00:00.250000",
        }
    ]
    assert list(models(client)[0]) == MODEL_INSTANCE_KEYS


def test_the_heartbeats_time_is_in_utc_and_has_no_zone(client, clock):
    send(client, "POST", "models", model())
    told = datetime.fromisoformat(models(client)[0]["last_heartbeat"])
    assert told.tzinfo is None
    assert told == datetime(2027, 1, 15, 8, 0, 0, 250_000)


def test_a_list_is_of_one_name_or_of_all_and_an_empty_value_means_absent(client):
    for name in ("b@llm", "a@llm", "a@text2vec"):
        send(client, "POST", "models", model(name))
    assert [row["model_name"] for row in models(client)] == ["a@llm", "a@text2vec", "b@llm"]
    assert [row["model_name"] for row in models(client, "?model_name=a%40llm")] == ["a@llm"]
    assert len(models(client, "?model_name=&healthy_only=")) == 3
    assert models(client, "?model_name=nope%40llm&healthy_only=true") == []


def test_a_client_of_0_5_finds_a_reranker_as_an_embedder(client):
    """It knows no other type for one; an embedder of that name has precedence."""
    send(client, "POST", "models", model("m@reranker"))
    (found,) = models(client, "?model_name=m@text2vec&healthy_only=true")
    assert (found["model_name"], found["host"], found["port"]) == ("m@text2vec", "10.0.0.7", 18100)
    assert [row["model_name"] for row in models(client)] == ["m@reranker"]
    assert models(client, "?model_name=m@llm") == []
    send(client, "POST", "models", model("m@text2vec", port=18200))
    assert [row["port"] for row in models(client, "?model_name=m@text2vec")] == [18200]


@pytest.mark.parametrize("value", ["true", "True", "1"])
def test_healthy_only_leaves_out_what_has_not_beaten(client, clock, value):
    send(client, "POST", "models", model("old@llm"))
    clock.now += TIMEOUT + 1
    send(client, "POST", "models", model("new@llm"))
    assert [(r["model_name"], r["healthy"]) for r in models(client)] == [("new@llm", True), ("old@llm", False)]
    assert [r["model_name"] for r in models(client, f"?healthy_only={value}")] == ["new@llm"]
    for no in ("false", "False", "0", ""):
        assert len(models(client, f"?healthy_only={no}")) == 2


def test_a_heartbeat_refreshes_and_issues_no_generation(client, clock, registry):
    send(client, "POST", "models", model())
    (before,) = registry.instances()
    clock.now += TIMEOUT + 1
    assert send(client, "POST", "heartbeat", model()) is True
    (after,) = registry.instances()
    assert after.healthy
    assert after.last_heartbeat == clock.now
    assert after.generation == before.generation


def test_a_heartbeat_leaves_what_a_worker_of_ours_has_said(client, registry):
    send(client, "POST", "instances", [instance(capabilities=["delta"], load="slots=8;free=3;waiting=0", weight=3)])
    send(client, "POST", "heartbeat", model())
    (row,) = registry.instances()
    assert (row.capabilities, row.load, row.weight) == (["delta"], "slots=8;free=3;waiting=0", 3)


def test_a_heartbeat_of_an_unknown_instance_registers_it(client, registry):
    assert send(client, "POST", "heartbeat", model(weight=0.5)) is True
    (row,) = registry.instances()
    assert (row.key, row.url, row.weight, row.healthy) == ("echo@llm", URL, 0.5, True)
    assert row.generation


def test_a_registration_of_the_peers_has_the_last_word(client, registry):
    ours = send(client, "POST", "instances", [instance(capabilities=["delta"])])["instances"][0]
    send(client, "POST", "models", model())
    (row,) = registry.instances()
    assert row.generation > ours["generation"]
    assert row.capabilities == []
    again = send(client, "POST", "instances", [instance(generation=ours["generation"])])["instances"][0]
    assert again == {"key": "echo@llm", "url": URL, "generation": row.generation, "superseded": True}


def test_a_deregistered_model_is_unhealthy_until_it_beats_and_stays_listed(client):
    send(client, "POST", "models", model())
    query = "?model_name=echo%40llm&host=10.0.0.7&port=18100"
    rest = "&weight=1.0&check_healthy=True&healthy=False&enabled=True&prompt_template=&last_heartbeat="
    assert send(client, "DELETE", f"models{query}{rest}&remove_from_registry=False") is True
    assert [row["healthy"] for row in models(client)] == [False]
    send(client, "POST", "heartbeat", model())
    assert [row["healthy"] for row in models(client)] == [True]


def test_remove_from_registry_forgets_it(client):
    send(client, "POST", "models", model())
    query = "?model_name=echo%40llm&host=10.0.0.7&port=18100&remove_from_registry=true"
    assert send(client, "DELETE", f"models{query}") is True
    assert models(client) == []


def test_deregistering_what_is_not_there_is_no_error(client):
    assert send(client, "DELETE", "models?model_name=echo%40llm&host=h&port=1") is True


def test_other_fields_of_a_deregistration_may_be_anything(client):
    query = "model_name=echo%40llm&host=h&port=1&weight=heavy&enabled=perhaps&last_heartbeat=yesterday&x=y"
    assert send(client, "DELETE", f"models?{query}") is True


def test_null_means_absent_and_unknown_keys_are_ignored(client, registry):
    nothing = dict.fromkeys(["weight", "check_healthy", "healthy", "enabled", "prompt_template", "last_heartbeat"])
    send(client, "POST", "models", model(**nothing, from_the_future={"x": 1}))
    (row,) = registry.instances()
    assert (row.weight, row.check_healthy, row.enabled, row.prompt_template) == (1.0, True, True, None)


def test_what_a_client_says_of_its_health_means_nothing(client):
    send(client, "POST", "models", model(healthy=False, last_heartbeat="1999-01-01T00:00:00"))
    assert models(client)[0]["healthy"] is True
    assert models(client)[0]["last_heartbeat"] == "2027-01-15T08:00:00.250000"


def test_without_health_checks_a_model_stays_healthy(client, clock):
    send(client, "POST", "models", model(check_healthy=False))
    clock.now += 1000 * TIMEOUT
    assert [row["model_name"] for row in models(client, "?healthy_only=true")] == ["echo@llm"]


def test_a_disabled_model_is_listed_as_disabled(client):
    send(client, "POST", "models", model(enabled=False))
    assert models(client)[0]["enabled"] is False


@pytest.mark.parametrize(("host", "url"), [("::1", "http://[::1]:18100/api"), ("Node_1", "http://Node_1:18100/api")])
def test_a_host_comes_back_as_it_was_given(client, registry, host, url):
    send(client, "POST", "models", model("echo@llm", host=host))
    assert registry.instances()[0].url == url
    assert models(client)[0]["host"] == host


def test_what_cannot_be_said_as_host_and_port_is_left_out_of_the_peers_list(client):
    urls = [
        "http://10.0.0.7:18100/api",
        "https://10.0.0.7:18100/api",
        "http://10.0.0.7:18101/ml/api",
        "http://10.0.0.7:18102",
        "http+unix://%2Frun%2Fworker.sock/api",
        "http://gateway/api",
    ]
    client.environ_base["REMOTE_ADDR"] = "127.0.0.1"
    send(client, "POST", "instances", [instance(url=url) for url in urls])
    assert [(r["host"], r["port"]) for r in models(client)] == [("10.0.0.7", 18100), ("gateway", 80)]
    assert len(send(client, "GET", "instances")) == len(urls)


WRONG = {
    "model_name": ["", "echo", "@llm", "echo@", "a b", "echo@llm ", "x\n@llm", "x" * 600 + "@llm", 5, ["echo@llm"]],
    "host": ["", "a b", "u:p@h", "h/path", "h?x", "ä", "[::1", "1:2", "-h", "h" * 300, 5],
    "port": [0, 65536, -1, 1.5, "x", True, [18100]],
    "weight": [0, -1, 1e7, "1", True],
    "enabled": [0, "true", []],
    "check_healthy": [1, "no"],
    "prompt_template": [5, "x" * 9000, "a\0b"],
}


@pytest.mark.parametrize("call", ["models", "heartbeat"])
@pytest.mark.parametrize("field", WRONG)
def test_a_field_that_does_not_fit_is_refused_by_name(client, registry, call, field):
    for value in WRONG[field]:
        assert refused(client, "POST", call, model(**{field: value})) == [field], value
    assert registry.instances() == []


def test_weight_is_never_infinite_or_no_number(client):
    for text in ("Infinity", "NaN", "1e999"):
        body = json.dumps(model()).replace("1.0", text)
        assert client.post("/api/controller/models", data=body).status_code == 422


@pytest.mark.parametrize("field", ["model_name", "host", "port"])
def test_what_names_an_instance_must_be_there(client, field):
    assert refused(client, "POST", "models", {k: v for k, v in model().items() if k != field}) == [field]
    given = {"model_name": "echo@llm", "host": "h", "port": "1"}
    query = "&".join(f"{name}={value}" for name, value in given.items() if name != field)
    assert refused(client, "DELETE", f"models?{query}") == [field]
    assert refused(client, "DELETE", f"models?{query}&{field}=") == [field]


def test_a_query_that_does_not_fit_is_refused_by_name(client):
    assert refused(client, "GET", "models?healthy_only=perhaps") == ["healthy_only"]
    assert refused(client, "GET", "instances?healthy=perhaps") == ["healthy"]
    assert refused(client, "DELETE", "instances?forget=perhaps", [instance()]) == ["forget"]
    assert refused(client, "DELETE", "models?model_name=a%40llm&host=h&port=70000") == ["port"]
    assert refused(client, "DELETE", "models?model_name=a%40llm&host=a%20b&port=7") == ["host"]
    assert refused(client, "DELETE", "models?model_name=a%40llm&host=h&port=7&remove_from_registry=x") == [
        "remove_from_registry"
    ]


# Our calls


def test_an_instance_is_registered_whole_and_comes_back_whole(client):
    told = instance(
        weight=2.5,
        enabled=False,
        check_healthy=False,
        capabilities=["delta"],
        load="slots=8;free=3;waiting=0",
        prompt_template="say {prompt}\n",
    )
    answer = send(client, "POST", "instances", [told])
    assert set(answer) == {"instances", "interval"}
    assert answer["interval"] == TIMEOUT / 3
    (receipt,) = answer["instances"]
    assert receipt == {"key": "echo@llm", "url": URL, "generation": receipt["generation"], "superseded": False}
    (row,) = send(client, "GET", "instances")
    assert set(row) == ROW_KEYS
    assert row == {
        **told,
        "generation": receipt["generation"],
        "last_heartbeat": "2027-01-15T08:00:00.250000Z",
        "healthy": True,
    }


def test_all_keys_of_a_process_are_told_at_once_and_answered_in_their_order(client):
    told = [instance(key=key) for key in ("b@llm", "WorkerManager@service", "a@text2vec")]
    answer = send(client, "POST", "instances", told)
    assert [receipt["key"] for receipt in answer["instances"]] == [one["key"] for one in told]
    assert all(receipt["generation"] > 0 and not receipt["superseded"] for receipt in answer["instances"])


def test_a_beat_with_its_generation_refreshes_and_keeps_it(client, clock):
    first = send(client, "POST", "instances", [instance()])["instances"][0]
    clock.now += TIMEOUT + 1
    assert send(client, "POST", "instances", [instance(generation=first["generation"])])["instances"] == [first]
    assert send(client, "GET", "instances")[0]["healthy"] is True


def test_an_older_generation_is_told_that_it_is_superseded(client, clock):
    old = send(client, "POST", "instances", [instance()])["instances"][0]
    new = send(client, "POST", "instances", [instance(weight=2)])["instances"][0]
    assert new["generation"] > old["generation"]
    for method in ("POST", "DELETE"):
        answer = send(client, method, "instances", [instance(generation=old["generation"])])
        assert answer["instances"] == [{**new, "superseded": True}]
    assert [(row["weight"], row["healthy"]) for row in send(client, "GET", "instances")] == [(2, True)]


def test_delete_marks_unhealthy_and_with_forget_removes(client):
    told = [instance(key="a@llm"), instance(key="b@llm")]
    send(client, "POST", "instances", told)
    answer = send(client, "DELETE", "instances", told[:1])
    assert [receipt["key"] for receipt in answer["instances"]] == ["a@llm"]
    assert [(r["key"], r["healthy"]) for r in send(client, "GET", "instances")] == [("a@llm", False), ("b@llm", True)]
    send(client, "DELETE", "instances?forget=false", told[:1])
    assert len(send(client, "GET", "instances")) == 2
    send(client, "DELETE", "instances?forget=true", told[:1])
    assert [row["key"] for row in send(client, "GET", "instances")] == ["b@llm"]


def test_rows_are_asked_for_by_key_and_by_health(client, clock):
    send(client, "POST", "instances", [instance(key="old@llm")])
    clock.now += TIMEOUT + 1
    send(client, "POST", "instances", [instance(key="new@llm")])

    def keys(query: str) -> list[str]:
        return [row["key"] for row in send(client, "GET", f"instances{query}")]

    assert keys("") == keys("?key=&healthy=") == ["new@llm", "old@llm"]
    assert keys("?key=old%40llm") == ["old@llm"]
    assert keys("?healthy=true") == ["new@llm"]
    assert keys("?healthy=false") == ["old@llm"]
    assert keys("?key=old%40llm&healthy=true") == []


def test_a_type_that_is_not_known_here_is_taken(client):
    send(client, "POST", "instances", [instance(key="painter@text2image")])
    assert send(client, "GET", "instances?key=painter%40text2image")[0]["healthy"] is True


def test_no_instances_are_no_error(client):
    assert send(client, "POST", "instances", [])["instances"] == []
    assert send(client, "DELETE", "instances", [])["instances"] == []


WRONG_HERE = {
    "key": WRONG["model_name"],
    "url": [
        *(
            "",
            "http://",
            "10.0.0.7:18100",
            "ftp://h/api",
            "http://u:p@h:1/api",
            "http://h:1/api?x=1",
            "http://h:1/api#x",
        ),
        *(
            "http://h:0/api",
            "http://h:65536/api",
            "http://h:x/api",
            "http://h:/api",
            "http://h:1/api/",
            "http://h:1//x",
        ),
        *(
            "http://h:1/../x",
            "http://[::1/api",
            "http://h h:1/api",
            "http://h:1/\napi",
            "http://hä/api",
            "HTTP://h:1/api",
        ),
        *(
            "http+unix://run/api",
            "http+unix:///api",
            "http+unix://%2Fa%00b/api",
            "http://" + "h" * 1100,
            5,
            ["http://h"],
        ),
    ],
    "weight": WRONG["weight"],
    "enabled": WRONG["enabled"],
    "check_healthy": WRONG["check_healthy"],
    "capabilities": ["delta", ["x"] * 33, {}],
    "load": [5, "x" * 300, "a\nb"],
    "prompt_template": WRONG["prompt_template"],
    "generation": [-1, 1.5, "1", 2**53, True],
}


@pytest.mark.parametrize("method", ["POST", "DELETE"])
@pytest.mark.parametrize("field", WRONG_HERE)
def test_an_instance_that_does_not_fit_is_refused_by_place_and_name(client, registry, method, field):
    for value in WRONG_HERE[field]:
        body = [instance(key="fine@llm"), instance(**{field: value})]
        assert refused(client, method, "instances", body) == [f"[1].{field}"], value
    assert registry.instances() == []


def test_a_capability_that_does_not_fit_is_refused_by_its_place(client):
    for value in (5, None, "", "x" * 65, "a\nb"):
        assert refused(client, "POST", "instances", [instance(capabilities=["delta", value])]) == [
            "[0].capabilities[1]"
        ], value


@pytest.mark.parametrize("body", [5, "x", True, {}, {"key": "a@llm"}], ids=repr)
def test_a_body_that_is_no_list_is_refused(client, body):
    assert refused(client, "POST", "instances", body) == []


@pytest.mark.parametrize("entry", [5, "x", None, []], ids=repr)
def test_an_entry_that_is_no_object_is_refused_by_its_place(client, entry):
    assert refused(client, "POST", "instances", [instance(), entry]) == ["[1]"]


def test_an_instance_named_twice_is_refused(client, registry):
    assert refused(client, "POST", "instances", [instance(), instance(weight=2)])
    assert registry.instances() == []


def test_as_many_instances_as_allowed_are_taken_and_no_more(client, registry):
    body = [instance(key=f"m{number}@llm") for number in range(MAX_INSTANCES + 1)]
    response = client.post("/api/controller/instances", json=body)
    assert response.status_code == 422
    assert f"at most {MAX_INSTANCES}" in response.json["detail"]
    assert len(send(client, "POST", "instances", body[:-1])["instances"]) == MAX_INSTANCES
    assert len(registry.instances()) == MAX_INSTANCES


def test_of_many_faults_some_are_named(client):
    assert len(refused(client, "POST", "instances", [{}] * MAX_INSTANCES)) == 20


def test_a_body_over_the_limit_is_refused_unread(registry):
    client = client_of(registry, max_body_bytes=1024)
    for call in ("instances", "models", "heartbeat"):
        refused(client, "POST", call, [instance(prompt_template="x" * 1024)], status=413)


def test_a_body_is_read_as_json_whatever_its_content_type_is(client):
    response = client.post("/api/controller/models", data=json.dumps(model()), content_type="text/plain")
    assert response.json is True
    assert client.post("/api/controller/instances", data=b"[{").status_code == 422
    assert client.post("/api/controller/instances").status_code == 422


# Who may, and what goes wrong


def test_a_registration_without_a_token_may_only_name_this_machine(registry):
    client = client_of(registry)
    send(client, "POST", "models", model(host="127.0.0.1"))
    for method, call, body in (
        ("POST", "models", model()),
        ("POST", "heartbeat", model()),
        ("POST", "instances", [instance(url="http://127.0.0.1:1/api"), instance()]),
        ("DELETE", "instances", [instance()]),
        ("DELETE", "models?model_name=echo%40llm&host=10.0.0.7&port=18100", None),
    ):
        response = client.open(f"/api/controller/{call}", method=method, json=body)
        assert response.status_code == 403, call
        assert URL in response.json["detail"], "a refusal names the address"
    assert [row.url for row in registry.instances()] == ["http://127.0.0.1:18100/api"]


def test_without_the_scope_nothing_is_registered_or_shown(client, registry):
    del client.environ_base["HTTP_AUTHORIZATION"]
    for method, call, body in (
        ("POST", "models", model()),
        ("POST", "heartbeat", model()),
        ("DELETE", "models?model_name=echo%40llm&host=10.0.0.7&port=18100", None),
        ("GET", "models", None),
        ("POST", "instances", [instance()]),
        ("DELETE", "instances", [instance()]),
        ("GET", "instances", None),
    ):
        response = client.open(f"/api/controller/{call}", method=method, json=body)
        assert response.status_code == 401, call
        assert "scope" in response.json["detail"]
    assert registry.instances() == []


class Away:
    """A registry that does not answer."""

    def beat(self, *_: Any, **__: Any) -> Any:
        raise RegistryUnavailable("the store is away", retry_after=3)

    deregister = instances = beat


def test_a_registry_that_does_not_answer_is_503_with_a_time_to_try_again():
    client = client_of(Away())
    here = model(host="127.0.0.1")
    for method, call, body in (
        ("POST", "models", here),
        ("POST", "heartbeat", here),
        ("DELETE", "models?model_name=echo%40llm&host=127.0.0.1&port=18100", None),
        ("GET", "models", None),
        ("POST", "instances", [instance(url="http://127.0.0.1:1/api")]),
        ("DELETE", "instances", [instance(url="http://127.0.0.1:1/api")]),
        ("GET", "instances", None),
    ):
        response = client.open(f"/api/controller/{call}", method=method, json=body)
        assert (response.status_code, response.headers["Retry-After"]) == (503, "3"), call
        assert response.json["type"] == "urn:modelyard:error:registry_unavailable"
        assert response.json["detail"] == "the store is away"


def test_what_is_unforeseen_is_told_without_its_text():
    class Broken:
        def instances(self, *_: Any, **__: Any) -> Any:
            raise ZeroDivisionError("secret")

    response = client_of(Broken()).get("/api/controller/models")
    assert response.status_code == 500
    assert b"secret" not in response.data


def test_the_registry_is_looked_up_at_each_request(registry):
    held: list[MemoryRegistry] = [MemoryRegistry()]
    app = Flask("controller")
    app.register_blueprint(controller_blueprint(lambda: held[0], Settings(), "/api"))
    client = app.test_client()
    send(client, "POST", "models", model(host="127.0.0.1"))
    held[0] = registry
    assert models(client) == []


def test_each_call_leaves_an_access_line(client, caplog):
    with caplog.at_level(logging.DEBUG, "modelyard.access"):
        send(client, "POST", "models", model())
        refused(client, "POST", "models", model(port=0))
        send(client, "GET", "instances")
    lines = [json.loads(record.message) for record in caplog.records if record.name == "modelyard.access"]
    assert [(line["method"], line["path"], line["status"]) for line in lines] == [
        ("POST", "/api/controller/models", 200),
        ("POST", "/api/controller/models", 422),
        ("GET", "/api/controller/instances", 200),
    ]
    assert [line.get("model") for line in lines] == ["echo@llm", None, None]
    assert [line.get("error") for line in lines] == [None, "invalid_request", None]


def test_what_comes_every_few_seconds_is_worth_a_line_only_where_it_fails(client, caplog):
    with caplog.at_level(logging.INFO, "modelyard.access"):
        send(client, "POST", "heartbeat", model())
        send(client, "GET", "instances")
        refused(client, "POST", "heartbeat", model(port=0))
    (line,) = [json.loads(record.message) for record in caplog.records if record.name == "modelyard.access"]
    assert (line["path"], line["status"]) == ("/api/controller/heartbeat", 422)


def test_access_lines_can_be_left_out(registry, caplog):
    with caplog.at_level(logging.INFO, "modelyard.access"):
        models(client_of(registry, access_log=False))
    assert [record for record in caplog.records if record.name == "modelyard.access"] == []
