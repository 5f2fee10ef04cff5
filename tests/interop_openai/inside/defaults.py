"""A plugin of pytest for openai-python's tests: gives each response the input that a request must have.

Their document marks neither ``input`` nor ``model`` as required, so their tests send none to the mock server.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from openai.resources.responses import input_tokens, responses

DEFAULTS = {"input": "string", "model": "gpt-6-astra"}


def _give_defaults(resource: type, name: str) -> None:
    method = getattr(resource, name)

    @wraps(method)
    def call(self: Any, **fields: Any) -> Any:
        return method(self, **DEFAULTS, **fields) if not DEFAULTS.keys() & fields.keys() else method(self, **fields)

    setattr(resource, name, call)


for each in (responses.Responses, responses.AsyncResponses):
    _give_defaults(each, "create")
for each in (input_tokens.InputTokens, input_tokens.AsyncInputTokens):
    _give_defaults(each, "count")
