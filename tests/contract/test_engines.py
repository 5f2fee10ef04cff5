"""What every engine does, over each engine there is, in this process and in one of its own."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_gguf
from modelyard.cluster.hosting.isolation import isolated
from modelyard.engines.base import Engine, cut_texts, tokens_of
from modelyard.engines.echo import Echo
from modelyard.engines.llama_cpp import LlamaCpp
from modelyard.errors import (
    BadModelFile,
    Cancelled,
    InputTooLong,
    InvalidRequest,
    PromptTooLong,
    StartFailed,
)
from modelyard.settings.settings import Settings
from modelyard.streams import Cancel, whole_answer
from modelyard.types import Burst, GenerateRequest, JSONObject, ModelMetadata, ModelOutput
from modelyard.worker.states import State
from modelyard.worker.worker import ModelWorker
from running import wait_until

KINDS = {"llm": "llama", "text2vec": "embed", "reranker": "rank"}
Start = Callable[..., ModelWorker]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> dict[str, Path]:
    """Tiny models with random weights, one for each type of worker."""
    folder = tmp_path_factory.mktemp("weights")
    return {kind: tiny_gguf.make(folder / f"{name}.gguf", name) for kind, name in KINDS.items()}


def make_echo(weights: dict[str, Path], kind: str, **params: Any) -> Engine:
    taken = ("limit_model_concurrency", "model_alias", "joint_texts", "isolation")
    params = {name: value for name, value in params.items() if name in taken}
    return Echo(Echo.Params(model_name="m", engine="echo", worker_type=kind, **params))


def make_llama(weights: dict[str, Path], kind: str, **params: Any) -> Engine:
    given = {"n_ctx": 512, "n_batch": 64, "n_threads": 1, "limit_model_concurrency": 4, **params}
    return LlamaCpp(LlamaCpp.Params(model_name="m", engine="llama.cpp", worker_type=kind, **given), weights[kind])


def make_hf(weights: dict[str, Path], kind: str, **params: Any) -> Engine:
    """Make one of the engines that need torch: `make test-torch` has it."""
    import tiny_hf
    from modelyard.engines.sentence_transformers import SentenceTransformers
    from modelyard.engines.transformers import Transformers

    path = weights["llm"].parent / f"hf-{kind}"
    if not path.exists():
        {"llm": tiny_hf.make_llm, "text2vec": tiny_hf.make_embedder, "reranker": tiny_hf.make_reranker}[kind](path)
    engine = Transformers if kind == "llm" else SentenceTransformers
    given = {"device": "cpu", "limit_model_concurrency": 4, **params}
    return engine(engine.Params(model_name="m", engine=engine.name, worker_type=kind, **given), path)


def in_a_process(make: Callable[..., Engine]) -> Callable[..., Engine]:
    def make_isolated(weights: dict[str, Path], kind: str, **params: Any) -> Engine:
        return isolated(make(weights, kind, isolation="process", **params), Settings(models_dirs=["/nonexistent"]))

    return make_isolated


ENGINES = {"echo": make_echo, "llama.cpp": make_llama, "isolated llama.cpp": in_a_process(make_llama)}
if importlib.util.find_spec("transformers") is not None:
    ENGINES["hugging face"] = make_hf


@pytest.fixture(scope="module", params=list(ENGINES))
def engine_name(request) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def start_once(engine_name, weights) -> Iterator[Start]:
    """Starts an engine of a type behind a worker; those of the same parameters are shared by the module."""
    made: dict[tuple[str, str], ModelWorker] = {}

    def start(kind: str, **params: Any) -> ModelWorker:
        key = (kind, str(sorted(params.items())))
        if key not in made:
            engine = ENGINES[engine_name](weights, kind, **params)
            made[key] = ModelWorker(engine, lambda path=engine.path: path)
            made[key].start()
        return made[key]

    yield start
    for worker in made.values():
        worker.stop()


@pytest.fixture
def llm(start_once) -> ModelWorker:
    return start_once("llm")


@pytest.fixture
def embedder(start_once) -> ModelWorker:
    return start_once("text2vec")


@pytest.fixture
def reranker(start_once) -> ModelWorker:
    return start_once("reranker")


def chat(text: str = "hello there", **fields: Any) -> GenerateRequest:
    given = {"max_new_tokens": 8, "temperature": 0.0, "seed": 1, **fields}
    return GenerateRequest("m", messages=[{"role": "human", "content": text}], **given)


def raw(text: str = "hello there", **fields: Any) -> GenerateRequest:
    return GenerateRequest("m", prompt=text, **{"max_new_tokens": 8, "temperature": 0.0, "seed": 1, **fields})


def bursts(worker: ModelWorker, request: GenerateRequest) -> list[Burst]:
    with worker.generate_stream(request, Cancel()) as stream:
        return [burst for burst in stream if burst is not None]


def whole(worker: ModelWorker, request: GenerateRequest) -> ModelOutput:
    return worker.generate(request, Cancel())


def cosine(one: Any, other: Any) -> float:
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return float(dot / math.sqrt(sum(a * a for a in one) * sum(b * b for b in other)))


# Generation


@pytest.mark.parametrize("ask", [chat, raw])
def test_an_answer_is_bursts_of_new_text_and_the_last_tells_how_it_ended(llm, ask):
    found = bursts(llm, ask())
    assert all(burst.pieces for burst in found[:-1])
    assert all((burst.finish_reason, burst.usage, burst.metrics) == (None, None, None) for burst in found[:-1])
    assert found[-1].finish_reason in ("stop", "length")
    usage = found[-1].usage
    assert usage is not None
    assert set(usage) - {"prompt_tokens_details"} == {"prompt_tokens", "completion_tokens", "total_tokens"}
    assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"]
    assert usage["completion_tokens"] <= 8
    assert "".join(piece for burst in found for piece in burst.pieces) == whole(llm, ask()).text


def test_the_same_request_is_answered_the_same(llm):
    assert len({whole(llm, chat()).text for _ in range(3)}) == 1


@pytest.mark.parametrize("count", [1, 5, 30])
def test_no_more_tokens_come_than_are_asked_for(llm, count):
    output = whole(llm, raw(max_new_tokens=count))
    assert output.usage is not None
    assert output.usage["completion_tokens"] == count
    assert output.finish_reason == "length"


def test_the_tokens_of_a_raw_prompt_are_those_of_the_count(llm):
    for text in ("a", "hello there", "你好 🙂", "x\n\ny  z"):
        usage = whole(llm, raw(text)).usage
        assert usage is not None
        assert usage["prompt_tokens"] == llm.count_token(text)


def test_an_empty_text_counts_as_nothing_or_the_frame(llm):
    assert llm.count_token("") in (0, 1)


def test_answers_that_run_at_the_same_time_do_not_mix(llm):
    alone = {n: whole(llm, raw(f"prompt number {n}", max_new_tokens=20)).text for n in range(8)}
    found: dict[int, str] = {}

    def ask(number: int) -> None:
        found[number] = whole(llm, raw(f"prompt number {number}", max_new_tokens=20)).text

    threads = [threading.Thread(target=ask, args=(n,)) for n in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found.keys() == alone.keys()
    # Decoded together, a tie between two tokens may fall the other way; most answers are the same to the letter.
    assert sum(found[n] == alone[n] for n in alone) >= len(alone) // 2


def test_a_cancel_ends_an_answer_and_the_next_one_works(llm):
    cancel = Cancel()
    stream = llm.generate_stream(raw(max_new_tokens=400), cancel)
    next(burst for burst in stream if burst)
    cancel.set()
    with pytest.raises(Cancelled):
        list(stream)
    assert llm.gate.free == llm.gate.slots
    assert whole(llm, raw()).text


def test_a_cancel_before_the_first_token_computes_nothing(llm):
    cancel = Cancel()
    cancel.set()
    stream = llm.generate_stream(raw(max_new_tokens=400), cancel)
    with pytest.raises(Cancelled):
        list(stream)
    assert llm.gate.free == llm.gate.slots


def test_a_stream_that_is_closed_unread_leaves_no_thread(llm):
    for _ in range(5):
        stream = llm.generate_stream(raw(max_new_tokens=400), Cancel())
        next(burst for burst in stream if burst)
        stream.close()
    wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("generate-")], "no thread is left")


def test_metadata_tells_name_and_context(llm):
    found = llm.metadata()
    assert isinstance(found, ModelMetadata)
    assert found.model == "m"
    assert found.context_length
    assert found.chat_model is True


# What llama.cpp alone takes


@pytest.fixture(scope="module", params=["llama.cpp", "isolated llama.cpp"])
def with_tools(request, tmp_path_factory) -> Iterator[ModelWorker]:
    """A model with random weights and a token that begins a call: a bias for it makes the model call a tool."""
    folder = tmp_path_factory.mktemp("tools")
    path = tiny_gguf.make(folder / "t.gguf", chat_template=tiny_gguf.TOOL_TEMPLATE, words=[tiny_gguf.CALL])
    engine = ENGINES[request.param]({"llm": path}, "llm", limit_model_concurrency=1, n_ctx=1024)
    worker = ModelWorker(engine, lambda: path)
    worker.start()
    yield worker
    worker.stop()


@pytest.mark.parametrize("cities", [["a", "b"], []])
def test_tool_calls_are_parsed_by_the_library(with_tools, cities):
    properties = {"city": {"enum": cities}} if cities else {}
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    options: JSONObject = {
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": schema}}],
        "tool_choice": "required",
        "logit_bias": {str(tiny_gguf.FIRST_WORD): 100},
    }
    request = GenerateRequest("m", [{"role": "user", "content": "x"}], options=options, max_new_tokens=200)
    bursts = [burst for burst in with_tools.generate_stream(request, Cancel()) if burst is not None]
    parts = [part for burst in bursts for delta in burst.deltas or () for part in delta.get("tool_calls", ())]
    first = [part for part in parts if part["index"] == 0]
    assert [part["function"].get("name") for part in first] == ["weather", *[None] * (len(first) - 1)]
    assert json.loads("".join(part["function"]["arguments"] for part in first)).get("city") in (cities or [None])


@pytest.mark.parametrize("engine_name", ["llama.cpp", "isolated llama.cpp"], indirect=True)
def test_a_prompt_may_be_token_ids_with_the_probabilities_of_the_answer(llm):
    ids = [3 + byte for byte in b"hello"]

    def complete(**fields: Any) -> list[Burst]:
        request = GenerateRequest("m", max_new_tokens=3, temperature=0.0, **fields)
        return [burst for burst in llm.generate_stream(request, Cancel()) if burst is not None]

    def tokens_in(bursts: list[Burst]) -> list[JSONObject]:
        deltas = [delta for burst in bursts for delta in burst.deltas or ()]
        logprobs = [delta["logprobs"] for delta in deltas if delta]  # the echo of the prompt has none
        return [token for entry in logprobs for token in entry["content"]]

    bursts = complete(echo=True, options={"prompt": ids, "logprobs": 2})
    assert whole_answer(iter(bursts)).text == whole_answer(iter(complete(prompt="hello", echo=True))).text
    assert [(token["logprob"] < 0, len(token["top_logprobs"])) for token in tokens_in(bursts)] == [(True, 2)] * 3
    bare = tokens_in(complete(options={"prompt": ids, "logprobs": 0}))
    assert [token["top_logprobs"] for token in bare] == [[]] * 3
    for echo in (True, False):
        with pytest.raises(InvalidRequest):
            complete(options={"prompt": [10**6]}, echo=echo)


@pytest.mark.parametrize("engine_name", ["llama.cpp", "isolated llama.cpp"], indirect=True)
def test_vectors_of_the_library_have_short_numbers_and_come_with_their_tokens(embedder, reranker):
    texts = ["the man", "water"]
    rows = embedder.embeddings(texts, Cancel())
    assert all(float(f"{x:.9g}") == x for row in rows for x in row)
    assert tokens_of(rows) == sum(map(embedder.count_token, texts))
    assert tokens_of(reranker.rerank("water", texts, Cancel()))


# Vectors


def test_one_row_a_text_in_order_whatever_else_is_asked(embedder):
    texts = ["the man", "make time", "", "water", "the man"]
    rows = embedder.embeddings(texts, Cancel())
    assert len(rows) == len(texts)
    assert len({len(row) for row in rows}) == 1
    assert all(math.isfinite(x) for row in rows for x in row)
    assert cosine(rows[0], rows[4]) == pytest.approx(1.0, abs=1e-4)
    for text, row in zip(texts, rows, strict=True):
        assert cosine(row, embedder.embeddings([text], Cancel())[0]) == pytest.approx(1.0, abs=1e-3)


def test_rows_have_the_length_one(embedder):
    for row in embedder.embeddings(["the man", "water"], Cancel()):
        assert math.sqrt(sum(x * x for x in row)) == pytest.approx(1.0, abs=1e-4)


def test_more_texts_than_one_call_takes_keep_their_order(embedder):
    words = ["man", "water", "time", "place", "year", "people", "call"]
    texts = [f"{words[n % 7]} {words[n // 7 % 7]} {words[n // 49]}" for n in range(100)]
    rows = embedder.embeddings(texts, Cancel())
    assert len(rows) == 100
    for number in (0, 31, 32, 33, 64, 99):
        alone = embedder.embeddings([texts[number]], Cancel())[0]
        assert cosine(rows[number], alone) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("joint_texts", [0, 16])
def test_embeddings_of_many_threads_do_not_mix(start_once, joint_texts):
    embedder = start_once("text2vec", joint_texts=joint_texts)
    words = ["man", "water", "time", "place", "year", "people", "call", "part"]
    alone = {word: embedder.embeddings([word], Cancel())[0] for word in words}
    wrong: list[str] = []

    def ask(word: str) -> None:
        for _ in range(5):
            rows = embedder.embeddings([word], Cancel())
            is_same = cosine(rows[0], alone[word]) > 0.999
            if not is_same or tokens_of(rows) not in (None, embedder.count_token(word)):
                wrong.append(word)

    threads = [threading.Thread(target=ask, args=(word,)) for word in words]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


def test_a_reranker_gives_a_score_a_text_in_order(reranker):
    scores = reranker.rerank("water", ["the water", "people", "the water"], Cancel())
    assert len(scores) == 3
    assert all(math.isfinite(score) for score in scores)
    assert scores[0] == pytest.approx(scores[2], abs=1e-3)


def test_an_embedder_asked_to_rank_answers_by_cosine(embedder):
    scores = embedder.rerank("water", ["water", "people"], Cancel())
    assert scores[0] == pytest.approx(1.0, abs=1e-3)
    assert scores[1] < scores[0]


# Its life


@pytest.mark.parametrize("kind", KINDS)
def test_it_can_be_started_again_after_a_stop(engine_name, weights, kind):
    engine = ENGINES[engine_name](weights, kind)
    worker = ModelWorker(engine, lambda: engine.path)
    for _ in range(2):
        worker.start()
        if kind == "llm":
            assert whole(worker, raw()).text
        elif kind == "text2vec":
            assert len(worker.embeddings(["a"], Cancel())) == 1
        else:
            assert len(worker.rerank("a", ["b"], Cancel())) == 1
        worker.stop()


def test_it_starts_under_its_alias(start_once):
    worker = start_once("llm", model_alias="nick")
    assert worker.metadata().model == "nick"
    assert worker.key == "nick@llm"


def test_it_tells_its_progress(engine_name, weights):
    told: list[str] = []
    engine = ENGINES[engine_name](weights, "llm")
    engine.start(told.append)
    engine.stop()
    assert told
    assert all(sentence and "\n" not in sentence for sentence in told)


# llama.cpp alone


@pytest.fixture(scope="module")
def llama(weights) -> Iterator[Start]:
    """Starts llama.cpp; those of the same parameters are shared by the module."""
    made: dict[str, ModelWorker] = {}

    def start(kind: str = "llm", **params: Any) -> ModelWorker:
        key = f"{kind} {sorted(params.items())}"
        if key not in made:
            engine = make_llama(weights, kind, **params)
            made[key] = ModelWorker(engine, lambda path=engine.path: path)
            made[key].start()
        return made[key]

    yield start
    for worker in made.values():
        worker.stop()


def test_a_prompt_longer_than_the_context_is_refused_with_the_numbers_and_the_next_works(llama):
    for ask in (raw, chat):
        with pytest.raises(PromptTooLong, match=r"tokens, model 'm' has a context of 512 \(n_ctx\)"):
            whole(llama(), ask("word " * 2000))
    assert whole(llama(), raw()).text


@pytest.mark.parametrize("kind", ["text2vec", "reranker"])
def test_a_text_too_long_is_named_by_its_index_and_the_next_works(llama, kind):
    worker = llama(kind, truncate="error")
    texts = ["short", "x, " * 3000, "short"]
    with pytest.raises(InputTooLong, match=r"\[1\] has \d+ tokens( with the query)?, model 'm' takes 512") as caught:
        worker.rerank("q", texts, Cancel()) if kind == "reranker" else worker.embeddings(texts, Cancel())
    assert "[1]" in caught.value.errors[0]["field"]
    if kind == "text2vec":
        assert len(worker.embeddings(["short"], Cancel())) == 1
    else:
        assert len(worker.rerank("q", ["short"], Cancel())) == 1


@pytest.mark.parametrize("kind", ["text2vec", "reranker"])
def test_a_cancel_is_looked_at_between_two_calls_of_the_library(llama, monkeypatch, kind):
    worker, cancel, calls = llama(kind), Cancel(), []
    call = worker.engine._call

    def counted(handle: Any, body: dict[str, Any]) -> Any:
        calls.append(len(body.get("input") or body["documents"]))
        cancel.set()
        return call(handle, body)

    monkeypatch.setattr(worker.engine, "_call", counted)
    texts = ["man"] * 100
    with pytest.raises(Cancelled):
        worker.rerank("q", texts, cancel) if kind == "reranker" else worker.embeddings(texts, cancel)
    assert len(calls) == 1
    assert calls[0] < 100
    assert worker.gate.free == worker.gate.slots


@pytest.mark.parametrize("kind", ["text2vec", "reranker"])
def test_a_text_too_long_loses_its_end_by_default_and_its_answer_tells(llama, kind):
    worker, long = llama(kind), "x, y " * 3000

    def ask(*texts: str) -> Any:
        if kind == "reranker":
            return worker.rerank("q", texts, Cancel())
        return worker.embeddings(texts, Cancel())

    found = ask("short", long, "short", long + "z")
    assert (len(found), cut_texts(found)) == (4, 2)
    assert found[1] == found[3] != found[0]
    assert found[0] == pytest.approx(ask("short")[0], abs=1e-3)
    assert cut_texts(ask("short")) == 0


def test_as_much_as_fits_of_a_text_too_long_is_embedded(llama):
    worker, sent = llama("text2vec"), []
    call = worker.engine._call
    text = "man 你好 " * 600
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker.engine, "_call", lambda handle, body: sent.append(body["input"]) or call(handle, body))
        worker.embeddings([text], Cancel())
    ((beginning,),) = sent
    assert text.startswith(beginning)
    assert 508 <= worker.count_token(beginning) <= 512


@pytest.mark.parametrize("kind", ["text2vec", "reranker"])
def test_a_query_too_long_is_cut_too(llama, kind):
    scores = llama(kind).rerank("x, " * 3000, ["short", "y, " * 3000], Cancel())
    assert (len(scores), cut_texts(scores)) == (2, 2)


def test_the_longest_text_that_fits_is_embedded(llama):
    worker = llama("text2vec")
    text = "man " * 600
    while worker.count_token(text) > 512:
        text = text[:-4]
    assert worker.count_token(text) >= 500
    assert len(worker.embeddings([text], Cancel())) == 1


def test_an_echo_repeats_the_prompt_before_the_answer(llama):
    alone = whole(llama(), raw("once upon")).text
    assert whole(llama(), raw("once upon", echo=True)).text == f"once upon{alone}"
    assert "hello there" in whole(llama(), chat("hello there", echo=True)).text


SYSTEM_FIRST = (
    "{% for m in messages %}{% if m['role'] == 'system' and not loop.first %}"
    "{{ raise_exception('System message must be at the beginning.') }}{% endif %}{% endfor %}"
)
ALTERNATING = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/...') }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def with_template(tmp_path_factory) -> Iterator[Callable[[str], ModelWorker]]:
    """Starts an LLM with a chat template; it is stopped at the end of the module."""
    made: dict[str, ModelWorker] = {}

    def start(template: str) -> ModelWorker:
        if template not in made:
            path = tiny_gguf.make(tmp_path_factory.mktemp("template") / "m.gguf", chat_template=template)
            made[template] = ModelWorker(make_llama({"llm": path}, "llm"), lambda: path)
            made[template].start()
        return made[template]

    yield start
    for worker in made.values():
        worker.stop()


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize(
    ("template", "roles", "sentence"),
    [
        (SYSTEM_FIRST, ["human", "system"], "System message must be at the beginning."),
        (ALTERNATING, ["human", "human"], "Conversation roles must alternate user/assistant/..."),
        ("", ["human", "ai", "ai"], "Cannot have 2 or more assistant messages at the end of the list."),
    ],
)
def test_messages_that_the_chat_template_refuses_are_the_callers_fault(with_template, template, roles, sentence, echo):
    worker = with_template(template + tiny_gguf.CHAT_TEMPLATE)
    messages = [{"role": role, "content": "x"} for role in roles]
    with pytest.raises(InvalidRequest) as caught:
        whole(worker, GenerateRequest("m", messages=messages, max_new_tokens=2, echo=echo))
    assert caught.value.errors == [{"field": "messages", "message": sentence}]
    assert whole(worker, chat()).usage


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% if %}", r"Expected an expression, got 'end of statement block' \(line 1\)"),
        ("{{ messages | nosuchfilter }}", r"No filter named 'nosuchfilter'\. \(line 1\)"),
        ("{{ no_function() }}", "llama.cpp refuses it; see the log of the start"),
    ],
)
def test_a_chat_template_that_can_not_be_read_leaves_raw_prompts(with_template, template, reason):
    worker = with_template(template)
    assert whole(worker, raw()).text
    with pytest.raises(InvalidRequest, match=f"its chat template can't be read: {reason}; send a raw prompt") as caught:
        whole(worker, chat())
    assert caught.value.errors[0]["field"] == "messages"
    assert (worker.metadata().chat_model, worker.metadata().prompt_chat_template) == (False, None)


def test_an_embedder_has_no_use_for_a_chat_template(tmp_path):
    path = tiny_gguf.make(tmp_path / "m.gguf", "embed", chat_template="{% if %}")
    worker = ModelWorker(make_llama({"text2vec": path}, "text2vec"), lambda: path)
    worker.start()
    assert len(worker.embeddings(["a"], Cancel())) == 1
    worker.stop()


@pytest.mark.parametrize("kind", ["text2vec", "reranker"])
@pytest.mark.parametrize(
    ("query", "texts", "field"),
    [
        ("q", ["x, " * 3000, "short"], "input[0]"),
        ("q", ["short", "x, " * 3000], "input[1]"),
        ("x, " * 3000, ["short", "short"], "query"),
    ],
)
def test_of_a_query_and_texts_the_one_that_is_too_long_is_named(llama, kind, query, texts, field):
    with pytest.raises(InputTooLong) as caught:
        llama(kind, truncate="error").rerank(query, texts, Cancel())
    assert str(caught.value).startswith(f"{field} has ")
    assert [error["field"] for error in caught.value.errors] == [field]


def test_a_prompt_that_is_too_long_is_named_by_its_field(llama):
    for ask, field in ((raw, "prompt"), (chat, "messages")):
        with pytest.raises(PromptTooLong) as caught:
            whole(llama(), ask("word " * 2000))
        assert [error["field"] for error in caught.value.errors] == [field]


def test_an_answer_stays_within_the_context_that_the_request_allows(llm):
    for ask in (raw, chat):
        usage = whole(llm, ask("hello there", max_new_tokens=30)).usage
        assert usage is not None
        prompt_tokens = usage["prompt_tokens"]
        output = whole(llm, ask("hello there", max_new_tokens=30, context_len=prompt_tokens + 3))
        assert output.usage == {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": 3,
            "total_tokens": prompt_tokens + 3,
        }
        assert output.finish_reason == "length"
        with pytest.raises(PromptTooLong, match=rf"context_len: is {prompt_tokens}, and the prompt has"):
            whole(llm, ask("hello there", context_len=prompt_tokens))


def test_a_stop_text_ends_the_answer_before_it(llama):
    text = whole(llama(), raw(max_new_tokens=30)).text
    stop = text[len(text) // 2]
    output = whole(llama(), raw(max_new_tokens=30, stop=[stop]))
    assert output.text == text[: text.index(stop)]
    assert output.finish_reason == "stop"


def test_metrics_are_told_when_asked_for(llama):
    metrics = whole(llama(), raw(metrics=True)).metrics
    assert metrics is not None
    assert metrics["completion_tokens"] == 8
    assert whole(llama(), raw()).metrics is None


def test_the_seed_decides_what_chance_brings(llama):
    hot = {"temperature": 1.5, "max_new_tokens": 20}
    one, same, other = (whole(llama(), raw(**hot, seed=seed)).text for seed in (1, 1, 2))
    assert one == same != other


def test_a_lone_surrogate_is_a_clear_error_and_the_next_works(llama):
    for ask, field in ((raw, "prompt"), (chat, "messages")):
        with pytest.raises(InvalidRequest, match=f"{field}: .*surrogates not allowed"):
            whole(llama(), ask("\ud800"))
    with pytest.raises(InvalidRequest, match="UTF-8"):
        llama().count_token("\ud800")
    assert whole(llama(), raw()).text


@pytest.mark.parametrize(
    "content", [b"", b"GGUF", b"no weights at all" * 100, None], ids=["empty", "cut", "text", "gone"]
)
def test_a_file_that_is_no_model_fails_the_start_with_its_name(tmp_path, content):
    path = tmp_path / "bad.gguf"
    if content is not None:
        path.write_bytes(content)
    engine = make_llama({"llm": path}, "llm")
    with pytest.raises((BadModelFile, FileNotFoundError), match=r"bad\.gguf"):
        engine.start(lambda sentence: None)
    engine.stop()


def test_an_embedder_started_as_an_llm_fails_the_start_and_not_the_first_request(weights):
    engine = make_llama({"llm": weights["text2vec"]}, "llm")
    worker = ModelWorker(engine, lambda: engine.path)
    with pytest.raises(StartFailed, match=r"embed\.gguf was loaded, but does not work as llm"):
        worker.start()
    assert worker.state is State.FAILED
    assert engine._server is None


SOON = """
import sys
from pathlib import Path
from modelyard.engines.llama_cpp import LlamaCpp
for _ in range(150):
    params = LlamaCpp.Params(model_name="m", engine="llama.cpp", n_ctx=64, n_batch=16, n_threads=1)
    engine = LlamaCpp(params, Path(sys.argv[1]))
    engine.start(lambda sentence: None)
    engine.stop()
"""


def test_a_stop_right_after_the_start_does_not_hang(weights):
    # The library hangs for ever when it is freed before its loop has begun: in a child, so that it can be killed.
    subprocess.run([sys.executable, "-c", SOON, str(weights["llm"])], check=True, timeout=60, capture_output=True)


def test_its_socket_is_for_this_user_alone_and_gone_after_the_stop(weights):
    engine = make_llama(weights, "llm")
    engine.start(lambda sentence: None)
    folder = engine._folder.path
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "llama.sock").is_socket()
    engine.stop()
    assert not folder.exists()
