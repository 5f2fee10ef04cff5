"""DB-GPT's RemoteWorkerManager, and its command line, against our controller and two of our workers."""

from __future__ import annotations

import re

import pytest
from both import FIRST, HUMAN, MANAGER_KEY, SECOND, Both, TheirClient, TheirError, keys_at, url
from running import Service, wait_until

PIECES = [" token", " token token", " token token token"]


class Ours:
    """A controller and two workers."""

    def __init__(self, sides: Both) -> None:
        self.controller = sides.controller()
        self.first = sides.worker(FIRST, url(self.controller))
        self.second = sides.worker(SECOND, url(self.controller))
        self.await_keys(self.first, "echo@llm", "rank@reranker", "slow@llm")
        self.await_keys(self.second, "echo@llm", "emb@text2vec")

    def await_keys(self, worker: Service, *keys: str) -> None:
        wanted = {MANAGER_KEY, *keys}
        wait_until(lambda: keys_at(self.controller, worker) == wanted, f"{sorted(wanted)} are registered")


@pytest.fixture(scope="module")
def ours(sides: Both) -> Ours:
    return Ours(sides)


@pytest.fixture(scope="module")
def client(sides: Both, ours: Ours) -> TheirClient:
    return sides.client(ours.controller)


# What there is


def check_models_are_listed_with_their_places(client, ours):
    first, second = f"127.0.0.1:{ours.first.port}", f"127.0.0.1:{ours.second.port}"
    assert client.models(worker_type="llm") == sorted([f"echo@llm {first}", f"echo@llm {second}", f"slow@llm {first}"])
    assert client.models(worker_type="text2vec") == [f"emb@text2vec {second}"]
    assert client.models(worker_type="reranker") == [f"rank@reranker {first}"]
    assert client.models(worker_type="service") == sorted([f"{MANAGER_KEY} {first}", f"{MANAGER_KEY} {second}"])


def check_its_llm_client_lists_models_by_their_metadata(client):
    assert [model["model"] for model in client.client_models()] == ["echo", "slow"]


def check_metadata(client):
    found = client.metadata(model="echo")
    assert (found["model"], found["context_length"], found["chat_model"]) == ("echo", 4096, True)
    assert found["ext_metadata"]["prompt_roles"] == ["system", "human", "ai"]


def check_supported_models_of_both_hosts_with_their_parameters(client, ours):
    found = {host["port"]: host["models"] for host in client.supported_models()}
    assert set(found) == {ours.first.port, ours.second.port}
    spare = next(model for model in found[ours.first.port] if model["model"] == "spare")
    assert spare["worker_type"] == "llm"
    assert {"engine", "delay", "limit_model_concurrency"} <= {param["param_name"] for param in spare["params"]}
    flat = client.flat_supported_models()
    assert {(one["port"], one["model"]) for one in flat} >= {(ours.first.port, "spare"), (ours.second.port, "emb")}


# Answers


def check_a_stream_has_all_the_text_so_far_in_each_chunk(client):
    chunks = client.generate_stream(model="echo", messages=HUMAN, max_new_tokens=3)
    assert [chunk["text"] for chunk in chunks] == PIECES
    assert chunks[-1]["finish_reason"] == "length"
    assert chunks[-1]["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    assert all(chunk["error_code"] == 0 and chunk["incremental"] is False for chunk in chunks)


def check_a_whole_answer(client):
    answer = client.generate(model="echo", messages=HUMAN, max_new_tokens=3)
    assert (answer["text"], answer["error_code"]) == (PIECES[-1], 0)


def check_an_answer_to_its_llm_client(client):
    assert client.client_generate(model="echo", text="hello", max_new_tokens=3)["text"] == PIECES[-1]
    assert [chunk["text"] for chunk in client.client_stream(model="echo", text="hello", max_new_tokens=3)] == PIECES


def check_a_prompt_without_messages(client):
    assert client.generate(model="echo", prompt="a b", messages=[], max_new_tokens=1)["text"] == " token"


def check_media_parts_that_are_text(client):
    parts = [{"type": "text", "object": {"data": "a b c", "format": "text"}}]
    answer = client.generate(model="echo", messages=[{"role": "human", "content": parts}], max_new_tokens=1)
    assert answer["usage"]["prompt_tokens"] == 3


def check_vectors(client):
    rows = client.embeddings(model="emb", input=["a b", "b a", "c"])
    assert [len(row) for row in rows] == [384] * 3
    assert rows[0] == rows[1] != rows[2]
    assert client.embed_documents(model="emb", texts=["a b"]) == rows[:1]


def check_scores(client):
    assert client.predict(model="rank", query="a b", candidates=["a", "b a", "c"]) == [0.5, 1.0, 0.0]


def check_the_relevance_of_texts_is_read_from_our_gateway(client, sides, ours):
    gateway = sides.gateway(url(ours.controller))
    scores = client.relevance(
        url=f"{url(gateway)}/v1/beta/relevance", model="rank", query="a b", candidates=["a", "b a", "c"]
    )
    assert scores == [0.5, 1.0, 0.0]


def check_a_count_of_tokens_is_answered_where_several_llms_are_hosted(client):
    """It is sent without a model."""
    assert {client.count_token(model="echo", prompt="a b c") for _ in range(10)} == {3}


def check_a_client_that_turns_away_ends_the_work(client, ours):
    before = len(ours.first.access_lines())
    assert len(client.generate_stream(model="slow", messages=HUMAN, max_new_tokens=10_000, take=2)) == 2

    def ended() -> list[dict[str, object]]:
        return [line for line in ours.first.access_lines()[before:] if line.get("model") == "slow"]

    line = wait_until(ended, "the stream is over")[0]
    assert line["pieces"] < 1000
    wait_until(lambda: ours.first.load("slow").get("free") == 8, "its slot is free")


# Administration


def check_apply_stops_starts_and_restarts(client, ours):
    for change, says in (("stop", "stopped"), ("start", "started"), ("restart", "restarted")):
        outcome = client.worker_apply(model="rank", apply_type=change, worker_type="reranker")
        assert outcome["success"] is True
        assert outcome["message"] == f"model rank@reranker {says}"
    ours.await_keys(ours.first, "echo@llm", "rank@reranker", "slow@llm")
    assert client.predict(model="rank", query="a", candidates=["a"]) == [1.0]


def check_what_is_stopped_is_no_longer_found_and_can_be_started(client, ours):
    client.worker_apply(model="emb", apply_type="stop", worker_type="text2vec")
    ours.await_keys(ours.second, "echo@llm")
    with pytest.raises(TheirError, match="not found worker instances for model name emb"):
        client.embeddings(model="emb", input=["a"])
    assert client.worker_apply(model="emb", apply_type="start", worker_type="text2vec")["success"] is True
    ours.await_keys(ours.second, "echo@llm", "emb@text2vec")


def check_apply_changes_parameters_of_all_instances(client, ours):
    changed = {"reply": "prompt"}
    outcome = client.worker_apply(model="echo", apply_type="update_params", worker_type="llm", params=changed)
    assert outcome == {"message": "model echo@llm: changed reply and restarted", "success": True, **_time(outcome)}
    for worker in (ours.first, ours.second):
        answer = worker.post("generate", {"model": "echo", "prompt": "one two", "max_new_tokens": 2}).json()
        assert answer["text"] == " one two"
    client.worker_apply(model="echo", apply_type="update_params", worker_type="llm", params={"reply": "token"})
    ours.await_keys(ours.first, "echo@llm", "rank@reranker", "slow@llm")
    ours.await_keys(ours.second, "echo@llm", "emb@text2vec")


def _time(outcome: dict[str, object]) -> dict[str, object]:
    return {"timecost": outcome["timecost"]}


def check_refused_parameters_say_why(client):
    outcome = client.worker_apply(model="echo", apply_type="update_params", worker_type="llm", params={"delay": -1})
    assert outcome["success"] is False
    assert "params.delay: -1.0 is less than 0" in outcome["message"]


def check_a_model_is_started_and_shut_down_on_a_host(client, ours):
    place = {"host": "127.0.0.1", "port": ours.first.port, "worker_type": "llm"}
    assert client.model_startup(model="spare", params={"delay": 0.0}, **place) is None
    ours.await_keys(ours.first, "echo@llm", "rank@reranker", "slow@llm", "spare@llm")
    assert client.generate(model="spare", messages=HUMAN, max_new_tokens=3)["text"] == PIECES[-1]
    with pytest.raises(TheirError, match=r"409.*is ready already"):
        client.model_startup(model="spare", params={}, **place)
    assert client.model_shutdown(model="spare", params={}, **place) is None
    ours.await_keys(ours.first, "echo@llm", "rank@reranker", "slow@llm")
    with pytest.raises(TheirError, match=r"404.*there is no model 'spare'"):
        client.model_shutdown(model="spare", params={}, **place)


def check_a_startup_that_can_not_be_says_why(client, ours):
    place = {"host": "127.0.0.1", "port": ours.first.port, "worker_type": "llm"}
    with pytest.raises(TheirError, match=r"404.*model 'nope' is neither in the catalogue"):
        client.model_startup(model="nope", params={}, **place)
    with pytest.raises(TheirError, match=r"422.*params.delay"):
        client.model_startup(model="spare", params={"delay": "soon"}, **place)
    with pytest.raises(TheirError, match=r"not found worker instances for host 127.0.0.1 port 1$"):
        client.model_startup(model="spare", params={}, **{**place, "port": 1})


def check_descriptions_are_a_fault_of_its_own(client):
    """Its remote manager asks nobody: it fails before."""
    with pytest.raises(TheirError, match="exceptions must derive from BaseException"):
        client.parameter_descriptions(worker_type="llm", model="echo")


# What goes wrong


def check_an_unknown_model(client):
    answer = client.generate(model="nope", messages=HUMAN)
    assert answer["error_code"] == 1
    assert "not found worker instances for model name nope" in answer["text"]


def check_a_request_that_does_not_fit_says_why(client):
    (chunk,) = client.generate_stream(model="echo", messages=HUMAN, temperature=-3)
    assert chunk["error_code"] == 422
    assert chunk["text"].startswith("temperature: Must be greater than or equal to 0")
    output = client.generate(model="echo", messages=HUMAN, temperature=-3)
    assert output["error_code"] == 422
    assert output["text"].startswith("temperature: Must be greater than or equal to 0")
    with pytest.raises(TheirError, match="input: must be a list of strings"):
        client.embeddings(model="emb", input="x")


def check_its_openai_server_tells_once_how_an_answer_ended(client):
    events = client.openai_stream(model="echo", text="hi there", max_new_tokens=3)
    assert len([event for event in events if re.search(r'"finish_reason": ?"length"', event)]) == 1


def check_many_texts_at_once_have_a_place_in_line(client):
    """Its OpenAI server sends 600 texts in batches of four, all at once."""
    rows = client.openai_embeddings(model="emb", texts=[f"text {number}" for number in range(600)])
    assert [len(row) for row in rows] == [384] * 600
    assert client.embeddings(model="emb", input=[]) == []


def check_a_part_that_is_no_text_is_named(client):
    parts = [{"type": "image", "object": {"data": "x", "format": "url"}}]
    (chunk,) = client.generate_stream(model="echo", messages=[{"role": "human", "content": parts}])
    assert chunk["error_code"] == 422
    assert "a part of type 'image' is not understood" in chunk["text"]


# dbgpt model ...


def check_its_command_line_lists(sides, ours):
    listed = sides.command_line(ours.controller, "list")
    rows = [[cell.strip() for cell in line.split("|")[1:6]] for line in listed.splitlines() if line.startswith("|")]
    assert ["echo", "llm", "127.0.0.1", str(ours.first.port), "True"] in rows
    assert ["emb", "text2vec", "127.0.0.1", str(ours.second.port), "True"] in rows


def check_its_command_line_starts_restarts_and_stops(sides, ours):
    place = ("--model_name", "spare", "--host", "127.0.0.1", "--port", str(ours.first.port))
    assert "None" in sides.command_line(ours.controller, "start", *place, "--delay", "0")
    ours.await_keys(ours.first, "echo@llm", "rank@reranker", "slow@llm", "spare@llm")
    said = sides.command_line(ours.controller, "restart", "--model_name", "spare")
    assert "message='model spare@llm restarted', success=True" in said
    assert "None" in sides.command_line(ours.controller, "stop", *place)
    ours.await_keys(ours.first, "echo@llm", "rank@reranker", "slow@llm")


def check_its_command_line_chats(sides, ours):
    said = sides.command_line(ours.controller, "chat", "-m", "echo", typed="hello you\n/exit\n")
    assert " token token token" in said
