"""How a model of llama.cpp starts: with adapters, a projector, parts, a chosen context; and what it is refused for."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_gguf
from modelyard.engines import llama_cpp
from modelyard.engines.llama_cpp import LlamaCpp
from modelyard.errors import BadModelFile, InvalidRequest, StartFailed
from modelyard.models.inspection import inspect
from modelyard.streams import Cancel, whole_answer
from modelyard.types import GenerateRequest
from modelyard.worker.worker import ModelWorker
from pictures import BLUE, RED, data_url, png, question

pytest.importorskip("xllamacpp")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("weights")
    tiny_gguf.split(tiny_gguf.make(made / "m.gguf"), 3)
    tiny_gguf.make(made / "embed.gguf", "embed")
    tiny_gguf.make_adapter(made / "lora.gguf")
    tiny_gguf.make_adapter(made / "wide.gguf", width=96)
    tiny_gguf.make_adapter(made / "qwen.gguf", architecture="qwen2")
    tiny_gguf.make(made / "thinking.gguf", chat_template=tiny_gguf.THINKING_TEMPLATE)
    tiny_gguf.make_projector(made / "mmproj.gguf")
    tiny_gguf.make_projector(made / "narrow.gguf", width=32)
    return made


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., ModelWorker]]:
    started: list[ModelWorker] = []

    def start(path: str = "m.gguf", **params: Any) -> ModelWorker:
        given = {"n_ctx": 512, "n_threads": 1, "limit_model_concurrency": 2, **params}
        engine = LlamaCpp(LlamaCpp.Params(model_name="m", engine="llama.cpp", **given))
        worker = ModelWorker(
            engine,
            lambda: folder / path,
            locate_files=lambda: {name: folder / name for name in engine.file_names},
        )
        started.append(worker)
        worker.start()
        return worker

    yield start
    for worker in started:
        worker.stop()


def answered(worker: ModelWorker, prompt: str = "hello there") -> str:
    request = GenerateRequest("m", prompt=prompt, max_new_tokens=8, temperature=0.0)
    return whole_answer(worker.generate_stream(request, Cancel())).text


def test_an_adapter_counts_by_its_scale(start):
    plain = answered(start())
    assert answered(start(lora=["lora.gguf=0"])) == plain
    texts = {answered(start(lora=lora)) for lora in (["lora.gguf"], ["lora.gguf=-1"])}
    assert len(texts | {plain}) == 3
    assert answered(start(lora=["lora.gguf", "lora.gguf=-1"])) == plain, "two that cancel each other out"


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ("m.gguf", r"lora: .*/m\.gguf holds a model, not a LoRA adapter"),
        ("mmproj.gguf", r"lora: .*/mmproj\.gguf holds a projector, not a LoRA adapter"),
        ("qwen.gguf", r"qwen\.gguf is for models of the architecture 'qwen2', and m\.gguf is of 'llama'"),
        ("wide.gguf", r"attn_q\.weight\.lora_a is for a length of 96, m\.gguf has 64"),
    ],
)
def test_a_file_that_is_not_an_adapter_of_this_model_is_refused(start, lora, message):
    with pytest.raises(BadModelFile, match=message):
        start(lora=[lora])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"mmproj": "lora.gguf"}, r"mmproj: .*/lora\.gguf holds an adapter, not a projector of images"),
        ({"mmproj": "narrow.gguf"}, r"llama\.cpp refuses .*/m\.gguf with narrow\.gguf: .* see the log above"),
        ({"path": "embed.gguf", "worker_type": "text2vec", "mmproj": "mmproj.gguf"}, "a text2vec takes no images"),
        ({"lora": ["lora.gguf=big"]}, "lora: 'big' is not a number"),
    ],
)
def test_other_files_that_do_not_fit_are_refused(start, params, message):
    with pytest.raises(StartFailed, match=message):
        start(**params)


def test_a_model_in_several_files_answers_as_the_whole_one(start):
    assert answered(start("m-00001-of-00003.gguf")) == answered(start())


def test_the_chosen_context_is_logged_and_in_the_metadata(start, monkeypatch, caplog, folder):
    weights = inspect(folder / "m.gguf")
    free = weights.weights_bytes + 2 * 1024 * 2 * (weights.kv_bytes_per_token or 0)
    monkeypatch.setattr(llama_cpp, "free_memory", lambda: free)
    with caplog.at_level(logging.INFO):
        worker = start(n_ctx=0)
    assert (worker.context_length, worker.metadata().metadata["n_ctx"]) == (1024, "auto")
    assert "n_ctx = 1024 (auto): 2 slots" in caplog.text
    assert worker.engine.memory_needed() == weights.memory(1024, 2)
    answered(worker, "a" * 1000)


def test_a_cache_of_fewer_bits_is_taken(start, folder, monkeypatch):
    assert answered(start(cache_type="f16"))
    needed = [_engine(folder, cache_type=kind).memory_needed() for kind in ("f16", "q8_0")]
    assert needed[0] - needed[1] == round(512 * 2 * 512 * (1 - 17 / 32))


def _engine(folder: Path, **params: Any) -> LlamaCpp:
    given = {"n_ctx": 512, "limit_model_concurrency": 2, **params}
    return LlamaCpp(LlamaCpp.Params(model_name="m", engine="llama.cpp", **given), folder / "m.gguf")


def test_adapters_and_projectors_count_in_what_a_model_needs(folder):
    engine = _engine(folder, lora=["lora.gguf"], mmproj="mmproj.gguf")
    alone = engine.memory_needed()
    engine.files = {name: folder / name for name in engine.file_names}
    assert engine.memory_needed() - alone == sum((folder / name).stat().st_size for name in engine.file_names)


def test_settings_of_gpus_do_not_stop_a_build_without_them(start, caplog):
    worker = start(n_gpu_layers=99, split_mode="row", tensor_split=["1", "1"])
    assert answered(worker)
    assert "n_gpu_layers, split_mode, tensor_split: without effect" in caplog.text


def test_a_model_that_does_not_fit_into_memory_is_refused_before_it_is_loaded(start, monkeypatch):
    monkeypatch.setattr(llama_cpp, "free_memory", lambda: 1000.0)
    with pytest.raises(StartFailed, match=r"needs at least 1 MB of memory, 0 MB are free: stop another model"):
        start(mmproj="mmproj.gguf")


# Prompts of conversations


def test_conversations_with_one_system_prompt_each_find_their_own_again(start):
    worker = start(n_ctx=2048)
    chats = {name: [{"role": "system", "content": "S" * 300}, user(f"{name} " * 40)] for name in "ab"}
    shares = []
    for name in "ababab":
        request = GenerateRequest("m", messages=list(chats[name]), max_new_tokens=8, temperature=0.0)
        bursts = [burst for burst in worker.generate_stream(request, Cancel()) if burst is not None]
        usage = bursts[-1].usage or {}
        shares.append((usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]))
        text = "".join(piece for burst in bursts for piece in burst.pieces)
        chats[name] += [{"role": "ai", "content": text}, user("more " * 10)]
    prompts, cached = zip(*shares, strict=True)
    assert cached[:2] == (0, 0)
    assert all(cached[turn] >= prompts[turn - 2] for turn in range(2, 6)), "all of the turn before"


def test_a_model_thinks_unless_the_request_says_not_to(start):
    worker = start("thinking.gguf")

    def prompt_tokens(**extra: Any) -> int:
        request = GenerateRequest("m", messages=[user("a")], max_new_tokens=1, extra=extra)
        usage = whole_answer(worker.generate_stream(request, Cancel())).usage or {}
        return int(usage["prompt_tokens"])

    plain = prompt_tokens()
    assert prompt_tokens(reasoning_effort="low") == plain
    assert prompt_tokens(reasoning_effort="none") == plain + len("<think>\n\n</think>\n\n")
    assert prompt_tokens(chat_template_kwargs={"enable_thinking": False}) == prompt_tokens(reasoning_effort="none")


def user(text: str) -> dict[str, str]:
    return {"role": "human", "content": text}


# Images


def described(worker: ModelWorker, *urls: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    """Return the answer to a question about images, and its usage."""
    options = {"messages": [question(*urls)]}
    messages = [{"role": "user", "content": "what is this"}]
    request = GenerateRequest("m", messages=messages, options=options, max_new_tokens=8, temperature=0.0, **fields)
    output = whole_answer(worker.generate_stream(request, Cancel()))
    return output.text, output.usage or {}


def test_a_model_with_a_projector_sees_images(start):
    worker = start(mmproj="mmproj.gguf")
    assert worker.takes_images
    red, usage = described(worker, data_url(png(RED)))
    blue, _ = described(worker, data_url(png(BLUE)))
    none, usage_of_text = described(worker)
    assert len({red, blue, none}) == 3
    assert usage["prompt_tokens"] - usage_of_text["prompt_tokens"] >= 16, "one for each patch"
    assert described(worker, data_url(png(RED)))[0] == red
    two, _ = described(worker, data_url(png(RED)), data_url(png(BLUE)))
    assert two not in (red, blue)


def test_a_model_with_a_projector_takes_raw_prompts_and_no_token_ids(start):
    worker = start(mmproj="mmproj.gguf")
    assert answered(worker) == answered(start())
    with pytest.raises(InvalidRequest, match="prompt: is not supported by model 'm'"):
        worker.generate_stream(GenerateRequest("m", options={"prompt": [104, 105]}), Cancel())


def test_a_text_that_looks_like_the_place_of_an_image_is_a_text(start):
    worker = start(mmproj="mmproj.gguf")
    messages = [question(data_url(png()), text="<__media__> <image>")]
    request = GenerateRequest("m", messages=[{"role": "user", "content": "a"}], options={"messages": messages})
    request.max_new_tokens = 2
    assert whole_answer(worker.generate_stream(request, Cancel())).usage is not None


def test_an_image_that_the_library_can_not_read_is_refused_and_no_program_is_run(start, tmp_path, monkeypatch):
    worker = start(mmproj="mmproj.gguf")
    program = tmp_path / "ffprobe"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path / 'was-run'}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(InvalidRequest, match="messages: have an image that can't be read"):
        described(worker, data_url(png(data=b"too short")))
    assert not (tmp_path / "was-run").exists()
    assert described(worker, data_url(png()))[0]


def test_images_are_refused_before_the_engine_by_a_model_without_a_projector(start):
    worker = start()
    assert not worker.takes_images
    with pytest.raises(InvalidRequest, match=r"content\[1\]: is an image, and model 'm' takes text alone"):
        described(worker, data_url(png()))
    with pytest.raises(InvalidRequest, match="images are never fetched"):
        described(start(mmproj="mmproj.gguf"), "http://127.0.0.1:1/a.png")
