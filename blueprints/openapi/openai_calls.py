"""The calls of OpenAI's API, Anthropic's messages and rerankers: their bodies, answers and errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...errors import UnknownModel
from ...types import JSONObject
from ...wire import images
from ...wire.terms import BATCH, INTERACTIVE
from ..openai import anthropic, chat_fields, errors, responses, schemas
from ..openai.events import EVENTS_TYPE
from ..request.bodies import JSON_TYPE
from .calls import COMPUTES, LLM, READS, TEXT2VEC, Body, Call, ErrorShape
from .shapes import (
    ANYTHING,
    FILLED,
    NUMBER,
    OBJECT,
    STRING,
    any_of_fields,
    array,
    either,
    nullable,
    one_of,
    record,
    ref,
)

OPENAI = ErrorShape("OpenAI", JSON_TYPE, ref("OpenAIError"), errors.status_of)
ANTHROPIC = ErrorShape("Anthropic", JSON_TYPE, ref("AnthropicError"), errors.anthropic_status_of)
EVENTS = EVENTS_TYPE.partition(";")[0]

_NAME: JSONObject = {"type": "string", "pattern": f"^{chat_fields.NAME.pattern}$"}
_TOOL = record({"type": one_of("function"), "function": record({"name": _NAME}, {"parameters": OBJECT})})
_CHOICE_WORDS = one_of("none", "auto", "required")
_TOOL_CHOICE = either(
    _CHOICE_WORDS,
    record({"type": one_of("function"), "function": record({"name": STRING})}),
    record({"type": one_of("allowed_tools"), "allowed_tools": record({"tools": array(OBJECT)}, {"mode": STRING})}),
)
_TOOL_CHOICE_OF_RESPONSE = either(
    _CHOICE_WORDS,
    record({"type": one_of("function"), "name": STRING}),
    record({"type": one_of("allowed_tools"), "tools": array(OBJECT)}, {"mode": STRING}),
)
_STOP = either(STRING, array(STRING, most=schemas.MAX_STOPS))
_PART = either(
    STRING,
    record({"type": one_of("text"), "text": STRING}),
    record({"type": one_of("refusal"), "refusal": STRING}),
    record({"type": one_of(images.KIND), images.KIND: record({"url": STRING}, {"detail": STRING})}),
)
_CONTENT = either(STRING, array(_PART))
_CALLS = array(record({"function": record({"name": STRING}, {"arguments": STRING})}))
_MESSAGE = either(
    record(
        {
            "role": one_of(*(role for role in chat_fields.ROLES if role not in ("assistant", "tool"))),
            "content": _CONTENT,
        }
    ),
    record(
        {"role": one_of("assistant")},
        {"content": nullable(_CONTENT), "tool_calls": nullable(_CALLS), "reasoning_content": ANYTHING},
    ),
    record({"role": one_of("tool"), "content": _CONTENT, "tool_call_id": STRING}),
)
_BLOCKS = either(STRING, array(record({"type": STRING})))
_FUNCTION_OF_RESPONSE = record({"type": one_of("function"), "name": _NAME}, {"parameters": OBJECT, "strict": ANYTHING})
_NAMESPACE_OF_RESPONSE = record(
    {"type": one_of("namespace"), "name": _NAME, "tools": array(_FUNCTION_OF_RESPONSE, least=1)}
)

_PRIORITY: JSONObject = {"priority": either(one_of(INTERACTIVE, BATCH), NUMBER), "service_tier": ANYTHING}
_TERMS: JSONObject = {**_PRIORITY, "prompt_cache_key": ANYTHING, "user": ANYTHING}

_TOKEN_IDS = array({"type": "integer", "minimum": 0, "maximum": schemas.MAX_TOKEN_ID}, least=1)
_PROMPTS = either(FILLED, _TOKEN_IDS, array(either(FILLED, _TOKEN_IDS), least=1, most=schemas.MAX_PROMPTS))
_HELLO: JSONObject = {"role": "user", "content": "Name three colors."}

_CHAT = Body(
    schemas.CHAT,
    {"model": LLM, "messages": [_HELLO], "max_completion_tokens": 20},
    more={
        **_TERMS,
        "messages": array(_MESSAGE, least=1, most=chat_fields.MAX_MESSAGES),
        "stop": _STOP,
        "tools": {"items": _TOOL},
        "tool_choice": _TOOL_CHOICE,
    },
    required=("messages",),
)
_COMPLETION = Body(
    schemas.COMPLETION,
    {"model": LLM, "prompt": "The colors are", "max_tokens": 20},
    more={**_TERMS, "prompt": _PROMPTS, "stop": _STOP},
    required=("prompt",),
)
_COUNTED_MESSAGES = Body(
    schemas.ChatSchema(only=[name for name in anthropic.COPIED if name != "max_tokens"]),
    {"model": LLM, "messages": [_HELLO]},
    more={
        "messages": array(
            record({"role": one_of("user", "assistant"), "content": _BLOCKS}), least=1, most=chat_fields.MAX_MESSAGES
        ),
        "system": _BLOCKS,
        "stop_sequences": _STOP,
        "tools": array(record({"name": _NAME, "input_schema": OBJECT}), most=schemas.MAX_TOOLS),
        "tool_choice": record({"type": one_of("auto", "any", "none", "tool")}),
    },
    required=("messages",),
)
_MESSAGES = replace(
    _COUNTED_MESSAGES,
    schema=schemas.ChatSchema(only=anthropic.COPIED),
    example={"model": LLM, "messages": [_HELLO], "max_tokens": 20},
    more={**_COUNTED_MESSAGES.more, **_PRIORITY, "metadata": ANYTHING},
    required=("messages", "max_tokens"),
)
_COUNTED_RESPONSE = Body(
    schemas.ChatSchema(only=responses.COPIED),
    {"model": LLM, "input": "Name three colors.", "max_output_tokens": 20},
    more={
        "input": either(STRING, array(OBJECT, least=1)),
        "instructions": ANYTHING,
        "max_output_tokens": {"type": "integer", "minimum": 1},
        "tools": array(either(_FUNCTION_OF_RESPONSE, _NAMESPACE_OF_RESPONSE), most=schemas.MAX_TOOLS),
        "tool_choice": _TOOL_CHOICE_OF_RESPONSE,
        "text": ANYTHING,
    },
    required=("input",),
)
_RESPONSE = replace(_COUNTED_RESPONSE, more={**_COUNTED_RESPONSE.more, **_TERMS})
_TEXTS = array(either(STRING, record({"text": STRING})), least=1, most=schemas.MAX_INPUTS)

CALLS: Mapping[str, Call] = {
    "models": Call("List the models of all workers.", ref("Models"), OPENAI, READS),
    "models_name": Call("Return one model; its name may have slashes.", ref("Model"), OPENAI, (*READS, UnknownModel)),
    "chat_completions": Call(
        "Answer messages with text, tool calls or JSON.",
        ref("ChatCompletion"),
        OPENAI,
        COMPUTES,
        body=_CHAT,
        streams={EVENTS: ref("ChatCompletionChunk")},
    ),
    "chat_completions_input_tokens": Call(
        "Count the tokens of the texts and tools of a chat.", ref("PromptTokens"), OPENAI, COMPUTES, body=_CHAT
    ),
    "completions": Call(
        "Continue raw prompts.",
        ref("Completion"),
        OPENAI,
        COMPUTES,
        body=_COMPLETION,
        streams={EVENTS: ref("CompletionChunk")},
    ),
    "responses": Call(
        "Answer items, as OpenAI's responses: nothing is stored.",
        ref("Response"),
        OPENAI,
        COMPUTES,
        body=_RESPONSE,
        streams={EVENTS: ref("ResponseEvent")},
    ),
    "responses_input_tokens": Call(
        "Count the tokens of the texts and tools of a response's request.",
        ref("ResponseInputTokens"),
        OPENAI,
        COMPUTES,
        body=_COUNTED_RESPONSE,
    ),
    "messages": Call(
        "Answer messages, as Anthropic's API.",
        ref("Message"),
        ANTHROPIC,
        COMPUTES,
        body=_MESSAGES,
        streams={EVENTS: ref("MessageEvent")},
    ),
    "messages_count_tokens": Call(
        "Count the tokens of the texts and tools of a message's request.",
        ref("PromptTokens"),
        ANTHROPIC,
        COMPUTES,
        body=_COUNTED_MESSAGES,
    ),
    "embeddings": Call(
        "Return a vector for each text.",
        ref("Embeddings"),
        OPENAI,
        COMPUTES,
        body=Body(
            schemas.EMBEDDINGS,
            {"model": TEXT2VEC, "input": ["red", "green"]},
            more={**_PRIORITY, "input": either(FILLED, array(FILLED, least=1, most=schemas.MAX_INPUTS))},
            required=("input",),
        ),
    ),
    "rerank": Call(
        "Rank texts, best first: `documents` in the shape of Jina and Cohere, `texts` in that of Hugging Face.",
        either(ref("Ranking"), ref("Ranks")),
        OPENAI,
        COMPUTES,
        body=Body(
            schemas.RERANK,
            {"model": TEXT2VEC, "query": "a color", "documents": ["red", "one"], "top_n": 1},
            more={**_PRIORITY, "documents": _TEXTS, "texts": _TEXTS},
            rules=any_of_fields("documents", "texts"),
        ),
    ),
    "beta_relevance": Call(
        "Return the score of each document, in their order, as DB-GPT's API.",
        ref("Relevance"),
        OPENAI,
        COMPUTES,
        body=Body(
            schemas.RELEVANCE,
            {"model": TEXT2VEC, "query": "a color", "documents": ["red", "one"]},
            more={**_PRIORITY, "documents": _TEXTS},
            required=("documents",),
        ),
    ),
}
"""By the name of the endpoint."""
