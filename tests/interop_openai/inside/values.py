"""A plugin of pytest for openai-python's tests: values that a server can take, in place of those that are made up.

Their calls are written from OpenAI's document for a mock server. A response is made of no input, a chat may have no
token, and a token has the name ``foo``. All other fields stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import wraps
from typing import Any

from openai import omit
from openai.resources import completions, embeddings
from openai.resources.chat.completions import completions as chat
from openai.resources.responses import input_tokens, responses

NO_STATE = {"background": False, "conversation": omit, "previous_response_id": omit, "prompt": omit}
VALUES: Mapping[tuple[type, str], Mapping[str, Any]] = {
    (chat.Completions, "create"): {
        "functions": omit,
        "logit_bias": {"5": 0},
        "max_completion_tokens": 16,
        "max_tokens": 16,
    },
    (completions.Completions, "create"): {"best_of": 1, "logit_bias": {"5": 0}},
    (embeddings.Embeddings, "create"): {"dimensions": 384},
    (responses.Responses, "create"): NO_STATE,
    (input_tokens.InputTokens, "count"): {**NO_STATE, "model": "gpt-6-astra"},
}
"""The fields of each call that are replaced where a test gives them, or left out."""
NEEDED = {responses.Responses: {"input": "string", "model": "gpt-6-astra"}}
NEEDED[input_tokens.InputTokens] = NEEDED[responses.Responses]
"""The fields that a call must have, where a test gives none."""


def _replace(resource: type, name: str, values: Mapping[str, Any], needed: Mapping[str, Any]) -> None:
    method = getattr(resource, name)

    @wraps(method)
    def call(self: Any, **fields: Any) -> Any:
        replaced = {field: values.get(field, value) for field, value in fields.items()}
        return method(self, **{**needed, **replaced})

    setattr(resource, name, call)


for (synchronous, method_name), replacements in VALUES.items():
    module = __import__(synchronous.__module__, fromlist=["*"])
    for each in (synchronous, getattr(module, f"Async{synchronous.__name__}")):
        _replace(each, method_name, replacements, NEEDED.get(synchronous, {}))
