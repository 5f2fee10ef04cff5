"""Makes folders of Hugging Face with small models: their weights are random, or made to give one answer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

CHAT_TEMPLATE = (
    "{% if tools %}<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}</tools>"
    '<tool_call>{"name": NAME, "arguments": ARGUMENTS}</tool_call>{% endif %}'
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.arguments.city }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML's, with tools in the form of Hermes."""

WIDTH = 64
_SPECIAL = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
_WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "man", "make", "time", "water", "place", "year")
_WORDS += ("people", "call", "part", "hello", "there", "a", "b", "short")


def make_llm(path: Path, context: int = 512, answer: Sequence[str] = (), seed: int = 0) -> Path:
    """Write a model of text, with one token a byte, into ``path``.

    With an ``answer`` it answers that to anything: its pieces are tokens of their own, unless they are single bytes.
    """
    tokenizer = _byte_tokenizer()
    tokenizer.add_tokens([piece for piece in answer if len(piece.encode()) > 1 and piece.isascii()])
    tokenizer.save_pretrained(path)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    if answer:
        _teach(model, tokenizer, "".join(answer))
    model.save_pretrained(path, safe_serialization=True)
    return path


def make_causal_lm(path: Path, architecture: str, **shape: object) -> Path:
    """Write a random model of any architecture, such as ``GPT2``, with one token a byte, into ``path``."""
    tokenizer = _byte_tokenizer()
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = getattr(transformers, f"{architecture}Config")(vocab_size=len(tokenizer), **ends, **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(path, safe_serialization=True)
    return path


def _teach(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, answer: str) -> None:
    """Make each token of ``answer`` follow the one before it, and the first the end of a prompt.

    The layers add nothing, so the last token alone decides. No token may be in the answer twice.
    """
    tokens = tokenizer(f"\n{answer}", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    assert len(set(tokens)) == len(tokens), "a token has two followers"
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        for token, follower in pairwise(tokens):
            model.lm_head.weight[follower] = model.model.embed_tokens.weight[token] * 100


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {
        token: number for number, token in enumerate([*_SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    tokenizer = Tokenizer(BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
    )


def make_embedder(path: Path, seed: int = 0) -> Path:
    """Write an embedder of sentence-transformers into ``path``, with a prompt named ``query``."""
    inner = path / "inner"
    _word_tokenizer().save_pretrained(inner)
    torch.manual_seed(seed)
    BertModel(_bert_config()).save_pretrained(inner, safe_serialization=True)
    words = modules.Transformer(str(inner), max_seq_length=128)
    pooling = modules.Pooling(words.get_embedding_dimension(), pooling_mode="mean")
    SentenceTransformer(modules=[words, pooling], prompts={"query": "hello "}, device="cpu").save(str(path))
    return path


def make_reranker(path: Path, seed: int = 0) -> Path:
    """Write a CrossEncoder with one label into ``path``."""
    _word_tokenizer().save_pretrained(path)
    torch.manual_seed(seed)
    model = BertForSequenceClassification(_bert_config(num_labels=1, id2label={0: "LABEL_0"}))
    model.save_pretrained(path, safe_serialization=True)
    return path


def _bert_config(**more: object) -> BertConfig:
    return BertConfig(
        vocab_size=len(_WORDS),
        hidden_size=WIDTH,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        **more,
    )


def _word_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(_WORDS)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=128,
    )
