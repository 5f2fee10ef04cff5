"""The fields of a request to a server with OpenAI's API: ours, those of the operator, and what else a caller sends."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import orjson

from ..errors import ConfigError, InvalidRequest
from ..types import GenerateRequest, JSONObject
from ..wire.messages import openai_messages

ALL_OPTIONS = frozenset(
    {"messages", "tools", "tool_choice", "parallel_tool_calls", "response_format", "logprobs", "top_logprobs"}
    | {"logit_bias", "prompt", "suffix", "best_of", "grammar", "json_schema"}
)
"""The names of `GenerateRequest.options`: a server with OpenAI's API refuses those that its model can't do."""

NEVER_SENT = frozenset(
    {"model", "messages", "prompt", "input", "query", "documents", "n", "best_of", "stream", "stream_options"}
    | {"chat_template", "custom_logit_processor", "logits_processors"}
    | {"api_base", "api_key", "api_version", "base_url", "extra_headers"}
    | {"kv_transfer_params", "bootstrap_host", "bootstrap_port", "bootstrap_room", "lora_path"}
)
"""The fields that no caller sends on beside ours: what is decided at this service, code that a server would run,
addresses and keys that it would use, and files that it would read."""

TEMPLATE_FIELD = "chat_template_kwargs"


class Fields:
    """Makes the bodies of requests to one server."""

    def __init__(
        self,
        model: str,
        *,
        stripped: Collection[str],
        renamed: Sequence[str],
        always: Sequence[str],
        template_params: Collection[str],
    ) -> None:
        """Send the server's name ``model`` and the fields ``always``, as NAME=JSON; never those in ``stripped``.

        Those in ``renamed``, as NAME=OTHER, have another name there. Callers may set the ``template_params`` of the
        chat template. Raises ConfigError.
        """
        self._model = model
        self._stripped = frozenset(stripped)
        try:
            place = "rename_params"
            self._names = other_names(renamed)
            place = "set_params"
            self._always = fixed_fields(always)
        except ValueError as error:
            raise ConfigError(f"{place}: {error}") from None
        self._template_params = frozenset(template_params)

    def body(self, ours: JSONObject, extra: JSONObject) -> bytes:
        """Return the body with the fields ``ours`` and those of ``extra``, the caller's others, that may be sent.

        Raises InvalidRequest.
        """
        if extra:
            self._check_template(extra.get(TEMPLATE_FIELD))
            ours = {name: value for name, value in extra.items() if name not in NEVER_SENT} | ours
        fields = {"model": self._model} | ours
        kept = {self._names.get(name, name): value for name, value in fields.items() if name not in self._stripped}
        try:
            return orjson.dumps(kept | self._always)
        except orjson.JSONEncodeError as error:
            raise InvalidRequest(f"the request can't be sent on: {error}") from None

    def _check_template(self, given: object) -> None:
        if given is None or TEMPLATE_FIELD in self._always:
            return
        names = sorted(given) if isinstance(given, dict) else [""]
        for name in names:
            if name not in self._template_params:
                may = ", ".join(sorted(self._template_params)) or "none"
                field = f"{TEMPLATE_FIELD}.{name}" if name else TEMPLATE_FIELD
                message = f"may not be set: an object of {may} is taken (template_params)"
                raise InvalidRequest.of_field(field, message)


def text_fields(request: GenerateRequest) -> JSONObject:
    """Return the fields of a chat completion, or of a completion of the raw prompt."""
    fields = _sampling(request)
    if request.uses_messages:
        fields["messages"] = openai_messages(request.messages)
    else:
        fields |= {"prompt": request.prompt, "echo": request.echo}
    return fields | request.options


def _sampling(request: GenerateRequest) -> JSONObject:
    given = {
        "max_tokens": request.max_new_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "min_p": request.min_p,
        "seed": request.seed,
        "stop": request.stop or None,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "repetition_penalty": request.repetition_penalty,
    }
    return {name: value for name, value in given.items() if value is not None}


def other_names(items: Sequence[str]) -> dict[str, str]:
    """Return the other name of each field, of items NAME=OTHER. Raises ValueError."""
    names: dict[str, str] = {}
    for item in items:
        name, _, other = map(str.strip, item.partition("="))
        if not name or not other:
            raise ValueError(f"{item!r} must be NAME=OTHER, as in max_tokens=max_completion_tokens")
        names[name] = other
    return names


def fixed_fields(items: Sequence[str]) -> JSONObject:
    """Return the fields of items NAME=JSON. Raises ValueError."""
    fields: JSONObject = {}
    for item in items:
        name, equals, text = item.partition("=")
        try:
            fields[name.strip()] = orjson.loads(text)
        except orjson.JSONDecodeError:
            equals = ""
        if not equals or not name.strip():
            raise ValueError(f"{item!r} must be NAME=JSON, as in temperature=0.2")
    return fields
