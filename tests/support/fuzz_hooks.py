"""What schemathesis sends in `test_fuzz`: models that are there, and answers that are short. The rest is its own."""

from __future__ import annotations

from typing import Any

import schemathesis

MODELS = {"embeddings": "emb", "rerank": "rank", "relevance": "rank"}
"""The models of calls that the model ``echo`` does not answer."""
CHANGES = ("apply", "startup", "shutdown")
LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens", "n")
LONGEST = 10_000_000
MOST_TOKENS = 20


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Name a model that is there where any valid name stands, and shorten answers."""
    if not isinstance(body, dict) or context.operation.tags[0] == "Controller":
        return body
    call, model = context.operation.path.rpartition("/")[2], body.get("model")
    if isinstance(model, str) and 1 <= len(model) <= 512 and call not in CHANGES:
        body["model"] = MODELS.get(call, "echo")
    for name in LENGTHS:
        if type(body.get(name)) is int and MOST_TOKENS < body[name] <= LONGEST:
            body[name] = MOST_TOKENS
    body.pop("span_id", None)  # of a client of DB-GPT, which gets refusals with the status 200
    return body


@schemathesis.hook
def map_path_parameters(context: Any, parameters: Any) -> Any:
    """Name a model that is there, where the name is of even length."""
    if parameters and len(str(parameters.get("name", "x"))) % 2 == 0:
        parameters["name"] = "echo"
    return parameters


@schemathesis.hook
def map_query(context: Any, query: Any) -> Any:
    """Name a model that is there where any valid name stands."""
    if query and isinstance(query.get("model"), str) and 1 <= len(query["model"]) <= 512:
        query["model"] = "echo"
    return query


@schemathesis.hook
def filter_query(context: Any, query: Any) -> bool:
    """Leave out what is too long for a line of a request, which the server refuses before the application sees it.

    An empty value is absent, and so fits where schemathesis takes it for a fault.
    """
    return not query or (len(str(query)) < 500 and "" not in query.values())
