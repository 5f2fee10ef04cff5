"""Makes GGUF files of half a megabyte with random weights: they load in milliseconds, and only lack sense."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from pathlib import Path

import gguf
import numpy as np

KINDS = ("llama", "embed", "rank")
WIDTH, HIDDEN, LAYERS = 64, 128, 2
FIRST_WORD = 259

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CALL = '<tool_call>\n{"name": "'
TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>\n"
    'Answer <tool_call>\n{"name": ..., "arguments": ...}\n</tool_call><|im_end|>\n{% endif %}'
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{% for call in m['tool_calls'] or [] %}"
    '<tool_call>\n{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n'
    "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat template with tools. The calls that it describes begin with `CALL`."""
THINKING_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['reasoning_content'] %}<think>\n"
    "{{ m['reasoning_content'] }}\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""A chat template of a model that thinks, unless it is told not to."""
_BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_WORDS = (
    "the of to and in is it you that he was for on are with as his they be at one have this from or "
    "had by hot but some what there we can out other were all your when up use word how said an each "
    "she which do their time if will way about many then them would write like so these her long make "
    "thing see him two has look more day could go come did my sound no most number who over know "
    "water than call first people may down side been now find any new work part take get place made "
    "live where after back little only round man year came show every good me give our under very "
    "through just"
)


def make(
    path: Path,
    kind: str = "llama",
    context: int | None = None,
    seed: int = 0,
    chat_template: str | None = None,
    words: Sequence[str] = (),
) -> Path:
    """Write a model of one of ``KINDS`` to ``path`` and return it; the same arguments give the same bytes.

    An LLM has ChatML's template, others have none, unless there is a ``chat_template``. The tokens of an LLM are bytes,
    and ``words`` from the id `FIRST_WORD` on.
    """
    random = np.random.default_rng(seed)
    if kind == "llama":
        writer = gguf.GGUFWriter(path, "llama")
        tokens = [*_byte_tokens(), *words]
        _describe_llama(writer, context or 2048, tokens)
        tensors = _llama_tensors(random, len(tokens))
    else:
        writer = gguf.GGUFWriter(path, "bert")
        pooling = gguf.PoolingType.RANK if kind == "rank" else gguf.PoolingType.MEAN
        _describe_bert(writer, kind, context or 512, pooling)
        tensors = _bert_tensors(random, kind, context or 512)
    if chat_template is not None or kind == "llama":
        writer.add_chat_template(CHAT_TEMPLATE if chat_template is None else chat_template)
    for name, tensor in tensors:
        writer.add_tensor(name, tensor.astype(np.float32))
    _write(writer)
    return path


def _describe_llama(writer: gguf.GGUFWriter, context: int, tokens: Sequence[str]) -> None:
    heads = 4
    writer.add_name("tiny-llama")
    _describe_shape(writer, context, heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    words = [gguf.TokenType.USER_DEFINED] * (len(tokens) - FIRST_WORD)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * 256 + words)
    writer.add_token_merges(["Ġ t"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)


def _describe_bert(writer: gguf.GGUFWriter, kind: str, context: int, pooling: gguf.PoolingType) -> None:
    tokens = _bert_tokens()
    special = len(_BERT_SPECIAL)
    writer.add_name(f"tiny-bert-{kind}")
    _describe_shape(writer, context, heads=2)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(pooling)
    writer.add_tokenizer_model("bert")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * special + [gguf.TokenType.NORMAL] * (len(tokens) - special))
    writer.add_token_type_count(2)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(3)
    writer.add_sep_token_id(3)
    writer.add_mask_token_id(4)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)


def _describe_shape(writer: gguf.GGUFWriter, context: int, heads: int) -> None:
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(context)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_head_count(heads)


def _byte_tokens() -> list[str]:
    """Return GPT-2's letters for the 256 bytes, after three special tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    letters = [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
    return ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters]


def _bert_tokens() -> list[str]:
    """Return letters and words; those that start a word are marked with U+2581."""
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    starts = ["\u2581" + word for word in [*letters, *_WORDS.split()]]
    return [*_BERT_SPECIAL, *starts, *letters]


def _llama_tensors(random: np.random.Generator, vocabulary: int) -> Iterator[tuple[str, np.ndarray]]:
    def weights(*shape: int) -> np.ndarray:
        return random.normal(0, 0.1, shape)

    yield "token_embd.weight", weights(vocabulary, WIDTH)
    yield "output_norm.weight", np.ones(WIDTH)
    yield "output.weight", weights(vocabulary, WIDTH)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        yield f"{block}.attn_norm.weight", np.ones(WIDTH)
        yield f"{block}.ffn_norm.weight", np.ones(WIDTH)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield f"{block}.{name}.weight", weights(WIDTH, WIDTH)
        yield f"{block}.ffn_gate.weight", weights(HIDDEN, WIDTH)
        yield f"{block}.ffn_up.weight", weights(HIDDEN, WIDTH)
        yield f"{block}.ffn_down.weight", weights(WIDTH, HIDDEN)


def _bert_tensors(random: np.random.Generator, kind: str, context: int) -> Iterator[tuple[str, np.ndarray]]:
    def linear(name: str, rows: int, columns: int) -> Iterator[tuple[str, np.ndarray]]:
        yield f"{name}.weight", random.normal(0, 0.15, (rows, columns))
        yield f"{name}.bias", np.zeros(rows)

    def norm(name: str) -> Iterator[tuple[str, np.ndarray]]:
        yield f"{name}.weight", np.ones(WIDTH)
        yield f"{name}.bias", np.zeros(WIDTH)

    yield "token_embd.weight", random.normal(0, 1, (len(_bert_tokens()), WIDTH))
    yield "position_embd.weight", random.normal(0, 0.015, (context, WIDTH))
    yield "token_types.weight", random.normal(0, 0.015, (2, WIDTH))
    yield from norm("token_embd_norm")
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield from linear(f"{block}.{name}", WIDTH, WIDTH)
        yield from norm(f"{block}.attn_output_norm")
        yield from linear(f"{block}.ffn_up", HIDDEN, WIDTH)
        yield from linear(f"{block}.ffn_down", WIDTH, HIDDEN)
        yield from norm(f"{block}.layer_output_norm")
    if kind == "rank":
        yield from linear("cls", WIDTH, WIDTH)
        yield from linear("cls.output", 1, WIDTH)


def split(whole: Path, parts: int) -> list[Path]:
    """Write the tensors of a model to so many files beside it, as llama.cpp's gguf-split does, and return their paths.

    The first part has all metadata.
    """
    reader = gguf.GGUFReader(whole)
    tensors = [(tensor.name, tensor.data, tensor.tensor_type) for tensor in reader.tensors]
    size = -(-len(tensors) // parts)
    paths = [whole.with_name(f"{whole.stem}-{number:05}-of-{parts:05}.gguf") for number in range(1, parts + 1)]
    for number, path in enumerate(paths):
        writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
        if number == 0:
            _copy_metadata(reader, writer)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", parts)
        writer.add_int32("split.tensors.count", len(tensors))
        for name, data, kind in tensors[number * size : (number + 1) * size]:
            writer.add_tensor(name, data, raw_dtype=kind)
        _write(writer)
    return paths


def _copy_metadata(reader: gguf.GGUFReader, writer: gguf.GGUFWriter) -> None:
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            inner = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], inner)


def make_adapter(path: Path, architecture: str = "llama", width: int = WIDTH, rank: int = 4) -> Path:
    """Write a LoRA adapter for the queries of a model that is ``width`` wide, and return its path."""
    random = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    for layer in range(LAYERS):
        name = f"blk.{layer}.attn_q.weight"
        writer.add_tensor(f"{name}.lora_a", random.normal(0, 1, (rank, width)).astype(np.float32))
        writer.add_tensor(f"{name}.lora_b", random.normal(0, 1, (width, rank)).astype(np.float32))
    _write(writer)
    return path


def make_projector(path: Path, width: int = WIDTH) -> Path:
    """Write a projector of images for a model that is ``width`` wide, and return its path: LLaVA's, of 16 patches."""
    random = np.random.default_rng(2)
    inner, hidden, patch, size = 32, 64, 8, 32
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_bool("clip.use_gelu", True)
    writer.add_string("clip.projector_type", "mlp")
    lengths = {"image_size": size, "patch_size": patch, "embedding_length": inner, "feed_forward_length": hidden}
    for name, length in {**lengths, "block_count": 2, "attention.head_count": 2, "projection_dim": width}.items():
        writer.add_uint32(f"clip.vision.{name}", length)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("clip.vision.image_mean", [0.5] * 3)
    writer.add_array("clip.vision.image_std", [0.5] * 3)

    def weights(name: str, *shape: int) -> None:
        writer.add_tensor(name, random.normal(0, 0.3, shape).astype(np.float32))

    def linear(name: str, rows: int, columns: int) -> None:
        weights(f"{name}.weight", rows, columns)
        weights(f"{name}.bias", rows)

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(inner, np.float32))
        writer.add_tensor(f"{name}.bias", np.zeros(inner, np.float32))

    weights("v.class_embd", inner)
    weights("v.patch_embd.weight", inner, 3, patch, patch)
    weights("v.position_embd.weight", (size // patch) ** 2 + 1, inner)
    norm("v.pre_ln")
    for layer in range(2):
        block = f"v.blk.{layer}"
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            linear(f"{block}.{name}", inner, inner)
        norm(f"{block}.ln1")
        norm(f"{block}.ln2")
        linear(f"{block}.ffn_up", hidden, inner)
        linear(f"{block}.ffn_down", inner, hidden)
    linear("mm.0", width, inner)
    linear("mm.2", width, width)
    _write(writer)
    return path


def _write(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
