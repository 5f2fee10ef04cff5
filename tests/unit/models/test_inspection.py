"""What weights show without being loaded: GGUF files, folders of Hugging Face, and files that lie."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny_gguf
from modelyard.errors import BadModelFile
from modelyard.models.catalog import Catalog
from modelyard.models.inspection import inspect


def make_safetensors(path: Path, header: Any, length: int | None = None) -> None:
    data = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(data) if length is None else length) + data + b"\0" * 64)


def make_folder(path: Path, config: dict[str, Any]) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    tensors = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "BF16", "shape": [3, 4]},
        "b": {"dtype": "F32", "shape": []},
    }
    make_safetensors(path / "model-00001-of-00002.safetensors", tensors)
    make_safetensors(path / "model-00002-of-00002.safetensors", {"c": {"dtype": "BF16", "shape": [5]}})
    return path


def test_the_default_model_of_text_and_its_memory(models_dir):
    found = inspect(models_dir / Catalog.load().get("smollm2-135m").model_path)
    assert (found.format, found.architecture, found.worker_type, found.engine) == ("GGUF", "llama", "llm", "llama.cpp")
    assert (found.numbers, found.context_length, found.fault) == ("Q4_1", 8192, None)
    # 30 layers, 3 heads of 64 numbers for keys and for values, 2 bytes each.
    assert found.kv_bytes_per_token == 30 * 3 * 64 * 2 * 2
    assert found.memory(2048, 8) == found.weights_bytes + 30 * 3 * 64 * 2 * 2 * 2048 * 8


@pytest.mark.parametrize(("kind", "worker_type"), [("llama", "llm"), ("embed", "text2vec"), ("rank", "reranker")])
def test_a_gguf_file_of_each_type(tmp_path, kind, worker_type):
    assert inspect(tiny_gguf.make(tmp_path / "m.gguf", kind)).worker_type == worker_type


def test_a_folder_of_hugging_face(tmp_path):
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "hidden_size": 64,
        "max_position_embeddings": 4096,
    }
    found = inspect(make_folder(tmp_path / "Tiny", config))
    assert (found.engine, found.worker_type, found.fault) == ("transformers", "llm", None)
    assert (found.parameters, found.numbers, found.context_length) == (3 * 4 + 1 + 5, "BF16", 4096)
    assert found.kv_bytes_per_token == 2 * 2 * 16 * 2 * 2
    assert found.weights_bytes == sum(path.stat().st_size for path in (tmp_path / "Tiny").glob("*.safetensors"))


@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_chat_template_stands_in_one_of_two_files(tmp_path, file):
    folder = make_folder(tmp_path / "m", {"architectures": ["LlamaForCausalLM"]})
    assert inspect(folder).chat_template is None
    (folder / file).write_text(
        "{{ tools }}" if file.endswith("jinja") else json.dumps({"chat_template": "{{ tools }}"})
    )
    assert inspect(folder).chat_template == "{{ tools }}"


def test_what_no_engine_runs_has_the_reason(tmp_path):
    found = inspect(make_folder(tmp_path / "m", {"architectures": ["ViTForImageClassification"]}))
    assert (found.worker_type, found.fault) == (None, "no engine here runs a ViTForImageClassification")


@pytest.mark.parametrize(
    ("header", "length"),
    [
        *(({"a": 5}, None), ([], None), ({}, 2**60)),
        *(({"a": {"dtype": "F32", "shape": shape}}, None) for shape in (["x"], [2**62, "x"], [-5], [1.5], [True])),
        ({"a": {"dtype": "F32", "shape": [2**60] * 100_000}}, None),
    ],
)
def test_a_damaged_safetensors_file_is_named(tmp_path, header, length):
    folder = make_folder(tmp_path / "m", {"architectures": ["LlamaForCausalLM"]})
    make_safetensors(folder / "model-00001-of-00002.safetensors", header, length)
    with pytest.raises(BadModelFile, match=r"model-00001-of-00002\.safetensors is not a safetensors file"):
        inspect(folder)


def test_a_pipe_among_the_weights_is_not_opened(tmp_path):
    folder = make_folder(tmp_path / "m", {"architectures": ["LlamaForCausalLM"]})
    os.mkfifo(folder / "pipe.safetensors")
    assert inspect(folder).parameters == 3 * 4 + 1 + 5


def test_lengths_that_can_not_be_count_as_not_given(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for name in ("context_length", "embedding_length", "block_count", "attention.head_count"):
        writer.add_int32(f"llama.{name}", -3)
    writer.add_tensor("output.weight", np.zeros(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = inspect(tmp_path / "m.gguf")
    assert (found.context_length, found.embedding_length, found.memory(2048, 8)) == (None, None, None)


def test_what_is_neither_is_refused(tmp_path):
    (tmp_path / "page.html").write_text("<html>")
    for path in (tmp_path / "gone", tmp_path / "page.html", tmp_path):
        with pytest.raises(BadModelFile):
            inspect(path)


def test_the_tokens_that_fit_into_so_much_memory(models_dir):
    found = inspect(models_dir / Catalog.load().get("smollm2-135m").model_path)
    memory = found.memory(2048, 8)
    assert memory is not None
    assert (found.tokens_within(memory, 8), found.tokens_within(memory - 1, 8)) == (2048, 2047)
    assert (found.tokens_within(10**12, 8), found.tokens_within(found.weights_bytes - 1, 8)) == (8192, 0)


def test_a_model_without_a_cache_has_its_whole_context_or_none(tmp_path):
    found = inspect(tiny_gguf.make(tmp_path / "m.gguf", "embed"))
    assert found.memory(2048, 8) == found.weights_bytes
    assert found.tokens_within(found.weights_bytes, 8) == found.context_length
    assert found.tokens_within(found.weights_bytes - 1, 8) == 0
