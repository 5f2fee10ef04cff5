"""The worker API of DB-GPT, for any manager."""

from __future__ import annotations

from collections.abc import Iterable

from flask import Blueprint, Response, g, request
from marshmallow import Schema

from ..engines.base import tokens_of
from ..errors import ModelyardError
from ..streams import whole_answer
from ..types import Burst, GenerateRequest, JSONObject, WorkerType
from ..wire.chunks import EMPTY_CHUNK, LOAD_HEADER, ROUTE_HEADER, ROUTE_LOCAL, STREAM_TYPE, ChunkEncoder, encode_output
from ..wire.decoder import NUL
from ..wire.messages import DELTA_TYPE
from ..wire.unsaved import UNSAVED_HEADER, encode_reason
from ..worker.protocol import Service, WorkerManager
from . import worker_schemas as schemas
from .request import guard, problems
from .request.access_log import AccessLine, current_line, log_access, naming, read_call, vectors_response
from .request.bodies import json_response, wants_delta
from .request.calls import Call, called
from .request.fields import load, load_query
from .request.keys import characters_of, check_model, key_of_request, total_tokens, visible
from .request.mounted import MountedBlueprint
from .request.streaming import StreamResponse, stream_response
from .request.terms import count_tokens, terms_of


def worker_blueprint(service: Service, url_prefix: str, name: str = "modelyard_worker") -> Blueprint:
    """Return the ten calls under ``url_prefix``; the manager is looked up at each request, so it may be swapped."""
    blueprint = MountedBlueprint(name, __name__, url_prefix=f"{url_prefix}/worker")
    problems.install(blueprint)
    enabled, recent = service.settings.access_log, service.recent
    log_access(
        blueprint,
        enabled=enabled,
        tracing=service.tracing,
        metrics=service.metrics,
        recent=recent,
        keys=service.keys,
    )
    guard.install(blueprint, service.settings, service.keys, requires_keys=service.settings.requires_keys)
    _add_generation(blueprint, service)
    _add_vectors(blueprint, service)
    _add_cheap_calls(blueprint, service)
    _add_administration(blueprint, service)
    return blueprint


def _loaded(service: Service, schema: Schema) -> JSONObject:
    """Return the checked body of a call that takes no thread of the budget: it has no prompt that a page could show."""
    service.check_open()
    return load(schema, read_call(service, current_line(), keeps_body=False))


def _manager(service: Service) -> WorkerManager:
    """Return the manager for this request: only the models of this process, where another process has routed it."""
    if request.headers.get(ROUTE_HEADER) == ROUTE_LOCAL:
        return service.own
    return service.manager


def _prompt(service: Service, line: AccessLine, body: JSONObject) -> GenerateRequest:
    """Return the request of a prompt body, with its terms. Raises InvalidRequest."""
    prompt = schemas.generate_request(body)
    prompt.terms = terms_of(service, line, body, prompt)
    return prompt


def _type(fields: JSONObject) -> WorkerType | None:
    return WorkerType(fields["worker_type"]) if fields.get("worker_type") else None


class _Chunks(ChunkEncoder):
    """The stream of generate_stream, with the errors of `problems` as its last chunk."""

    silence = EMPTY_CHUNK
    one_write = False

    def __init__(self, *, delta: bool) -> None:
        super().__init__(delta=delta)
        self.content_type = DELTA_TYPE if delta else STREAM_TYPE
        self._is_delta = delta
        self.tokens: int | None = None
        """The tokens of prompt and answer; None until they are known."""

    def encode(self, burst: Burst) -> Iterable[bytes]:
        if burst.usage is not None:
            self.tokens = total_tokens(burst.usage)
        return super().encode(burst)

    def begin(self) -> bytes:
        return b""

    def alive(self) -> bytes:
        return self.silence

    def end(self) -> bytes:
        return b""

    def failure(self, error: ModelyardError) -> bytes:
        return encode_output(problems.error_output(error, delta=self._is_delta)) + NUL


def _begin_stream(service: Service) -> StreamResponse:
    """Return the response to generate_stream once its first piece is ready; raise the errors that come before it."""
    line = current_line()
    call = Call(service, line)
    try:
        prompt = _prompt(service, line, read_call(service, line))
        encoder = _Chunks(delta=wants_delta(request))
        call.admit(characters_of(prompt), [prompt.max_new_tokens], used=lambda: encoder.tokens)
        stream = _manager(service).generate_stream(prompt, call.cancel)
        return stream_response(service, call, stream, line, encoder)
    except BaseException as error:
        call.close(error)
        raise


def _add_generation(blueprint: Blueprint, service: Service) -> None:
    @blueprint.post("/generate_stream")
    def generate_stream() -> Response:
        g.modelyard_stream = response = _begin_stream(service)
        return response

    @blueprint.post("/generate")
    def generate() -> Response:
        with called(service) as call:
            body = read_call(service, call.line)
            g.modelyard_has_span_id = isinstance(body.get("span_id"), str)  # all calls of DB-GPT's clients have one
            prompt = _prompt(service, call.line, body)
            call.admit(characters_of(prompt), [prompt.max_new_tokens])
            with _manager(service).generate_stream(prompt, call.cancel) as stream:
                try:
                    output = whole_answer(stream)
                finally:
                    call.line.note_answer(stream)
            call.count(total_tokens(output.usage))
        response = naming(stream.model, json_response(output))
        return _with_load(response, service, prompt.model, WorkerType.LLM)


def _with_load(response: Response, service: Service, model: str, *kinds: WorkerType) -> Response:
    for kind in kinds:
        if load := _manager(service).load_of(model, kind):
            response.headers[LOAD_HEADER] = load
            break
    return response


def _add_vectors(blueprint: Blueprint, service: Service) -> None:
    @blueprint.post("/embeddings")
    def embeddings() -> Response:
        with called(service) as call:
            body = read_call(service, call.line)
            fields = load(schemas.EMBEDDINGS, body)
            texts, model, query = schemas.texts(body), fields["model"], fields.get("query")
            terms, extra = terms_of(service, call.line, body), fields.get("extra")
            call.admit(sum(map(len, texts)))
            if query:
                vectors = _manager(service).rerank(model, query, texts, call.cancel, terms, extra=extra)
            else:
                vectors = _manager(service).embeddings(model, texts, call.cancel, terms, extra=extra)
            call.count(tokens_of(vectors))
        response = vectors_response([vectors] if query else vectors, vectors)
        return _with_load(response, service, model, WorkerType.TEXT2VEC, WorkerType.RERANKER)


def _add_cheap_calls(blueprint: Blueprint, service: Service) -> None:
    @blueprint.post("/count_token")
    def count_token() -> Response:
        fields = _loaded(service, schemas.COUNT_TOKEN)
        return json_response(count_tokens(service, _manager(service), fields.get("model"), fields["prompt"]))

    @blueprint.post("/model_metadata")
    def model_metadata() -> Response:
        model = _loaded(service, schemas.METADATA)["model"]
        response = json_response(_manager(service).model_metadata(model).to_dict())
        return _with_load(response, service, model, *WorkerType)

    @blueprint.get("/parameter/descriptions")
    def parameter_descriptions() -> Response:
        service.check_open()
        query = load_query(schemas.DESCRIPTIONS, request.args)
        check_model(query["model"], key_of_request())
        return json_response(_manager(service).parameter_descriptions(query["model"], _type(query)))


def _machine(fields: JSONObject) -> JSONObject:
    """Return the worker service that a startup or shutdown is for; a manager of one service ignores it."""
    return {name: fields[name] for name in ("host", "port") if fields.get(name)}


def _changed(unsaved: str) -> Response:
    """Return the answer to a change, whose body has no place for the reason why it is not remembered."""
    response = json_response(None)
    if unsaved:
        response.headers[UNSAVED_HEADER] = encode_reason(unsaved)
    return response


def _add_administration(blueprint: Blueprint, service: Service) -> None:
    @blueprint.get("/models/supports")
    def supports() -> Response:
        service.check_open()
        machines = _manager(service).supported_models()
        response = json_response(
            [
                {"host": at.host, "port": at.port, "models": [m.to_dict() for m in at.models if visible([m.model])]}
                for at in machines
            ]
        )
        for at in machines:
            if at.error:
                response.headers.add("Modelyard-Missing", f"{at.host}:{at.port}")
        return response

    @blueprint.post("/apply")
    def apply() -> Response:
        fields = _loaded(service, schemas.APPLY)
        outcome = _manager(service).worker_apply(
            fields["model"], fields["apply_type"], _type(fields), fields.get("params", {})
        )
        return json_response(outcome.to_dict())

    @blueprint.post("/models/startup")
    def startup() -> Response:
        fields = _loaded(service, schemas.STARTUP)
        params = fields.get("params", {})
        unsaved = _manager(service).model_startup(fields["model"], _type(fields), params, **_machine(fields))
        return _changed(unsaved)

    @blueprint.post("/models/shutdown")
    def shutdown() -> Response:
        fields = _loaded(service, schemas.STARTUP)
        return _changed(_manager(service).model_shutdown(fields["model"], _type(fields), **_machine(fields)))
