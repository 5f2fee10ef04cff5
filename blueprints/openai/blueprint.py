"""OpenAI's API for any manager, and Anthropic's messages: text, embeddings, rerank and the list of models."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from flask import Blueprint, Response, g, request

from ...access.tokens import INFER
from ...engines.base import other_model_of
from ...types import JSONObject, WorkerType
from ...wire.terms import ID_HEADER
from ...worker.protocol import Service
from ..request import cors, guard
from ..request.access_log import AccessLine, current_line, log_access, naming, read_call, vectors_response
from ..request.bodies import json_response
from ..request.calls import Call, called
from ..request.current import current_request
from ..request.fields import fault, load
from ..request.keys import check_model, key_of_request, total_tokens, visible
from ..request.mounted import MountedBlueprint
from ..request.streaming import Encoder, stream_response
from ..request.terms import count_tokens, terms_of
from . import anthropic, errors, response_events, responses, schemas
from .answers import Choice, Header, Usage, chat_answer, completion_answer, new_id, whole_choices
from .chat_fields import text_to_count
from .choices import check_copies, open_choices
from .errors import is_anthropic
from .events import ChatEvents, CompletionEvents
from .models import anthropic_entry, anthropic_list, model_entries, model_of, unknown_model
from .routes import Routes
from .vectors import (
    COHERE,
    JINA,
    TEI,
    as_probabilities,
    counted,
    embeddings_answer,
    is_reranker,
    relevance_answer,
    rerank_answer,
)


class _TextCall(NamedTuple):
    """A call that generates text: how its body is read, and what its answers look like."""

    read: Callable[[JSONObject, str], schemas.Generation]
    id_prefix: str
    events: Callable[[Header, Usage, schemas.Generation], Encoder]
    whole: Callable[[Header, Sequence[Choice], Usage, schemas.Generation], JSONObject]


_TEXT_CALLS: Mapping[str, _TextCall] = {
    "/chat/completions": _TextCall(schemas.chat, "chatcmpl-", ChatEvents, chat_answer),
    "/completions": _TextCall(schemas.completion, "cmpl-", CompletionEvents, completion_answer),
    "/messages": _TextCall(anthropic.generation, "msg_", anthropic.MessageEvents, anthropic.message_answer),
    "/responses": _TextCall(
        responses.generation, "resp_", response_events.ResponseEvents, response_events.response_answer
    ),
}


def openai_blueprint(service: Service, prefixes: Sequence[str], name: str = "modelyard_openai") -> Blueprint:
    """Return the calls under each of ``prefixes``; the manager is looked up at each request.

    Other methods, and unknown paths below a prefix that ends in ``/v1``, are refused in OpenAI's shape too. Raises
    ConfigError.
    """
    blueprint = guarded_blueprint(service, name)
    routes = Routes(blueprint, prefixes)
    _add_models(routes, service)
    _add_generation(routes, service)
    _add_vectors(routes, service)
    routes.refuse_others()
    return blueprint


def guarded_blueprint(service: Service, name: str) -> Blueprint:
    """Return a blueprint without calls: with OpenAI's errors, an access line and an id a request, CORS and the guard.

    Raises ConfigError.
    """
    blueprint = MountedBlueprint(name, __name__)
    errors.install(blueprint)
    enabled, recent = service.settings.access_log, service.recent
    log_access(
        blueprint,
        enabled=enabled,
        tracing=service.tracing,
        metrics=service.metrics,
        recent=recent,
        keys=service.keys,
        begun=_name_request,
        ended=_name_response,
    )
    cors.install(blueprint, service.settings.cors_origins)
    guard.install(blueprint, service.settings, service.keys, needs=(INFER,), requires_keys=True)
    return blueprint


def _name_request(line: AccessLine) -> None:
    """Give a request an id, unless its client has."""
    line.request_id = line.request_id or new_id("req_")


def _name_response(line: AccessLine, response: Response) -> None:
    """Add the id of the request to its answer."""
    response.headers[ID_HEADER] = line.request_id
    if is_anthropic(line.request):
        response.headers["request-id"] = line.request_id
    response.headers["openai-processing-ms"] = str(line.milliseconds())


# Models


def _add_models(routes: Routes, service: Service) -> None:
    created = int(time.time())

    def models() -> Response:
        service.check_open()
        entries = model_entries(service, created)
        shown = [entries[name] for name in visible(entries)]
        if is_anthropic(current_request()):
            return json_response(anthropic_list(shown))
        return json_response({"object": "list", "data": shown})

    def model(name: str) -> Response:
        service.check_open()
        check_model(name, key_of_request())
        entries = model_entries(service, created)
        if name not in entries:
            raise unknown_model(service, entries, name)
        return json_response(anthropic_entry(entries[name]) if is_anthropic(current_request()) else entries[name])

    routes.add("GET", "/models", models)
    routes.add("GET", "/models/<path:name>", model)


# Text


def _add_generation(routes: Routes, service: Service) -> None:
    for path, text_call in _TEXT_CALLS.items():
        routes.add("POST", path, _text_view(service, text_call))

    def count_chat_tokens() -> Response:
        return json_response({"input_tokens": _prompt_tokens(service, schemas.chat)})

    def count_message_tokens() -> Response:
        return json_response({"input_tokens": _prompt_tokens(service, anthropic.prompt)})

    def count_input_tokens() -> Response:
        tokens = _prompt_tokens(service, responses.generation)
        return json_response({"object": "response.input_tokens", "input_tokens": tokens})

    routes.add("POST", "/chat/completions/input_tokens", count_chat_tokens)
    routes.add("POST", "/messages/count_tokens", count_message_tokens)
    routes.add("POST", "/responses/input_tokens", count_input_tokens)


def answer_chat(service: Service) -> Response:
    """Return the answer to a chat, the body of the current request, for views of others than OpenAI's API."""
    return _generate(service, _TEXT_CALLS["/chat/completions"])


def _text_view(service: Service, text_call: _TextCall) -> Callable[[], Response]:
    # A function, not a partial: extensions of Flask read the names of views.
    def generate() -> Response:
        return _generate(service, text_call)

    return generate


def _generate(service: Service, text_call: _TextCall) -> Response:
    line = current_line()
    call = Call(service, line)
    try:
        body = read_call(service, line)
        generation = text_call.read(body, model_of(service, body, WorkerType.LLM))
        line.model = generation.model
        terms = terms_of(service, line, body, generation.requests[0])
        for prompt in generation.requests:
            prompt.terms = terms
        header, usage = Header.new(text_call.id_prefix, generation.model), Usage(generation.copies)
        check_copies(service.manager, generation.model, generation.copies)
        if line.api_key is not None:
            limits = [prompt.max_new_tokens for prompt in generation.requests]
            call.admit(generation.characters, limits, used=lambda: total_tokens(usage.total()))
        line.usage = usage.total
        stream = open_choices(service.manager, service.budget, generation.requests, call.cancel)
        if generation.stream:
            events = text_call.events(header, usage, generation)
            g.modelyard_stream = response = stream_response(service, call, stream, line, events)
            return response
        with stream:
            try:
                choices = whole_choices(stream, len(generation.requests), usage)
            finally:
                line.note_answer(stream)
    except BaseException as error:
        call.close(error)
        raise
    call.close()
    return naming(stream.model, json_response(text_call.whole(header, choices, usage, generation)))


def _prompt_tokens(service: Service, read: Callable[[JSONObject, str], schemas.Generation]) -> int:
    """Return the tokens of what a model reads of a request, without those of its chat template."""
    service.check_open()
    body = read_call(service, current_line())
    prompt = read(body, model_of(service, body, WorkerType.LLM)).requests[0]
    return count_tokens(service, service.manager, prompt.model, text_to_count(prompt))


# Vectors


def _add_vectors(routes: Routes, service: Service) -> None:
    def embeddings() -> Response:
        with called(service) as call:
            body = read_call(service, call.line)
            loaded = load(schemas.EMBEDDINGS, body)
            texts, model = schemas.inputs(body), model_of(service, body, WorkerType.TEXT2VEC)
            call.line.model = model
            call.admit(sum(map(len, texts)))
            extra, terms = schemas.embeddings_extra(loaded, body), terms_of(service, call.line, body)
            rows = service.manager.embeddings(model, texts, call.cancel, terms, extra=extra)
            size = len(rows[0])
            if loaded.get("dimensions", size) != size:
                raise fault("dimensions", f"must be {size}: model {model!r} has vectors of that size alone")
            as_base64 = loaded.get("encoding_format") == "base64"
            tokens = counted(service, call, model, rows, texts)
            answer = embeddings_answer(rows, model, tokens, as_base64=as_base64)
            return vectors_response(answer, rows)

    def rerank() -> Response:
        return _rerank(service)

    def relevance() -> Response:
        with called(service) as call:
            body = read_call(service, call.line)
            query = load(schemas.RELEVANCE, body)["query"]
            texts = schemas.documents(body.get("documents"), "documents")
            model = model_of(service, body, WorkerType.RERANKER, WorkerType.TEXT2VEC)
            call.line.model = model
            call.admit(len(query) + sum(map(len, texts)))
            scores = service.manager.rerank(model, query, texts, call.cancel, terms_of(service, call.line, body))
            tokens = counted(service, call, other_model_of(scores) or model, scores, [query, *texts])
            return vectors_response(relevance_answer(scores, model, tokens), scores)

    routes.add("POST", "/embeddings", embeddings)
    routes.add("POST", "/rerank", rerank)
    routes.add_second_version("POST", "/rerank", rerank)  # Cohere's
    routes.add("POST", "/beta/relevance", relevance)  # DB-GPT's


def _rerank(service: Service) -> Response:
    with called(service) as call:
        body = read_call(service, call.line)
        loaded = load(schemas.RERANK, body)
        shape = _rerank_shape(body)
        field = "texts" if shape == TEI else "documents"
        texts, query = schemas.documents(body.get(field), field), loaded["query"]
        model = model_of(service, body, WorkerType.RERANKER, WorkerType.TEXT2VEC)
        call.line.model = model
        call.admit(len(query) + sum(map(len, texts)))
        extra, terms = schemas.rerank_extra(body), terms_of(service, call.line, body)
        scores = ranked = service.manager.rerank(model, query, texts, call.cancel, terms, extra=extra)
        ranker = other_model_of(ranked) or model
        if not (shape == TEI and loaded.get("raw_scores")) and is_reranker(service, ranker):
            scores = as_probabilities(scores)
        tokens = 0 if shape == TEI else counted(service, call, ranker, ranked, [query, *texts])
        answer = rerank_answer(
            shape,
            scores,
            texts,
            model,
            new_id("rerank-"),
            top_n=loaded.get("top_n"),
            tokens=tokens,
            with_texts=bool(loaded.get("return_text" if shape == TEI else "return_documents")),
        )
        return vectors_response(answer, ranked)


def _rerank_shape(body: JSONObject) -> str:
    if body.get("texts") is not None:
        return TEI
    return COHERE if request.path.endswith("/v2/rerank") else JINA


def paths_of_application(prefix: str) -> list[str]:
    """Return the prefixes in an application of our own: base URLs of clients have ``/v1``, or not, or ``/api/v1``."""
    return ["/v1", "", f"{prefix}/v1"]
