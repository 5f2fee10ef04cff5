"""SmolLM2, MiniLM and a tiny reranker behind real gunicorn: what they answer, count, and let go of."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import pytest
import requests
import tiny_gguf
from clients import DELTA, NO_WAIT, Connection, chunks_of, outputs
from processes import is_alive
from running import Service, Services, seconds_until, services, wait_until

TABLES = """
[[models]]
name = "smollm2-135m"

[[models]]
name = "minilm-l6"

[[models]]
name = "tiny-rank"
model_path = "{rank}"
worker_type = "reranker"
n_ctx = 256
"""
LLM = "smollm2-135m"
STORY = "Tell me a story about a fox who lives near a river."


@pytest.fixture(scope="module")
def real(models_dir: Path) -> Iterator[Services]:
    with services(models_dir) as made:
        yield made


@pytest.fixture(scope="module")
def service(real: Services, models_dir: Path) -> Iterator[Service]:
    folder = real.folder()
    (folder / "models").mkdir()
    rank = tiny_gguf.make(folder / "models" / "tiny-rank.gguf", "rank")
    service = real.start(
        TABLES.format(rank=rank.name),
        folder=folder,
        models_dirs=f"{models_dir},{folder / 'models'}",
    )
    yield service
    service.kill()


@pytest.fixture(scope="module")
def openai_service(real: Services, models_dir: Path) -> Iterator[Service]:
    """A standalone service, which speaks OpenAI's API too."""
    service = real.start(f'[[models]]\nname = "{LLM}"\n', role="standalone", models_dirs=str(models_dir))
    yield service
    service.kill()


def ask(text: str = STORY, **more: Any) -> dict[str, Any]:
    return {"model": LLM, "messages": [{"role": "human", "content": text}], **more}


def answer(service: Service, body: dict[str, Any]) -> dict[str, Any]:
    response = service.post("generate", body, timeout=120)
    assert response.status_code == 200, response.text
    output: dict[str, Any] = response.json()
    assert output["error_code"] == 0, output
    return output


GREEDY = {"temperature": 0, "max_new_tokens": 40}


def test_the_same_seed_gives_the_same_answer_and_another_seed_another(service: Service) -> None:
    texts = [answer(service, ask(temperature=0.9, seed=seed, max_new_tokens=40))["text"] for seed in (42, 42, 43)]
    assert texts[0] == texts[1] != texts[2]


def test_without_temperature_the_answer_is_always_the_same(service: Service) -> None:
    texts = {answer(service, ask(**GREEDY, seed=seed))["text"] for seed in (1, 2, 3)}
    assert len(texts) == 1
    assert len(texts.pop().split()) > 10


def test_it_makes_sense(service: Service) -> None:
    assert "4" in answer(service, ask("What is 2+2?", **GREEDY))["text"]
    raw = {"model": LLM, "prompt": "The capital of France is", **GREEDY}
    assert answer(service, raw)["text"].startswith(" Paris")


def test_all_messages_reach_the_model_in_its_own_template(service: Service) -> None:
    messages = [
        {"role": "system", "content": "You are a poet."},
        {"role": "human", "content": "My name is Bartholomew."},
        {"role": "ai", "content": "Hello!"},
        {"role": "human", "content": [{"type": "text", "object": {"data": "Who am I?", "format": "text"}}]},
    ]
    text = answer(service, {"model": LLM, "messages": messages, "max_new_tokens": 1, "echo": True})["text"]
    assert text.startswith(
        "<|im_start|>system\nYou are a poet.<|im_end|>\n<|im_start|>user\nMy name is Bartholomew.<|im_end|>\n"
        "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nWho am I?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_stop_string_ends_the_answer_before_it(service: Service) -> None:
    whole = answer(service, ask(**GREEDY))["text"]
    stop = whole.split()[8]
    for given in (stop, [stop, "never said"]):
        stopped = answer(service, ask(**GREEDY, stop=given))
        assert stopped["text"] == whole[: whole.index(stop)]
        assert stopped["finish_reason"] == "stop"


def test_a_stop_token_ends_the_answer_before_it(service: Service, models_dir: Path) -> None:
    whole = answer(service, ask(**GREEDY))["text"]
    assert "," in whole
    weights = gguf.GGUFReader(models_dir / "SmolLM2-135M-Instruct.Q4_1.gguf")
    tokens = weights.fields["tokenizer.ggml.tokens"].contents()
    stopped = answer(service, ask(**GREEDY, stop_token_ids=[tokens.index(",")]))
    assert stopped["text"] == whole[: whole.index(",")]
    assert stopped["finish_reason"] == "stop"
    assert stopped["usage"]["completion_tokens"] < 40
    raw = {"model": LLM, "prompt": "One, two, three,", **GREEDY}
    stopped = answer(service, {**raw, "stop_token_ids": [tokens.index(",")]})
    assert "," not in stopped["text"]
    assert answer(service, raw)["text"].startswith(stopped["text"])


def test_an_answer_has_as_many_tokens_as_were_asked_for(service: Service) -> None:
    for count in (1, 7, 40):
        output = answer(service, ask(temperature=0, max_new_tokens=count))
        assert output["finish_reason"] == "length"
        assert output["usage"]["completion_tokens"] == count
        assert output["usage"]["total_tokens"] == output["usage"]["prompt_tokens"] + count


def test_the_letters_before_half_a_character_are_kept(service: Service) -> None:
    fox = "\U0001f98a"
    body = {"model": LLM, "prompt": f"go {fox} " * 5 + "go", "temperature": 0}
    outputs = [answer(service, {**body, "max_new_tokens": count}) for count in (1, 2, 3)]
    assert [output["text"] for output in outputs] == [" ", " ", f" {fox}"]
    assert [output["usage"]["completion_tokens"] for output in outputs] == [1, 2, 3]
    assert {output["finish_reason"] for output in outputs} == {"length"}


def test_a_second_turn_finds_the_first_in_the_models_cache(service: Service) -> None:
    def chat(*messages: dict[str, Any]) -> dict[str, Any]:
        body = {"model": LLM, "messages": messages, "max_tokens": 8, "temperature": 0}
        answered: dict[str, Any] = service.post("/v1/chat/completions", body).json()
        return answered

    question = {"role": "user", "content": "A cache keeps what was computed. " * 8}
    first = chat(question)
    chat({"role": "system", "content": "Answer in one word."}, {"role": "user", "content": "Somebody else is here."})
    reply = first["choices"][0]["message"]
    again = chat(question, reply, {"role": "user", "content": "And then?"})
    cached = again["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert first["usage"]["prompt_tokens"] <= cached < again["usage"]["prompt_tokens"]


def test_an_answer_ends_by_itself(service: Service) -> None:
    output = answer(service, ask("What is 1+1? Answer with one number.", temperature=0, max_new_tokens=500))
    assert output["finish_reason"] == "stop"
    assert output["usage"]["completion_tokens"] < 500


@pytest.mark.parametrize(
    "prompt",
    [
        "Hello",
        "The quick brown fox jumps over the lazy dog.",
        " leading and trailing spaces ",
        "ünï 日本語 😀 \t tabs\nand lines\n\n",
        "<|im_start|>user\nHello<|im_end|>\n",
        "a" * 1000,
    ],
)
def test_tokens_counted_are_those_of_the_usage(service: Service, prompt: str) -> None:
    counted = service.post("count_token", {"model": LLM, "prompt": prompt}).json()
    output = answer(service, {"model": LLM, "prompt": prompt, "max_new_tokens": 1})
    assert counted == output["usage"]["prompt_tokens"] > 0


def test_echo_puts_the_prompt_before_the_answer(service: Service) -> None:
    raw = {"model": LLM, "prompt": "One two three", **GREEDY}
    assert answer(service, {**raw, "echo": True})["text"] == "One two three" + answer(service, raw)["text"]
    chat = answer(service, ask(**GREEDY, echo=True))["text"]
    assert STORY in chat
    assert chat.endswith(answer(service, ask(**GREEDY))["text"])


def test_a_stream_grows_to_the_whole_answer(service: Service) -> None:
    whole = answer(service, ask(**GREEDY))
    with service.post("generate_stream", ask(**GREEDY), stream=True) as response:
        found = list(outputs(response))
    texts = [chunk["text"] for chunk in found]
    assert len(texts) > 20
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert texts[-1] == whole["text"]
    assert [chunk["finish_reason"] for chunk in found if chunk["finish_reason"]] == [whole["finish_reason"]]
    assert found[-1]["usage"] == whole["usage"]
    pieces = chunks_of(service.post("generate_stream", ask(**GREEDY), headers=DELTA).content)
    assert "".join(chunk["text"] for chunk in pieces) == whole["text"]


def test_metrics_come_to_who_asks_for_them(service: Service) -> None:
    assert answer(service, ask(**GREEDY))["metrics"] is None
    metrics = answer(service, ask(**GREEDY, metrics=True))["metrics"]
    assert metrics["completion_tokens"] == 40
    assert metrics["start_time_ms"] <= metrics["first_token_time_ms"] <= metrics["end_time_ms"]
    assert metrics["speed_per_second"] > 0
    assert metrics["decode_tokens_per_second"] > 0


@pytest.mark.parametrize("penalty", [{"presence_penalty": 2}, {"frequency_penalty": 2}, {"repetition_penalty": 1.5}])
def test_penalties_change_the_answer(service: Service, penalty: dict[str, float]) -> None:
    raw = {"model": LLM, "prompt": "a a a a a a a a a a a a", "temperature": 0, "max_new_tokens": 20}
    assert answer(service, raw)["text"] != answer(service, {**raw, **penalty})["text"]


def test_streams_at_once_all_complete(service: Service) -> None:
    results: list[list[dict[str, Any]]] = []

    def client(number: int) -> None:
        body = ask(f"Tell me about the number {number}.", temperature=0, max_new_tokens=30)
        response = requests.post(service.url("generate_stream"), json=body, headers=DELTA, timeout=120)
        results.append(chunks_of(response.content))

    # Eight run, eight wait in line.
    clients = [threading.Thread(target=client, args=(number,)) for number in range(16)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    assert len(results) == 16
    for chunks in results:
        assert chunks[-1]["error_code"] == 0
        assert chunks[-1]["usage"]["completion_tokens"] > 0
        assert chunks[-1]["finish_reason"] in ("stop", "length")
    assert service.load(LLM) == {"slots": 8, "free": 8, "waiting": 0}


def test_a_prompt_longer_than_the_context_is_refused_with_the_numbers(service: Service) -> None:
    refused = service.post("generate", ask("word " * 5000))
    assert refused.status_code == 422
    assert "2048" in refused.json()["text"]
    streamed = service.post("generate_stream", ask("word " * 5000))
    assert (streamed.status_code, chunks_of(streamed.content)[0]["error_code"]) == (422, 422)
    assert answer(service, ask(**GREEDY))["text"]


def test_metadata_says_the_context_and_the_template(service: Service) -> None:
    metadata = service.post("model_metadata", {"model": LLM}).json()
    assert set(metadata) == {"model", "context_length", "chat_model", "metadata", "ext_metadata"}
    assert (metadata["model"], metadata["context_length"], metadata["chat_model"]) == (LLM, 2048, True)
    assert "im_start" in metadata["ext_metadata"]["prompt_chat_template"]


# Cancellation


def stream(service: Service, clients: ExitStack) -> Connection:
    client = clients.enter_context(Connection(service.port))
    client.send("POST", "generate_stream", ask(temperature=0.8, max_new_tokens=1900), DELTA)
    return client


def in_time(hang_up: Callable[[], float]) -> bool:
    """Whether a hang-up frees the slot within a second: in one of three tries, as others may hold the cores.

    What is freed only when the work is done is never in time.
    """
    return any(hang_up() < 1 for _ in range(3))


def cancelled(service: Service) -> int:
    return sum(line.get("error") == "cancelled" for line in service.access_lines())


def is_all_free(service: Service) -> bool:
    response = service.post("generate", ask("Hi", max_new_tokens=1), headers=NO_WAIT)
    return response.headers.get("Modelyard-Load") == "slots=8;free=8;waiting=0"


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
def test_clients_that_hang_up_free_their_slots_within_a_second(service: Service, reset: bool) -> None:
    def hang_up() -> float:
        before = cancelled(service)
        with ExitStack() as clients:
            talking = [stream(service, clients) for _ in range(8)]
            for client in talking:
                client.read_head()
                client.read_http_chunk()
            assert service.post("generate", ask("Hi"), headers=NO_WAIT).status_code == 503
            for client in talking:
                client.reset() if reset else client.close()
            took = seconds_until(lambda: is_all_free(service))
        assert cancelled(service) == before + 8
        return took

    assert in_time(hang_up)
    gone = [line for line in service.access_lines() if line.get("error") == "cancelled"]
    # The story of 1,900 tokens would have taken much longer than these clients stayed.
    assert all(line.get("pieces", 0) < 1500 for line in gone)


def test_a_client_that_hangs_up_while_its_long_prompt_is_read_frees_its_slot(service: Service) -> None:
    def hang_up() -> float:
        before = cancelled(service)
        with Connection(service.port) as client:
            client.send("POST", "generate", ask("word " * 1800, max_new_tokens=1))
            wait_until(lambda: not is_all_free(service), "its admission", timeout=5, interval=0.001)
        # Asking whether it is free would have the model compute meanwhile; the line comes after the slot.
        took = seconds_until(lambda: cancelled(service) > before)
        assert is_all_free(service)
        return took

    assert in_time(hang_up)


def test_clients_of_whole_answers_that_hang_up_free_their_slots(service: Service) -> None:
    def hang_up() -> float:
        with ExitStack() as clients:
            for _ in range(4):
                client = clients.enter_context(Connection(service.port))
                client.send("POST", "generate", ask(temperature=0.8, max_new_tokens=1900))
            wait_until(
                lambda: ";free=4;" in service.post("generate", ask("Hi", max_new_tokens=1)).headers["Modelyard-Load"],
                "four busy slots",
            )
        return seconds_until(lambda: is_all_free(service))

    assert in_time(hang_up)


# Embeddings


def embed(service: Service, *texts: str) -> list[list[float]]:
    response = service.post("embeddings", {"model": "minilm-l6", "input": list(texts)})
    assert response.status_code == 200, response.text
    rows: list[list[float]] = response.json()
    return rows


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True)) / (math.hypot(*one) * math.hypot(*other))


def test_similar_sentences_are_nearer_than_unrelated_ones(service: Service) -> None:
    cat, kitten, stocks = embed(
        service, "A cat sleeps on the sofa.", "A kitten naps on the couch.", "Stock prices fell sharply on Monday."
    )
    assert len(cat) == 384
    assert cosine(cat, kitten) > 0.5
    assert cosine(cat, stocks) < 0.2


def test_rows_come_in_the_order_of_the_texts(service: Service) -> None:
    texts = [f"This sentence is about the number {number}." for number in range(100)]
    rows = embed(service, *texts)
    assert len(rows) == 100
    for number in (0, 31, 32, 63, 64, 99):
        assert cosine(rows[number], embed(service, texts[number])[0]) > 0.999


def test_with_a_query_an_embedder_answers_by_cosine(service: Service) -> None:
    texts = ["Paris is the capital of France.", "Bananas are yellow.", "Berlin is a city in Germany."]
    body = {"model": "minilm-l6", "query": "What is the capital of France?", "input": texts}
    [scores] = service.post("embeddings", body).json()
    rows = embed(service, body["query"], *texts)
    assert scores == pytest.approx([cosine(rows[0], row) for row in rows[1:]], abs=1e-3)
    assert scores[0] > scores[2] > scores[1]


def test_a_text_too_long_is_embedded_by_its_beginning_and_a_header_tells(service: Service) -> None:
    long = "word " * 600
    response = service.post("embeddings", {"model": "minilm-l6", "input": ["short", long, "short"]})
    assert (response.status_code, response.headers["Modelyard-Truncated"]) == (200, "1")
    short, cut, _ = response.json()
    assert short == pytest.approx(embed(service, "short")[0], abs=1e-3)
    assert cosine(cut, embed(service, "word " * 508)[0]) > 0.999
    assert len(embed(service, "short", "", "word " * 400)) == 3


def test_many_clients_embed_at_once(service: Service) -> None:
    expected = embed(service, "one", "two")
    faults: list[str] = []

    def client() -> None:
        for _ in range(5):
            body = {"model": "minilm-l6", "input": ["one", "two"]}
            rows = requests.post(service.url("embeddings"), json=body, timeout=60).json()
            faults.extend("other vectors" for a, b in zip(rows, expected, strict=True) if cosine(a, b) < 0.999)

    clients = [threading.Thread(target=client) for _ in range(16)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    assert faults == []


def test_a_client_of_embeddings_that_hangs_up_frees_its_slot(service: Service) -> None:
    def hang_up() -> float:
        before = cancelled(service)
        with Connection(service.port) as client:
            body = {"model": "minilm-l6", "input": ["some words to embed " * 20] * 10_000}
            client.send("POST", "embeddings", body)
            wait_until(lambda: embeddings_free(service) < 64, "its admission", interval=0.001)
        took = seconds_until(lambda: cancelled(service) > before)
        assert embeddings_free(service) == 64
        return took

    assert in_time(hang_up)


def embeddings_free(service: Service) -> int:
    load = service.post("embeddings", {"model": "minilm-l6", "input": ["x"]}).headers["Modelyard-Load"]
    return int(dict(pair.split("=") for pair in load.split(";"))["free"])


def test_a_reranker_scores_each_text(service: Service) -> None:
    body = {"model": "tiny-rank", "query": "where is the water", "input": ["the water is there", "people", "the"]}
    [scores] = service.post("embeddings", body).json()
    assert len(scores) == 3
    assert len(set(scores)) == 3
    # Its weights are random: that it does the same alone, and in another order, is what can be known.
    for text, score in zip(body["input"], scores, strict=True):
        assert service.post("embeddings", {**body, "input": [text]}).json()[0] == pytest.approx([score], abs=1e-3)
    too_long = service.post("embeddings", {**body, "input": ["the", "water " * 300]})
    assert (too_long.status_code, too_long.headers["Modelyard-Truncated"]) == (200, "1")


# Life, with real weights


ONE_SLOT = '[[models]]\nname = "smollm2-135m"\nlimit_model_concurrency = 2\n'


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_in_the_middle_of_a_generation_without_a_crash(real: Services, number: int) -> None:
    service = real.start(ONE_SLOT, drain_timeout=0.5)
    worker = service.worker_pid()
    with ExitStack() as clients:
        talking = [stream(service, clients) for _ in range(4)]
        for client in talking[:2]:
            client.read_head()
            client.read_http_chunk()
        service.signal(number)
        assert service.wait_ended(20) == 0
    assert not is_alive(worker)
    log = service.log()
    assert "terminate called" not in log
    assert "Fatal Python error" not in log
    assert "was sent SIG" not in log
    assert list((service.folder / "tmp").iterdir()) == [], "a socket's folder was left behind"


def test_it_answers_again_after_its_worker_was_killed(real: Services) -> None:
    service = real.start(ONE_SLOT)
    first = answer(service, ask(**GREEDY))["text"]
    before = service.worker_pid()
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: service.worker_pid() not in (0, before), "another worker")
    service.wait_ready()
    assert answer(service, ask(**GREEDY))["text"] == first


@pytest.mark.parametrize("way", ["command line", "environment", "configuration", "over HTTP"])
def test_the_context_is_what_a_parameter_says(real: Services, way: str) -> None:
    tables = ONE_SLOT + ("n_ctx = 1024\n" if way == "configuration" else "")
    arguments = ["--set", "smollm2-135m.n_ctx=1024"] if way == "command line" else []
    environ = {"SMOLLM2_135M_N_CTX": "1024"} if way == "environment" else {}
    service = real.start(tables, *arguments, environ=environ)
    if way == "over HTTP":
        body = {"model": LLM, "apply_type": "update_params", "params": {"n_ctx": 1024}}
        assert service.post("apply", body).json()["success"] is True
    assert service.post("model_metadata", {"model": LLM}).json()["context_length"] == 1024
    assert service.post("generate", ask("word " * 1500)).status_code == 422
    assert answer(service, ask(**GREEDY))["text"]


def test_an_update_in_the_middle_of_generations_ends_them_with_a_word(real: Services) -> None:
    service = real.start(ONE_SLOT)
    with ExitStack() as clients:
        client = stream(service, clients)
        head = client.read_head()
        client.read_http_chunk()
        body = {"model": LLM, "apply_type": "update_params", "params": {"n_ctx": 1024}}
        outcome = service.post("apply", body).json()
        assert outcome["success"] is True, outcome
        last = chunks_of(client.read_body(head))[-1]
    assert last["error_code"] == 503
    assert "stopped" in last["text"]
    assert json.dumps(answer(service, ask(**GREEDY)))


# Options of OpenAI's chat


CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"]}


def chat(service: Service, **fields: Any) -> requests.Response:
    body = {"model": LLM, "messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
    return service.post("/v1/chat/completions", {**body, "max_tokens": 60, **fields}, timeout=120)


def test_an_answer_is_json_of_the_schema_that_was_asked_for(openai_service: Service) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "city", "strict": True, "schema": CITY}}
    choice = chat(openai_service, response_format=form).json()["choices"][0]
    assert set(json.loads(choice["message"]["content"])) == {"city"}
    assert choice["finish_reason"] == "stop"
    form["json_schema"] = {"name": "city", "schema": {"type": "nonsense"}}
    refused = chat(openai_service, response_format=form)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "response_format"


@pytest.mark.parametrize(
    ("schema", "pattern"),
    [
        ({"type": "string", "pattern": r"^\d{3}-ä{2}$"}, r'"\d{3}-ä{2}"'),
        ({"type": "string", "pattern": "^[^0-9]{4}$"}, '"[^0-9]{4}"'),
        (
            {"type": "object", "properties": {"c": {"type": "array", "items": {"$ref": "#"}, "maxItems": 0}}}
            | {"required": ["c"], "additionalProperties": False},
            r'\{\s*"c":\s*\[\s*\]\s*\}',
        ),
    ],
)
def test_an_answer_keeps_to_patterns_and_to_a_schema_of_itself(
    openai_service: Service, schema: dict[str, Any], pattern: str
) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    text = chat(openai_service, response_format=form).json()["choices"][0]["message"]["content"]
    assert re.fullmatch(pattern, text), text


def test_an_answer_keeps_to_a_grammar_or_a_bare_schema(openai_service: Service) -> None:
    choice = chat(openai_service, grammar='root ::= "a"{5,5}').json()["choices"][0]
    assert choice["message"]["content"] == "aaaaa"
    body = {"model": LLM, "prompt": "Paris", "max_tokens": 20, "json_schema": {"const": 42}}
    assert openai_service.post("/v1/completions", body).json()["choices"][0]["text"] == "42"
    refused = chat(openai_service, grammar="root ::= this is (not valid")
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "grammar"


def test_probabilities_are_those_of_the_tokens(openai_service: Service) -> None:
    choice = chat(openai_service, max_tokens=3, logprobs=True, top_logprobs=2).json()["choices"][0]
    tokens = choice["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == choice["message"]["content"]
    assert all(set(token) == {"token", "logprob", "bytes", "top_logprobs"} for token in tokens)
    assert all(len(token["top_logprobs"]) == 2 for token in tokens)
    assert all(token["logprob"] <= 0 for token in tokens)


def test_tools_are_refused_where_the_template_has_none(openai_service: Service) -> None:
    refused = chat(openai_service, tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}])
    assert refused.status_code == 400
    assert LLM in refused.json()["error"]["message"]
