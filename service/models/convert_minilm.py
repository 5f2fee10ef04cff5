"""Converts all-MiniLM-L6-v2, a BERT of sentence-transformers, to GGUF for llama.cpp.

The tensors are those of the original, with matrices rounded to 16 bits. The same input gives the same bytes, also with
other versions of the ``gguf`` package (0.18 and 0.19 were compared), so the catalogue has a checksum of the result.
Importing this module imports numpy and gguf: do it only to convert.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import gguf
import numpy as np

CONTEXT, WIDTH, HIDDEN, LAYERS, HEADS = 512, 384, 1536, 6, 12
EPSILON = 1e-12
MAX_HEADER = 1 << 24
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORD_START = "\u2581"

KEPT_WHOLE = ("position_embd", "token_types")

_INPUT = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
}
_LAYER = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


class _Tensor(NamedTuple):
    """A tensor of the original: its name in GGUF, its shape, and the position of its bytes in the file."""

    name: str
    shape: tuple[int, ...]
    start: int
    length: int
    halved: bool

    @property
    def size(self) -> int:
        """Bytes in the GGUF file."""
        return self.length // 2 if self.halved else self.length


def convert(weights: Path, vocabulary: Path, made: Path, progress: Callable[[int, int], None]) -> None:
    """Write ``made`` from a safetensors file and its word list; ``progress`` gets the bytes done and all bytes.

    Raises ValueError if the files are not those of this model, OSError if they can't be read or written.
    """
    with weights.open("rb") as file:
        tensors = list(_tensors(_index(file)))
        writer = gguf.GGUFWriter(made, "bert")
        _describe(writer)
        _add_vocabulary(writer, _words(vocabulary))
        for tensor in tensors:
            kind = np.dtype(np.float16 if tensor.halved else np.float32)
            writer.add_tensor_info(tensor.name, tensor.shape, kind, tensor.size)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        with made.open("ab") as out:
            _copy(file, tensors, out, progress)


def _index(file: BinaryIO) -> dict[str, Any]:
    """Return name → {shape, dtype, offsets}, the offsets counted from the file's start.

    The format: eight bytes of length, that much JSON, then the raw tensors.
    https://github.com/huggingface/safetensors#format
    """
    (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
    if not 0 < length <= MAX_HEADER:
        raise ValueError(f"a safetensors file with a header of {length} bytes")
    index: dict[str, Any] = json.loads(file.read(length))
    index.pop("__metadata__", None)
    for entry in index.values():
        start, end = entry["data_offsets"]
        entry["start"], entry["length"] = 8 + length + start, end - start
    return index


def _tensors(index: dict[str, Any]) -> Iterator[_Tensor]:
    """Yield the tensors in the order of the GGUF file."""
    names = dict(_INPUT)
    for layer in range(LAYERS):
        names |= {f"encoder.layer.{layer}.{old}": f"blk.{layer}.{new}" for old, new in _LAYER.items()}
    for old, new in names.items():
        for part in ("weight", "bias"):
            entry = index.get(f"{old}.{part}")
            if entry is None and part == "bias" and old.endswith("embeddings"):
                continue
            if entry is None or entry["dtype"] != "F32":
                raise ValueError(f"no 32 bit tensor {old}.{part}")
            shape = tuple(entry["shape"])
            halved = part == "weight" and len(shape) > 1 and new not in KEPT_WHOLE
            yield _Tensor(f"{new}.{part}", shape, entry["start"], entry["length"], halved)


def _describe(writer: gguf.GGUFWriter) -> None:
    writer.add_name("all-MiniLM-L6-v2")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(EPSILON)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)


def _add_vocabulary(writer: gguf.GGUFWriter, words: list[str]) -> None:
    writer.add_tokenizer_model("bert")
    writer.add_token_list([_token(word) for word in words])
    writer.add_token_types([_token_type(word) for word in words])
    writer.add_token_type_count(2)
    writer.add_pad_token_id(words.index("[PAD]"))
    writer.add_unk_token_id(words.index("[UNK]"))
    writer.add_bos_token_id(words.index("[CLS]"))
    writer.add_eos_token_id(words.index("[SEP]"))
    writer.add_sep_token_id(words.index("[SEP]"))
    writer.add_mask_token_id(words.index("[MASK]"))
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)


def _words(vocabulary: Path) -> list[str]:
    # Not splitlines(): it would also split at characters that are words here.
    words = vocabulary.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    missing = [word for word in SPECIAL if word not in words]
    if missing:
        raise ValueError(f"no {missing[0]} in {vocabulary.name}")
    return words


def _is_bracketed(word: str) -> bool:
    return word[:1] == "[" and word[-1:] == "]" and word != "[]"


def _token(word: str) -> str:
    """Return a word of BERT's list in llama.cpp's form, which marks the start of words, not their continuation."""
    if _is_bracketed(word):
        return word
    return word.removeprefix("##") if word.startswith("##") and word != "##" else WORD_START + word


def _token_type(word: str) -> gguf.TokenType:
    if not _is_bracketed(word):
        return gguf.TokenType.NORMAL
    return gguf.TokenType.CONTROL if word in SPECIAL else gguf.TokenType.UNUSED


def _copy(file: BinaryIO, tensors: list[_Tensor], out: BinaryIO, progress: Callable[[int, int], None]) -> None:
    """Append the tensors, one at a time in memory, each at the position in the header."""
    total = sum(tensor.size for tensor in tensors)
    done = 0
    for tensor in tensors:
        out.write(bytes(-out.tell() % gguf.GGUF_DEFAULT_ALIGNMENT))
        file.seek(tensor.start)
        data = np.frombuffer(file.read(tensor.length), dtype="<f4")
        out.write((data.astype("<f2") if tensor.halved else data).tobytes())
        done += tensor.size
        progress(done, total)
    out.write(bytes(-out.tell() % gguf.GGUF_DEFAULT_ALIGNMENT))
