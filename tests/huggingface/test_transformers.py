"""The engine transformers over real models of the library: small ones, random or made to give one answer."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tiny_hf
import torch
from modelyard.engines.transformers import Transformers
from modelyard.engines.transformers_rows import Row, Sampling, Token
from modelyard.errors import Cancelled, InvalidRequest, PromptTooLong, StartFailed
from modelyard.streams import Cancel
from modelyard.types import Burst, GenerateRequest, ModelOutput
from modelyard.worker.worker import ModelWorker
from running import wait_until

CALL = ("<tool_call>", '{"name": "weather", ', '"arguments": {"city": "Oslo"}}', "</tool_call>")
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
Start = Callable[..., ModelWorker]


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Iterator[Start]:
    """Starts a model behind a worker; those of the same arguments are shared by the module."""
    made: dict[str, ModelWorker] = {}

    def start(*answer: str, **params: Any) -> ModelWorker:
        key = f"{answer} {sorted(params.items())}"
        if key not in made:
            path = tiny_hf.make_llm(tmp_path_factory.mktemp("llm"), answer=answer)
            given = {"device": "cpu", **params}
            engine = Transformers(Transformers.Params(model_name="m", engine="transformers", **given), path)
            made[key] = ModelWorker(engine, lambda: path)
            made[key].start()
        return made[key]

    yield start
    for worker in made.values():
        worker.stop()


def raw(text: str = "hello there", **fields: Any) -> GenerateRequest:
    return GenerateRequest("m", prompt=text, **{"max_new_tokens": 12, "temperature": 0.0, **fields})


def chat(text: str = "hello there", **fields: Any) -> GenerateRequest:
    return GenerateRequest("m", messages=[{"role": "user", "content": text}], **{"temperature": 0.0, **fields})


def whole(worker: ModelWorker, request: GenerateRequest) -> ModelOutput:
    return worker.generate(request, Cancel())


def deltas(worker: ModelWorker, request: GenerateRequest) -> list[dict[str, Any]]:
    with worker.generate_stream(request, Cancel()) as stream:
        return [delta for burst in stream if burst is not None for delta in burst.deltas or []]


def test_rows_of_different_lengths_join_and_leave_and_are_answered_as_alone(start, monkeypatch):
    worker = start()
    requests = [raw("ab" * length, max_new_tokens=30 + length) for length in (1, 7, 3, 45, 20, 2)]
    alone = [whole(worker, request).text for request in requests]
    step, sizes, may_go_on = worker.engine._batch._step, [], threading.Semaphore(0)

    def held() -> None:
        sizes.append(len(worker.engine._batch._rows))
        assert may_go_on.acquire(timeout=60)
        step()

    monkeypatch.setattr(worker.engine._batch, "_step", held)
    with ThreadPoolExecutor(len(requests)) as pool:
        answers = []
        for number, request in enumerate(requests, 1):
            answers.append(pool.submit(whole, worker, request))
            wait_until(lambda number=number: sizes[-1:] == [number] or may_go_on.release(), "it has joined")
        may_go_on.release(1000)
        assert [answer.result(60).text for answer in answers] == alone
    assert max(sizes) == len(requests)


SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**SMALL, "intermediate_size": 128, "num_key_value_heads": 2, "head_dim": 16}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "GPT2": {"n_embd": 64, "n_layer": 2, "n_head": 4},
    "Bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4},
    "Qwen3": GROUPED,
    "Mistral": {**GROUPED, "sliding_window": 12},
    "Gemma3Text": {**GROUPED, "sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]},
    "Mamba": {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8},
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_any_causal_model_answers_as_the_library_does(tmp_path, architecture):
    """Those whose cache has a window, or states, compute one request at a time."""
    path = tiny_hf.make_causal_lm(tmp_path / "m", architecture, **ARCHITECTURES[architecture])
    worker = ModelWorker(Transformers(Transformers.Params(model_name="m", engine="transformers", device="cpu"), path))
    worker.engine.path, worker._locate = path, lambda: path
    worker.start()
    prompts = ["hello there", "a", "a longer prompt of many more tokens than the others"]
    with ThreadPoolExecutor(len(prompts)) as pool:
        texts = list(pool.map(lambda prompt: whole(worker, raw(prompt, max_new_tokens=16)).text, prompts))
    tokenizer, model = worker.engine._tokenizer, worker.engine._model
    for prompt, text in zip(prompts, texts, strict=True):
        ids = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        tokens = model.generate(**ids, max_new_tokens=16, do_sample=False)[0, ids["input_ids"].shape[1] :]
        expected = tokenizer.decode(tokens, skip_special_tokens=True)
        assert text == expected.rstrip("\ufffd") or text == expected
    worker.stop()


def test_a_seed_repeats_an_answer_and_another_one_does_not(start):
    worker = start()
    hot = {"temperature": 1.5, "max_new_tokens": 30}
    first = whole(worker, raw(seed=7, **hot)).text
    assert whole(worker, raw(seed=7, **hot)).text == first
    assert whole(worker, raw(seed=8, **hot)).text != first
    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(whole, worker, raw(text, seed=7, **hot)) for text in ("other words", "hello there")]
        assert others[1].result(60).text == first


def test_sampling_takes_no_token_that_its_limits_exclude(start):
    worker, greedy = start(), whole(start(), raw()).text
    for limits in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-6}):
        assert whole(worker, raw(**{"temperature": 5.0, "seed": 1, **limits})).text == greedy, limits


def test_penalties_keep_a_token_from_coming_twice(start):
    batch = start().engine._batch
    for penalty in ({"presence_penalty": 100.0}, {"frequency_penalty": 100.0}, {"repetition_penalty": 1e6}):
        row = Row([5], 20, Sampling(temperature=0.0, **penalty), Cancel())
        batch.submit(row)
        ids: list[int] = []
        while not row.has_ended or len(ids) < 20:
            ids += [token.id for token in row.take(30) if isinstance(token, Token)]
        assert len(set(ids)) == 20, penalty


def test_a_bias_forces_a_token(start):
    worker = start()
    token = worker.engine._tokenizer("q")["input_ids"][0]
    assert whole(worker, raw(options={"logit_bias": {str(token): 100}}, max_new_tokens=5)).text == "qqqqq"
    assert whole(worker, raw(options={"logit_bias": {"99999999": 100}}, max_new_tokens=5)).text


def test_probabilities_are_those_of_the_model(start):
    worker = start()
    (entry, *_) = [
        entry
        for delta in deltas(worker, raw(options={"logprobs": True, "top_logprobs": 3}, max_new_tokens=4))
        for entry in delta["logprobs"]["content"]
    ]
    engine = worker.engine
    with torch.inference_mode():
        ids = torch.tensor([engine._tokenizer("hello there")["input_ids"]])
        logprobs = torch.log_softmax(engine._model(input_ids=ids).logits[0, -1].float(), dim=-1)
    best = torch.topk(logprobs, 3)
    assert entry["logprob"] == pytest.approx(best.values[0].item(), abs=1e-4)
    assert [other["logprob"] for other in entry["top_logprobs"]] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert entry["token"] == entry["top_logprobs"][0]["token"] == engine._tokenizer.decode([best.indices[0].item()])
    assert bytes(entry["bytes"]).decode() == entry["token"]


def test_a_stop_text_and_a_stop_token_end_an_answer(start):
    worker = start("one", " two", " three")
    assert whole(worker, chat()).text == "one two three"
    output = whole(worker, chat(stop=["two"]))
    assert (output.text, output.finish_reason) == ("one ", "stop")
    token = worker.engine._tokenizer(" three")["input_ids"][0]
    output = whole(worker, chat(stop_token_ids=[token]))
    assert (output.text, output.finish_reason) == ("one two", "stop")
    output = whole(worker, chat(max_new_tokens=1))
    assert (output.text, output.finish_reason) == ("one", "length")
    assert output.usage is not None
    assert output.usage["completion_tokens"] == 1


def test_letters_of_several_tokens_come_whole(start):
    worker = start("é你🙂!")
    with worker.generate_stream(chat(), Cancel()) as stream:
        pieces = [piece for burst in stream if burst is not None for piece in burst.pieces]
    assert pieces == ["é", "你", "🙂", "!"]


def test_a_call_of_a_tool_is_a_delta_and_no_text(start):
    worker = start(*CALL)
    request = chat(options={"tools": TOOLS, "tool_choice": "auto"})
    output = whole(worker, request)
    assert (output.text, output.finish_reason) == ("", "tool_calls")
    (delta,) = deltas(worker, request)
    (call,) = delta["tool_calls"]
    assert (call["index"], call["type"], call["function"]["name"]) == (0, "function", "weather")
    assert json.loads(call["function"]["arguments"]) == {"city": "Oslo"}
    assert whole(worker, chat()).text == "".join(CALL), "without tools it is text"


def test_a_template_reads_tools_and_the_arguments_of_earlier_calls(start):
    engine = start().engine
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bergen"}'}}
    messages = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "rain", "tool_call_id": "c"},
    ]
    prompt = engine._prompt(chat(options={"tools": TOOLS, "messages": messages}))
    assert '"name": "weather"' in prompt
    assert "<tool_call>Bergen</tool_call>" in prompt
    assert "<|im_start|>tool\nrain<|im_end|>" in prompt


def test_a_tool_that_must_be_called_is_refused(start):
    with pytest.raises(InvalidRequest, match="tool_choice"):
        whole(start(), chat(options={"tools": TOOLS, "tool_choice": "required"}))


def test_a_prompt_longer_than_the_context_is_refused_with_the_numbers(start):
    worker = start(context_length=64)
    with pytest.raises(PromptTooLong, match=r"has 100 tokens, model 'm' has a context of 64 \(context_length\)"):
        whole(worker, raw("a" * 100))
    assert whole(worker, raw("a" * 60, max_new_tokens=100)).usage["total_tokens"] == 64


def test_a_cancel_ends_an_answer_within_a_step_and_its_batch_goes_on(start):
    worker, cancel = start(), Cancel()
    stream = worker.generate_stream(raw(max_new_tokens=400), cancel)
    next(burst for burst in stream if isinstance(burst, Burst))
    cancel.set()
    with pytest.raises(Cancelled):
        list(stream)
    assert whole(worker, raw()).text
    assert worker.gate.free == worker.gate.slots


def test_a_failure_of_the_library_fails_its_requests_and_the_next_works(start, monkeypatch):
    worker = start()
    with monkeypatch.context() as patch:
        patch.setattr(worker.engine._batch, "_step", lambda: 1 / 0)
        with pytest.raises(Exception, match="ZeroDivisionError"):
            whole(worker, raw())
    assert whole(worker, raw()).text


def test_weights_in_pickle_files_are_refused(tmp_path: Path):
    path = tiny_hf.make_llm(tmp_path / "m")
    model = tiny_hf.LlamaForCausalLM.from_pretrained(path)
    torch.save(model.state_dict(), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    engine = Transformers(Transformers.Params(model_name="m", engine="transformers", device="cpu"), path)
    with pytest.raises(StartFailed, match="safetensors"):
        engine.start(lambda sentence: None)
    allowed = Transformers.Params(model_name="m", engine="transformers", device="cpu", allow_pickle=True)
    engine = Transformers(allowed, path)
    engine.start(lambda sentence: None)
    engine.stop()


def test_code_beside_the_weights_is_not_run(tmp_path: Path):
    path = tiny_hf.make_llm(tmp_path / "m")
    config = json.loads((path / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"}}
    (path / "config.json").write_text(json.dumps(config))
    (path / "own.py").write_text("raise SystemExit('it was run')")
    engine = Transformers(Transformers.Params(model_name="m", engine="transformers", device="cpu"), path)
    with pytest.raises(StartFailed, match="custom code"):
        engine.start(lambda sentence: None)
