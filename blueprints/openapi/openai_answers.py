"""The JSON Schemas of the answers, events and errors of OpenAI's API, Anthropic's messages and rerankers."""

from __future__ import annotations

from ...types import JSONObject
from .shapes import (
    ANYTHING,
    BOOLEAN,
    INTEGER,
    NUMBER,
    OBJECT,
    STRING,
    array,
    either,
    nullable,
    one_of,
    record,
    ref,
)

_FINISH_REASON = one_of("stop", "length", "tool_calls", "content_filter", "function_call")
_MORE_USAGE: JSONObject = {"prompt_tokens_details": OBJECT, "completion_tokens_details": OBJECT}
_TOKEN: JSONObject = {"token": STRING, "logprob": NUMBER, "bytes": nullable(array(INTEGER))}
_LOGPROBS = nullable(record({"content": nullable(array(record({**_TOKEN, "top_logprobs": array(record(_TOKEN))})))}))
_FUNCTION = record({"name": STRING, "arguments": STRING})


def _head(kind: str) -> JSONObject:
    return {"id": STRING, "object": one_of(kind), "created": INTEGER, "model": STRING, "system_fingerprint": STRING}


def _choice(content: JSONObject, finish_reason: JSONObject, logprobs: JSONObject = _LOGPROBS) -> JSONObject:
    return record({"index": INTEGER, **content, "logprobs": logprobs, "finish_reason": finish_reason})


_USAGE = record({"prompt_tokens": INTEGER, "completion_tokens": INTEGER, "total_tokens": INTEGER}, _MORE_USAGE)
_USAGE_OF_TEXTS = record({"prompt_tokens": INTEGER, "total_tokens": INTEGER})
_MESSAGE = record(
    {"role": one_of("assistant"), "content": nullable(STRING), "refusal": nullable(STRING)},
    {"reasoning_content": STRING, "tool_calls": array(ref("ToolCall"))},
)
_DELTA = record(
    {},
    {
        "role": one_of("assistant"),
        "content": nullable(STRING),
        "reasoning_content": STRING,
        "tool_calls": array(
            record(
                {"index": INTEGER},
                {
                    "id": STRING,
                    "type": one_of("function"),
                    "function": record({}, {"name": STRING, "arguments": STRING}),
                },
            )
        ),
    },
)
_TEXT_LOGPROBS = nullable(OBJECT)
_CHUNK_USAGE: JSONObject = {"usage": nullable(ref("Usage"))}
_MODEL = record(
    {
        "id": STRING,
        "object": one_of("model"),
        "created": INTEGER,
        "owned_by": STRING,
        "capabilities": array(one_of("completion", "embedding", "rerank", "vision")),
        "status": record({"value": one_of("loaded", "loading", "unloaded", "stopped", "failed")}),
    },
    {"max_model_len": INTEGER, "alias_of": STRING},
)

_RESPONSE_PART = record({"type": one_of("output_text"), "text": STRING, "annotations": array(ANYTHING)})
_RESPONSE_ITEM = either(
    record(
        {
            "id": STRING,
            "type": one_of("message"),
            "status": STRING,
            "role": one_of("assistant"),
            "content": array(_RESPONSE_PART),
        }
    ),
    record(
        {
            "id": STRING,
            "type": one_of("function_call"),
            "status": STRING,
            "call_id": STRING,
            "name": STRING,
            "arguments": STRING,
        },
        {"namespace": STRING},
    ),
    record(
        {
            "id": STRING,
            "type": one_of("reasoning"),
            "status": STRING,
            "summary": array(ANYTHING),
            "content": array(record({"type": one_of("reasoning_text"), "text": STRING})),
        }
    ),
)
_RESPONSE_USAGE = record(
    {
        "input_tokens": INTEGER,
        "input_tokens_details": record({"cached_tokens": INTEGER}),
        "output_tokens": INTEGER,
        "output_tokens_details": record({"reasoning_tokens": INTEGER}),
        "total_tokens": INTEGER,
    }
)
_RESPONSE = record(
    {
        "id": STRING,
        "object": one_of("response"),
        "created_at": INTEGER,
        "status": one_of("completed", "incomplete", "in_progress", "failed"),
        "error": nullable(record({"code": STRING, "message": STRING})),
        "incomplete_details": nullable(record({"reason": STRING})),
        "model": STRING,
        "output": array(_RESPONSE_ITEM),
        "parallel_tool_calls": BOOLEAN,
        "store": {"type": "boolean", "enum": [False]},
        "temperature": NUMBER,
        "top_p": NUMBER,
        "usage": nullable(_RESPONSE_USAGE),
    }
)

_MESSAGE_BLOCK = either(
    record({"type": one_of("text"), "text": STRING}),
    record({"type": one_of("thinking"), "thinking": STRING, "signature": STRING}),
    record({"type": one_of("tool_use"), "id": STRING, "name": STRING, "input": OBJECT}),
)
_ANTHROPIC_MESSAGE = record(
    {
        "id": STRING,
        "type": one_of("message"),
        "role": one_of("assistant"),
        "model": STRING,
        "content": array(_MESSAGE_BLOCK),
        "stop_reason": nullable(one_of("end_turn", "max_tokens", "stop_sequence", "tool_use")),
        "stop_sequence": nullable(STRING),
        "usage": record({"input_tokens": INTEGER, "output_tokens": INTEGER}, {"cache_read_input_tokens": INTEGER}),
    }
)

SCHEMAS: JSONObject = {
    "Model": _MODEL,
    "Models": record({"object": one_of("list"), "data": array(ref("Model"))}),
    "Usage": _USAGE,
    "ToolCall": record({"id": STRING, "type": one_of("function"), "function": _FUNCTION}),
    "ChatCompletion": record(
        {
            **_head("chat.completion"),
            "choices": array(_choice({"message": _MESSAGE}, _FINISH_REASON), least=1),
        },
        {"usage": ref("Usage")},
    ),
    "ChatCompletionChunk": record(
        {
            **_head("chat.completion.chunk"),
            "choices": array(_choice({"delta": _DELTA}, nullable(_FINISH_REASON))),
        },
        _CHUNK_USAGE,
    ),
    "Completion": record(
        {
            **_head("text_completion"),
            "choices": array(_choice({"text": STRING}, _FINISH_REASON, _TEXT_LOGPROBS), least=1),
        },
        {"usage": ref("Usage")},
    ),
    "CompletionChunk": record(
        {
            **_head("text_completion"),
            "choices": array(_choice({"text": STRING}, nullable(_FINISH_REASON), _TEXT_LOGPROBS)),
        },
        _CHUNK_USAGE,
    ),
    "Response": _RESPONSE,
    "ResponseEvent": record(
        {"type": STRING, "sequence_number": INTEGER},
        {"response": ref("Response"), "item": OBJECT, "part": OBJECT, "delta": STRING, "output_index": INTEGER},
    ),
    "ResponseInputTokens": record({"object": one_of("response.input_tokens"), "input_tokens": INTEGER}),
    "Message": _ANTHROPIC_MESSAGE,
    "MessageEvent": record(
        {
            "type": one_of(
                *("message_start", "content_block_start", "content_block_delta", "content_block_stop"),
                *("message_delta", "message_stop", "ping", "error"),
            )
        },
        {"message": ref("Message"), "index": INTEGER, "content_block": OBJECT, "delta": OBJECT, "usage": OBJECT},
    ),
    "PromptTokens": record({"input_tokens": INTEGER}),
    "Embeddings": record(
        {
            "object": one_of("list"),
            "data": array(
                record({"object": one_of("embedding"), "index": INTEGER, "embedding": either(array(NUMBER), STRING)})
            ),
            "model": STRING,
            "usage": _USAGE_OF_TEXTS,
        }
    ),
    "Ranking": record(
        {
            "id": STRING,
            "results": array(record({"index": INTEGER, "relevance_score": NUMBER}, {"document": OBJECT})),
        },
        {"model": STRING, "usage": _USAGE_OF_TEXTS, "meta": OBJECT},
    ),
    "Ranks": array(record({"index": INTEGER, "score": NUMBER}, {"text": STRING})),
    "Relevance": record({"object": one_of("list"), "model": STRING, "data": array(NUMBER), "usage": ref("Usage")}),
    "OpenAIError": record(
        {
            "error": record(
                {"message": STRING, "type": STRING, "param": nullable(STRING), "code": nullable(STRING)},
            )
        }
    ),
    "AnthropicError": record({"type": one_of("error"), "error": record({"type": STRING, "message": STRING})}),
}
"""The components."""
