"""The calls of the worker, the controller and the probes: their bodies, answers and errors."""

from __future__ import annotations

from collections.abc import Mapping

from ...cluster.registry.base import Instance, Receipt
from ...cluster.registry.row_json import MAX_INSTANCES
from ...errors import Conflict, InvalidRequest, StartFailed, Unsupported, WorkerLost
from ...types import ApplyOutcome, JSONObject, ModelInstance, ModelOutput, SupportedModel
from ...wire.chunks import STREAM_TYPE
from ...wire.messages import DELTA_TYPE, ROLES, VIEW
from ...worker.protocol import ServiceState
from .. import controller_schemas, worker_schemas
from ..request.bodies import JSON_TYPE
from ..request.problems import PROBLEM_TYPE, refusal_status
from .calls import COMPUTES, LLM, NAMES_MODEL, READS, TAKES_BODY, TEXT2VEC, Body, Call, ErrorShape
from .shapes import (
    ANYTHING,
    BOOLEAN,
    INTEGER,
    NULL,
    NUMBER,
    OBJECT,
    STRING,
    any_of_fields,
    array,
    either,
    nullable,
    one_of,
    record,
    record_of,
    ref,
)

PROBLEM = ErrorShape("Problem", PROBLEM_TYPE, ref("Problem"), lambda error: error.status)
OUTPUT = ErrorShape("Output", JSON_TYPE, ref("ModelOutput"), refusal_status)
CHUNK = ErrorShape("Chunk", STREAM_TYPE, STRING, refusal_status)

_MESSAGE = record({"role": one_of(*ROLES, VIEW), "content": either(STRING, OBJECT, array(either(STRING, OBJECT)))})
_PROMPT = Body(
    worker_schemas.PromptSchema(),
    {"model": LLM, "messages": [{"role": "human", "content": "Name three colors."}], "max_new_tokens": 20},
    more={
        "messages": array(_MESSAGE, most=worker_schemas.MAX_MESSAGES),
        "stop": either(STRING, array(STRING, most=worker_schemas.MAX_STOPS)),
    },
    rules=any_of_fields("messages", "prompt"),
)
_MODEL_STATE = record(
    {"model": STRING, "state": STRING, "reason": nullable(STRING)},
    {
        "context_length": INTEGER,
        "takes_images": BOOLEAN,
        "memory_bytes": INTEGER,
        "running": INTEGER,
        "waiting": record({"interactive": INTEGER, "batch": INTEGER}),
    },
)
_STATUS = record(
    {
        "ready": BOOLEAN,
        "state": one_of(*(state.value for state in ServiceState)),
        "reason": nullable(STRING),
        "models": array(_MODEL_STATE),
        "unsaved": nullable(STRING),
        "keys": nullable(record({"count": nullable(INTEGER), "error": nullable(STRING)})),
    },
    {"cluster": OBJECT, "host": OBJECT},
)
_ROW = record_of(Instance)
_ROW["properties"]["last_heartbeat"] = nullable({"type": "string", "format": "date-time"})
_PARAMETER = record(
    {
        "param_class": STRING,
        "param_name": STRING,
        "param_type": STRING,
        "description": STRING,
        "default_value": ANYTHING,
        "required": BOOLEAN,
        "valid_values": nullable(array(STRING)),
        "ext_metadata": OBJECT,
    }
)

SCHEMAS: JSONObject = {
    "ModelOutput": record_of(ModelOutput),
    "ModelMetadata": record(
        {
            "model": STRING,
            "context_length": nullable(INTEGER),
            "chat_model": BOOLEAN,
            "metadata": OBJECT,
            "ext_metadata": OBJECT,
        }
    ),
    "ApplyOutcome": record_of(ApplyOutcome),
    "Parameter": _PARAMETER,
    "Machine": record({"host": STRING, "port": INTEGER, "models": array(record_of(SupportedModel))}),
    "ModelInstance": record_of(ModelInstance),
    "Instance": _ROW,
    "Receipt": record_of(Receipt),
    "Status": _STATUS,
    "Alive": record({"status": one_of("ok")}),
    "Problem": record(
        {"type": STRING, "title": STRING, "status": INTEGER, "detail": STRING},
        {"errors": array(record({"field": STRING, "message": STRING}))},
    ),
}
"""The components."""

_INSTANCES = Body(
    controller_schemas.INSTANCE,
    [{"key": f"{LLM}@llm", "url": "http+unix://%2Frun%2Fworker.sock/api"}],
    is_list=True,
    most=MAX_INSTANCES,
)
_MODEL_INSTANCE = Body(
    controller_schemas.DBGPT_INSTANCE, {"model_name": f"{LLM}@llm", "host": "127.0.0.1", "port": 8001}
)

WORKER: Mapping[str, Call] = {
    "generate_stream": Call(
        "Answer a prompt as a stream of model outputs, each followed by a NUL byte.",
        None,
        CHUNK,
        COMPUTES,
        body=_PROMPT,
        streams={STREAM_TYPE: ref("ModelOutput"), DELTA_TYPE: ref("ModelOutput")},
    ),
    "generate": Call("Answer a prompt with one model output.", ref("ModelOutput"), OUTPUT, COMPUTES, body=_PROMPT),
    "embeddings": Call(
        "Return a row of numbers for each text; with `query` one row, the score of each text.",
        array(array(NUMBER)),
        PROBLEM,
        COMPUTES,
        body=Body(
            worker_schemas.EMBEDDINGS,
            {"model": TEXT2VEC, "input": ["red", "green"]},
            more={"input": array(STRING, most=worker_schemas.MAX_TEXTS)},
            required=("input",),
        ),
    ),
    "count_token": Call(
        "Count the tokens of a text.",
        INTEGER,
        PROBLEM,
        COMPUTES,
        body=Body(worker_schemas.COUNT_TOKEN, {"model": LLM, "prompt": "Name three colors."}),
    ),
    "model_metadata": Call(
        "Return what is known of a model.",
        ref("ModelMetadata"),
        PROBLEM,
        COMPUTES,
        body=Body(worker_schemas.METADATA, {"model": LLM}),
    ),
    "parameter_descriptions": Call(
        "List the parameters of a model with their values.",
        array(ref("Parameter")),
        PROBLEM,
        (*NAMES_MODEL, WorkerLost),
        query=worker_schemas.DESCRIPTIONS,
    ),
    "supports": Call(
        "List the models that may run on each machine.", array(ref("Machine")), PROBLEM, (*READS, WorkerLost)
    ),
    "apply": Call(
        "Start, stop, restart or change a model, or with `*` all models.",
        ref("ApplyOutcome"),
        PROBLEM,
        (*NAMES_MODEL, Unsupported, Conflict, WorkerLost, StartFailed),
        body=Body(worker_schemas.APPLY, {"model": LLM, "apply_type": "update_params", "params": {"n_ctx": 4096}}),
    ),
    "startup": Call(
        "Start a model, and answer when it is ready.",
        NULL,
        PROBLEM,
        (*NAMES_MODEL, Unsupported, Conflict, WorkerLost, StartFailed),
        body=Body(worker_schemas.STARTUP, {"model": LLM, "worker_type": "llm"}),
    ),
    "shutdown": Call(
        "Stop a model and forget it.",
        NULL,
        PROBLEM,
        (*NAMES_MODEL, Conflict, WorkerLost),
        body=Body(worker_schemas.STARTUP, {"model": LLM, "worker_type": "llm"}),
    ),
}
CONTROLLER: Mapping[str, Call] = {
    "beat_instances": Call(
        "Register instances and refresh them.",
        record({"instances": array(ref("Receipt")), "interval": NUMBER}),
        PROBLEM,
        TAKES_BODY,
        body=_INSTANCES,
    ),
    "deregister_instances": Call(
        "Mark instances as unhealthy, or forget them.",
        record({"instances": array(ref("Receipt"))}),
        PROBLEM,
        TAKES_BODY,
        body=_INSTANCES,
        query=controller_schemas.FORGET,
    ),
    "instances": Call(
        "List the rows of the registry.",
        array(ref("Instance")),
        PROBLEM,
        (*READS, InvalidRequest),
        query=controller_schemas.ROWS_QUERY,
    ),
    "register_model": Call(
        "Register a model instance, as DB-GPT's API.", BOOLEAN, PROBLEM, TAKES_BODY, body=_MODEL_INSTANCE
    ),
    "heartbeat": Call("Refresh a model instance, as DB-GPT's API.", BOOLEAN, PROBLEM, TAKES_BODY, body=_MODEL_INSTANCE),
    "deregister_model": Call(
        "Mark a model instance as unhealthy, or forget it, as DB-GPT's API.",
        BOOLEAN,
        PROBLEM,
        (*READS, InvalidRequest),
        query=controller_schemas.DBGPT_DEREGISTRATION,
    ),
    "models": Call(
        "List the model instances, as DB-GPT's API.",
        array(ref("ModelInstance")),
        PROBLEM,
        (*READS, InvalidRequest),
        query=controller_schemas.DBGPT_QUERY,
    ),
}
PROBES: Mapping[str, Call] = {
    "healthz": Call("Answer while the process runs.", ref("Alive"), PROBLEM),
    "health": Call("Answer while the process runs, as DB-GPT's API.", ref("Alive"), PROBLEM),
    "readyz": Call("Return whether the service is ready.", ref("Status"), PROBLEM, others={503: ref("Status")}),
    "metrics": Call(
        "Return the metrics of the service, for Prometheus.", None, PROBLEM, streams={"text/plain": STRING}
    ),
    "openapi": Call("Return this document.", OBJECT, PROBLEM),
}
"""By the names of the endpoints."""
