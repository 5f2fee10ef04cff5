"""The worker API of DB-GPT, over any manager."""

from __future__ import annotations

from flask import Blueprint, Response, g, request

from ..runtime import Runtime
from ..types import WorkerType
from ..wire import DELTA_TYPE
from . import errors, schemas
from .bodies import json_response, read_object
from .calls import AccessLine, Call
from .streaming import StreamBody, StreamResponse


def worker_blueprint(runtime: Runtime, url_prefix: str, name: str = "modelyard_worker") -> Blueprint:
    """Return the ten calls under ``url_prefix``; the manager is looked up at each request, so it may be swapped."""
    blueprint = Blueprint(name, __name__, url_prefix=f"{url_prefix}/worker")
    errors.install(blueprint)
    _log_access(blueprint, enabled=runtime.settings.access_log)
    _add_generation(blueprint, runtime)
    _add_vectors(blueprint, runtime)
    _add_cheap_calls(blueprint, runtime)
    _add_administration(blueprint, runtime)
    return blueprint


def _log_access(blueprint: Blueprint, *, enabled: bool) -> None:
    @blueprint.before_request
    def begin() -> None:
        g.modelyard_line = AccessLine(request, enabled=enabled)

    @blueprint.after_request
    def note(response: Response) -> Response:
        # Where an earlier before_request of the application has answered, `begin` was not called.
        if (line := g.get("modelyard_line")) is not None:
            line.status = response.status_code
            if not response.is_streamed:
                line.bytes = response.content_length or 0
        return response

    @blueprint.teardown_request
    def end(error: BaseException | None) -> None:
        line, response = g.get("modelyard_line"), g.pop("modelyard_stream", None)
        if response is None:
            if line is not None:
                line.write()
        elif not response.taken:
            # An after_request of the application failed, or put another response in its place.
            response.response.close()


def _body(runtime: Runtime) -> dict[str, object]:
    body = read_object(request, runtime.settings.max_body_bytes)
    model = body.get("model")
    g.modelyard_line.model = model if isinstance(model, str) else None
    return body


def _may_wait() -> bool:
    prefer = request.headers.get("Prefer")
    return prefer is None or "wait=0" not in prefer.replace(" ", "").split(",")


def _kind(value: object) -> WorkerType | None:
    return WorkerType(value) if value else None


def _add_generation(blueprint: Blueprint, runtime: Runtime) -> None:
    settings = runtime.settings

    @blueprint.post("/generate_stream")
    def generate_stream() -> Response:
        call = Call(runtime, request)
        body: StreamBody | None = None
        try:
            prompt = schemas.generate_request(_body(runtime))
            stream = runtime.manager.generate_stream(prompt, call.cancel, wait=_may_wait())
            delta = DELTA_TYPE in request.headers.get("Accept", "")
            body = StreamBody(call, stream, g.modelyard_line, delta=delta, silence_timeout=settings.silence_timeout)
            body.prime(settings.first_output_timeout)
            call.bound_writes(settings.write_timeout)
            response = StreamResponse(body, delta=delta, load=stream.load)
        except BaseException:
            if body is not None:
                body.release()
            call.close()
            raise
        g.modelyard_stream = response
        return response

    @blueprint.post("/generate")
    def generate() -> Response:
        call = Call(runtime, request)
        try:
            prompt = schemas.generate_request(_body(runtime))
            output = runtime.manager.generate(prompt, call.cancel, wait=_may_wait())
        finally:
            call.close()
        return _with_load(json_response(output), runtime, prompt.model, WorkerType.LLM)


def _with_load(response: Response, runtime: Runtime, model: str, kind: WorkerType) -> Response:
    load = runtime.manager.load_of(model, kind)
    if load:
        response.headers["Modelyard-Load"] = load
    return response


def _add_vectors(blueprint: Blueprint, runtime: Runtime) -> None:
    @blueprint.post("/embeddings")
    def embeddings() -> Response:
        call = Call(runtime, request)
        try:
            body = _body(runtime)
            loaded = schemas.load(schemas.EMBEDDINGS, body)
            texts, model, query = schemas.texts(body), loaded["model"], loaded.get("query")
            manager = runtime.manager
            if query is None:
                rows = manager.embeddings(model, texts, call.cancel, wait=_may_wait())
            else:
                rows = [manager.rerank(model, query, texts, call.cancel, wait=_may_wait())]
        finally:
            call.close()
        return _with_load(json_response(rows), runtime, model, WorkerType.TEXT2VEC)


def _add_cheap_calls(blueprint: Blueprint, runtime: Runtime) -> None:
    @blueprint.post("/count_token")
    def count_token() -> Response:
        runtime.check_open()
        loaded = schemas.load(schemas.COUNT_TOKEN, _body(runtime))
        return json_response(runtime.manager.count_token(loaded.get("model"), loaded["prompt"]))

    @blueprint.post("/model_metadata")
    def model_metadata() -> Response:
        runtime.check_open()
        loaded = schemas.load(schemas.METADATA, _body(runtime))
        return json_response(runtime.manager.model_metadata(loaded["model"]).to_dict())

    @blueprint.get("/parameter/descriptions")
    def parameter_descriptions() -> Response:
        runtime.check_open()
        query = schemas.load(schemas.DESCRIPTIONS, {k: v for k, v in request.args.items() if v})
        return json_response(runtime.manager.parameter_descriptions(query["model"], _kind(query.get("worker_type"))))


def _add_administration(blueprint: Blueprint, runtime: Runtime) -> None:
    @blueprint.get("/models/supports")
    def supports() -> Response:
        runtime.check_open()
        hosts = runtime.manager.supported_models()
        return json_response(
            [{"host": host, "port": port, "models": [m.to_dict() for m in models]} for host, port, models in hosts]
        )

    @blueprint.post("/apply")
    def apply() -> Response:
        runtime.check_open()
        loaded = schemas.load(schemas.APPLY, _body(runtime))
        outcome = runtime.manager.worker_apply(
            loaded["model"], loaded["apply_type"], _kind(loaded.get("worker_type")), loaded.get("params", {})
        )
        return json_response(outcome.to_dict())

    @blueprint.post("/models/startup")
    def startup() -> Response:
        runtime.check_open()
        loaded = schemas.load(schemas.STARTUP, _body(runtime))
        runtime.manager.model_startup(loaded["model"], _kind(loaded.get("worker_type")), loaded.get("params", {}))
        return json_response(None)

    @blueprint.post("/models/shutdown")
    def shutdown() -> Response:
        runtime.check_open()
        loaded = schemas.load(schemas.STARTUP, _body(runtime))
        runtime.manager.model_shutdown(loaded["model"], _kind(loaded.get("worker_type")))
        return json_response(None)
