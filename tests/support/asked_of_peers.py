"""What our remote side asks a worker and a controller of DB-GPT, call by call, and the recorded answers.

The exchanges in ``wire/answers/dbgpt-0.8.2.jsonl`` were recorded between these calls and the servers of the package
``dbgpt==0.8.2`` (with models of its own base class that need no weights), by ``make interop`` with
``INTEROP_RECORD=1``; lists were shortened. One exchange a line, in the order of the calls.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faulty import LAST, Peer, Request, Script, head, http_chunk
from modelyard.cluster.registry.base import Instance
from modelyard.cluster.registry.client import RegistryClient
from modelyard.cluster.remote_machine import RemoteMachine
from modelyard.cluster.remote_model import RemoteModelWorker
from modelyard.errors import ModelyardError
from modelyard.sessions.session import Session
from modelyard.streams import Cancel
from modelyard.types import GenerateRequest, WorkerType

RECORDING = Path(__file__).parents[1] / "wire" / "answers" / "dbgpt-0.8.2.jsonl"
PORT = 18100
"""Stands for the port of the server in what is recorded."""

Exchange = dict[str, Any]
Call = Callable[[str, Session], Any]

INSTANCE = Instance("m@llm", "http://127.0.0.1:18001/api")
STARTUP = {"name": "second", "provider": "echo"}
"""DB-GPT reads name and provider from the parameters."""


def _stream(text: str, model: str = "theirs", **options: Any) -> Call:
    def call(url: str, session: Session) -> Any:
        messages = [{"role": "user", "content": text}]
        worker = RemoteModelWorker(f"{model}@llm", url, session)
        pieces: list[str] = []
        finish_reason, usage = None, None
        try:
            with worker.generate_stream(GenerateRequest(model, messages, **options), Cancel()) as stream:
                for burst in stream:
                    if burst is not None:
                        pieces += burst.pieces
                        finish_reason, usage = burst.finish_reason or finish_reason, burst.usage or usage
        except ModelyardError as error:
            return {"pieces": pieces, "error": error.code, "text": str(error)}
        return {"pieces": pieces, "finish_reason": finish_reason, "usage": usage}

    return call


def _of_model(key: str, name: str, *arguments: Any) -> Call:
    def call(url: str, session: Session) -> Any:
        worker = RemoteModelWorker(key, url, session)
        return _value(lambda: getattr(worker, name)(*arguments))

    return call


def _of_host(name: str, *arguments: Any) -> Call:
    return lambda url, session: _value(lambda: getattr(RemoteMachine(url, session), name)(*arguments))


def _of_registry(name: str, *arguments: Any, **options: Any) -> Call:
    def call(url: str, session: Session) -> Any:
        return _value(lambda: getattr(RegistryClient([url], session), name)(*arguments, **options))

    return call


def _value(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except ModelyardError as error:
        return {"error": error.code, "text": str(error)}


WORKER_CALLS: dict[str, Call] = {
    "stream": _stream("a b", max_new_tokens=3, temperature=0.5, stop=["."]),
    "stream of characters": _stream("repeat grü😀"),
    "stream with thoughts": _stream("think"),
    "stream that is trimmed": _stream("trim"),
    "stream that fails": _stream("fail"),
    "stream that breaks off": _stream("break"),
    "stream without a word": _stream("nothing"),
    "stream of an unknown model": _stream("x", model="nope"),
    "stream that is refused": _stream("x", temperature="hot"),
    "embeddings": _of_model("theirs-emb@text2vec", "embeddings", ["a", "b c"], Cancel()),
    "embeddings of an unknown model": _of_model("nope@text2vec", "embeddings", ["a"], Cancel()),
    "rerank": _of_model("theirs-rank@reranker", "rerank", "a b", ["a", "b a", "c"], Cancel()),
    "count": _of_model("theirs@llm", "count_token", "a b c"),
    "metadata": _of_model("theirs@llm", "metadata"),
    "metadata of an unknown model": _of_model("nope@llm", "metadata"),
    "descriptions": _of_host("parameter_descriptions", "theirs", WorkerType.LLM),
    "descriptions of an unknown model": _of_host("parameter_descriptions", "nope", WorkerType.LLM),
    "supports": _of_host("supported_models"),
    "startup": _of_host("model_startup", "second", WorkerType.LLM, STARTUP),
    "startup without a name": _of_host("model_startup", "third", WorkerType.LLM, {}),
    "startup without a type": _of_host("model_startup", "third", None, {}),
    "apply start": _of_host("worker_apply", "second", "start", WorkerType.LLM, {}),
    "apply update": _of_host("worker_apply", "second", "update_params", WorkerType.LLM, {"verbose": False}),
    "apply restart": _of_host("worker_apply", "second", "restart", WorkerType.LLM, {}),
    "startup again": _of_host("model_startup", "second", WorkerType.LLM, STARTUP),
    "shutdown": _of_host("model_shutdown", "second", WorkerType.LLM),
    "shutdown of an unknown model": _of_host("model_shutdown", "nope", WorkerType.LLM),
}
"""In an order in which they work: what one starts, others use."""

CONTROLLER_CALLS: dict[str, Call] = {
    "register": _of_registry("beat", [INSTANCE]),
    "heartbeat": _of_registry("beat", [Instance("m@llm", INSTANCE.url, generation=7)]),
    "instances": _of_registry("instances"),
    "instances of a key": _of_registry("instances", "m@llm"),
    "deregister": _of_registry("deregister", [INSTANCE]),
    "healthy instances": _of_registry("instances", "m@llm", healthy_only=True),
    "forget": _of_registry("deregister", [INSTANCE], forget=True),
    "no instances": _of_registry("instances", "m@llm"),
}


def recorded() -> dict[str, list[Exchange]]:
    """Return the exchanges by call."""
    found: dict[str, list[Exchange]] = {}
    for line in RECORDING.read_text(encoding="utf-8").splitlines():
        exchange = json.loads(line)
        found.setdefault(exchange["call"], []).append(exchange)
    return found


def said(request: Request, port: int) -> Exchange:
    """Return what is recorded of a request; the server's own ``port`` is left out of it."""
    kept = ("accept", "content-type")
    body = json.loads(request.body) if request.body else None
    if isinstance(body, dict) and body.get("port") == port:
        body["port"] = PORT
    return {
        "method": request.method,
        "path": request.path,
        "headers": {name: value for name, value in request.headers.items() if name in kept},
        "json": body,
    }


def replay(exchanges: list[Exchange]) -> Script:
    """Return the script that gives the recorded answers in their order."""

    def script(peer: Peer) -> bool:
        response = exchanges[peer.number - 1]["response"]
        peer.send(*as_bytes(response))
        return not response.get("breaks_off")

    return script


def as_bytes(response: Exchange) -> list[bytes]:
    """Return a recorded answer as it goes over a socket."""
    if "chunks" in response:
        parts = [head(response["status"], "Transfer-Encoding: chunked")]
        parts += [http_chunk(chunk.encode()) for chunk in response["chunks"]]
        return parts if response.get("breaks_off") else [*parts, LAST]
    if "json" in response:
        data, kind = json.dumps(response["json"], ensure_ascii=False).encode(), "application/json"
    else:
        data, kind = response["text"].encode(), "text/plain; charset=utf-8"
    return [head(response["status"], f"Content-Type: {kind}", f"Content-Length: {len(data)}") + data]
