"""The worker API of DB-GPT, over any manager."""

from __future__ import annotations

from flask import Blueprint, Response, g, request

from ..types import JSONObject, WorkerType
from ..wire.chunks import ROUTE_HEADER, ROUTE_LOCAL
from ..worker.protocol import Service, WorkerManager
from . import worker_schemas as schemas
from .request import guard as access
from .request import problems as errors
from .request.bodies import json_response, read_object
from .request.calls import AccessLine, Call, log_access
from .request.streaming import StreamBody, StreamResponse
from .request.traces import read_body


def worker_blueprint(runtime: Service, url_prefix: str, name: str = "modelyard_worker") -> Blueprint:
    """Return the ten calls under ``url_prefix``; the manager is looked up at each request, so it may be swapped."""
    blueprint = Blueprint(name, __name__, url_prefix=f"{url_prefix}/worker")
    errors.install(blueprint)
    log_access(blueprint, enabled=runtime.settings.access_log, tracing=runtime.tracing)
    access.install(blueprint, runtime.settings)
    _add_generation(blueprint, runtime)
    _add_vectors(blueprint, runtime)
    _add_cheap_calls(blueprint, runtime)
    _add_administration(blueprint, runtime)
    return blueprint


def _body(runtime: Service) -> dict[str, object]:
    line: AccessLine = g.modelyard_line
    body = read_object(request, runtime.settings.max_body_bytes)
    model = body.get("model")
    line.model = model if isinstance(model, str) else None
    line.trace = read_body(runtime.tracing, request, line.trace, body)
    return body


def _may_wait() -> bool:
    prefer = request.headers.get("Prefer")
    return prefer is None or "wait=0" not in prefer.replace(" ", "").split(",")


def _manager(runtime: Service) -> WorkerManager:
    """Return the manager for this request: only the models of this process, where another process has routed it."""
    if request.headers.get(ROUTE_HEADER) == ROUTE_LOCAL:
        return runtime.own
    return runtime.manager


def _host(loaded: JSONObject) -> JSONObject:
    """Return for which host a startup or shutdown is meant: this one looks at it where it stands for several."""
    return {name: loaded[name] for name in ("host", "port") if loaded.get(name)}


def _kind(value: object) -> WorkerType | None:
    return WorkerType(value) if value else None


def _begin_stream(runtime: Service) -> StreamResponse:
    """Return the response to generate_stream once its first piece is ready; raise the errors that come before it."""
    settings = runtime.settings
    call = Call(runtime, request)
    body: StreamBody | None = None
    try:
        prompt = schemas.generate_request(_body(runtime))
        stream = _manager(runtime).generate_stream(prompt, call.cancel, wait=_may_wait())
        delta = errors.wants_delta(request)
        body = StreamBody(call, stream, g.modelyard_line, delta=delta, silence_timeout=settings.silence_timeout)
        body.prime(settings.first_output_timeout)
        call.bound_writes(settings.write_timeout)
        return StreamResponse(body, delta=delta, load=stream.load)
    except BaseException:
        if body is not None:
            body.release()
        call.close()
        raise


def _add_generation(blueprint: Blueprint, runtime: Service) -> None:
    @blueprint.post("/generate_stream")
    def generate_stream() -> Response:
        g.modelyard_stream = response = _begin_stream(runtime)
        return response

    @blueprint.post("/generate")
    def generate() -> Response:
        call = Call(runtime, request)
        try:
            prompt = schemas.generate_request(_body(runtime))
            output = _manager(runtime).generate(prompt, call.cancel, wait=_may_wait())
        finally:
            call.close()
        return _with_load(json_response(output), runtime, prompt.model, WorkerType.LLM)


def _with_load(response: Response, runtime: Service, model: str, *kinds: WorkerType) -> Response:
    for kind in kinds:
        if load := _manager(runtime).load_of(model, kind):
            response.headers["Modelyard-Load"] = load
            break
    return response


def _add_vectors(blueprint: Blueprint, runtime: Service) -> None:
    @blueprint.post("/embeddings")
    def embeddings() -> Response:
        call = Call(runtime, request)
        try:
            body = _body(runtime)
            loaded = schemas.load(schemas.EMBEDDINGS, body)
            texts, model, query = schemas.texts(body), loaded["model"], loaded.get("query")
            manager = _manager(runtime)
            if query is None:
                rows = manager.embeddings(model, texts, call.cancel, wait=_may_wait())
            else:
                rows = [manager.rerank(model, query, texts, call.cancel, wait=_may_wait())]
        finally:
            call.close()
        return _with_load(json_response(rows), runtime, model, WorkerType.TEXT2VEC, WorkerType.RERANKER)


def _add_cheap_calls(blueprint: Blueprint, runtime: Service) -> None:
    @blueprint.post("/count_token")
    def count_token() -> Response:
        runtime.check_open()
        loaded = schemas.load(schemas.COUNT_TOKEN, _body(runtime))
        return json_response(_manager(runtime).count_token(loaded.get("model"), loaded["prompt"]))

    @blueprint.post("/model_metadata")
    def model_metadata() -> Response:
        runtime.check_open()
        loaded = schemas.load(schemas.METADATA, _body(runtime))
        response = json_response(_manager(runtime).model_metadata(loaded["model"]).to_dict())
        return _with_load(response, runtime, loaded["model"], *WorkerType)

    @blueprint.get("/parameter/descriptions")
    def parameter_descriptions() -> Response:
        runtime.check_open()
        query = schemas.load(schemas.DESCRIPTIONS, {k: v for k, v in request.args.items() if v})
        return json_response(_manager(runtime).parameter_descriptions(query["model"], _kind(query.get("worker_type"))))


def _add_administration(blueprint: Blueprint, runtime: Service) -> None:
    @blueprint.get("/models/supports")
    def supports() -> Response:
        runtime.check_open()
        hosts = _manager(runtime).supported_models()
        response = json_response(
            [{"host": one.host, "port": one.port, "models": [m.to_dict() for m in one.models]} for one in hosts]
        )
        for one in hosts:
            if one.error:
                response.headers.add("Modelyard-Missing", f"{one.host}:{one.port}")
        return response

    @blueprint.post("/apply")
    def apply() -> Response:
        runtime.check_open()
        loaded = schemas.load(schemas.APPLY, _body(runtime))
        outcome = _manager(runtime).worker_apply(
            loaded["model"], loaded["apply_type"], _kind(loaded.get("worker_type")), loaded.get("params", {})
        )
        return json_response(outcome.to_dict())

    @blueprint.post("/models/startup")
    def startup() -> Response:
        runtime.check_open()
        loaded = schemas.load(schemas.STARTUP, _body(runtime))
        _manager(runtime).model_startup(
            loaded["model"], _kind(loaded.get("worker_type")), loaded.get("params", {}), **_host(loaded)
        )
        return json_response(None)

    @blueprint.post("/models/shutdown")
    def shutdown() -> Response:
        runtime.check_open()
        loaded = schemas.load(schemas.STARTUP, _body(runtime))
        _manager(runtime).model_shutdown(loaded["model"], _kind(loaded.get("worker_type")), **_host(loaded))
        return json_response(None)
