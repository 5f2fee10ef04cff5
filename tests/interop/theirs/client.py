# mypy: ignore-errors
# What it imports lies in the peer's environment only.
"""DB-GPT's own clients, told what to do: ``python client.py CONTROLLER``, by the interpreter of its environment.

One JSON object a line comes in, ``{"call": NAME, "args": {...}}``, one goes out: ``{"value": ...}``, or ``{"error":
...}`` with what a caller of theirs sees.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import sys
from typing import Any

from dbgpt.core import ModelMessage, ModelMessageRoleType, ModelRequest
from dbgpt.model.base import FlatSupportedModel, ModelInstance
from dbgpt.model.cluster import (
    ModelRegistryClient,
    PromptRequest,
    RemoteWorkerManager,
    WorkerApplyRequest,
    WorkerStartupRequest,
)
from dbgpt.model.cluster.apiserver.api import APIServer
from dbgpt.model.cluster.client import DefaultLLMClient
from dbgpt.model.cluster.embedding.remote_embedding import RemoteEmbeddings, RemoteRerankEmbeddings
from dbgpt.rag.embedding.rerank import OpenAPIRerankEmbeddings


class Calls:
    """Each method is a call; what it returns is made plain."""

    def __init__(self, controller: str) -> None:
        self.registry = ModelRegistryClient(controller)
        self.manager = RemoteWorkerManager(self.registry)

    # ModelRegistryClient

    async def register_instance(self, **instance: Any) -> bool:
        return await self.registry.register_instance(ModelInstance(**instance))

    async def deregister_instance(self, **instance: Any) -> bool:
        return await self.registry.deregister_instance(ModelInstance(**instance))

    async def send_heartbeat(self, **instance: Any) -> bool:
        return await self.registry.send_heartbeat(ModelInstance(**instance))

    async def get_all_instances(self, **query: Any) -> list[ModelInstance]:
        return await self.registry.get_all_instances(**query)

    async def sync_get_all_instances(self, **query: Any) -> list[ModelInstance]:
        return await asyncio.to_thread(self.registry.sync_get_all_instances, **query)

    async def get_all_model_instances(self, healthy_only: bool = False) -> list[ModelInstance]:
        return await self.registry.get_all_model_instances(healthy_only=healthy_only)

    async def select_one_health_instance(self, model_name: str) -> ModelInstance | None:
        return await self.registry.select_one_health_instance(model_name)

    # RemoteWorkerManager

    async def models(self, worker_type: str, healthy_only: bool = True) -> list[str]:
        found = await self.manager.get_all_model_instances(worker_type, healthy_only=healthy_only)
        return sorted(f"{one.worker_key} {one.host}:{one.port}" for one in found)

    async def generate_stream(self, take: int = 0, **params: Any) -> list[dict[str, Any]]:
        chunks = []
        async for output in self.manager.generate_stream(_prompt(params)):
            chunks.append(_output(output))
            if take and len(chunks) == take:
                break
        return chunks

    async def generate(self, **params: Any) -> dict[str, Any]:
        return _output(await self.manager.generate(_prompt(params)))

    async def embeddings(self, **params: Any) -> list[list[float]]:
        return await self.manager.embeddings(params)

    async def count_token(self, **params: Any) -> int:
        return await self.manager.count_token(params)

    async def metadata(self, model: str) -> dict[str, Any]:
        return await self.manager.get_model_metadata({"model": model})

    async def parameter_descriptions(self, worker_type: str, model: str) -> Any:
        return await self.manager.parameter_descriptions(worker_type, model)

    async def supported_models(self) -> Any:
        return await self.manager.supported_models()

    async def flat_supported_models(self) -> Any:
        return FlatSupportedModel.from_supports(await self.manager.supported_models())

    async def worker_apply(self, **request: Any) -> Any:
        return await self.manager.worker_apply(WorkerApplyRequest(**request))

    async def model_startup(self, **request: Any) -> Any:
        return await self.manager.model_startup(WorkerStartupRequest(**request))

    async def model_shutdown(self, **request: Any) -> Any:
        return await self.manager.model_shutdown(WorkerStartupRequest(**request))

    # What their applications use on top

    async def embed_documents(self, model: str, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(RemoteEmbeddings(model, self.manager).embed_documents, texts)

    async def predict(self, model: str, query: str, candidates: list[str]) -> list[float]:
        return await asyncio.to_thread(RemoteRerankEmbeddings(model, self.manager).predict, query, candidates)

    async def relevance(self, url: str, model: str, query: str, candidates: list[str]) -> list[float]:
        embeddings = OpenAPIRerankEmbeddings(api_url=url, model_name=model, api_key="none")
        return await asyncio.to_thread(embeddings.predict, query, candidates)

    async def client_models(self) -> Any:
        return await DefaultLLMClient(self.manager).models()

    async def client_generate(self, model: str, text: str, **options: Any) -> dict[str, Any]:
        messages = [ModelMessage(role=ModelMessageRoleType.HUMAN, content=text)]
        request = ModelRequest(model=model, messages=messages, **options)
        return _output(await DefaultLLMClient(self.manager).generate(request))

    async def client_stream(self, model: str, text: str, **options: Any) -> list[dict[str, Any]]:
        messages = [ModelMessage(role=ModelMessageRoleType.HUMAN, content=text)]
        request = ModelRequest(model=model, messages=messages, **options)
        return [_output(output) async for output in DefaultLLMClient(self.manager).generate_stream(request)]

    # What their OpenAI server does with them

    async def openai_stream(self, model: str, text: str, **options: Any) -> list[str]:
        params = {"model": model, "messages": [{"role": "human", "content": text}], "echo": False, **options}
        return [event async for event in _OpenAIServer(self.manager).chat_completion_stream_generator(model, params, 1)]

    async def openai_embeddings(self, model: str, texts: list[str]) -> list[list[float]]:
        server = _OpenAIServer(self.manager)
        batches = [texts[first : first + 4] for first in range(0, len(texts), 4)]
        answers = await asyncio.gather(*(server.embeddings_generate(model, batch) for batch in batches))
        return [row for rows in answers for row in rows]


class _OpenAIServer(APIServer):
    """Their server of OpenAI's API, without the web server around it."""

    def __init__(self, manager: RemoteWorkerManager) -> None:
        self._manager = manager

    def get_worker_manager(self) -> RemoteWorkerManager:
        return self._manager


def _prompt(params: dict[str, Any]) -> dict[str, Any]:
    """Return the body as their command line makes it."""
    return PromptRequest(**{"echo": False, **params}).dict(exclude_none=True)


def _output(output: Any) -> dict[str, Any]:
    return {**output.to_dict(), "text": output.text if output.has_text else None}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value


async def main() -> None:
    """Answer each line until there are no more."""
    calls = Calls(sys.argv[1])
    while line := await asyncio.to_thread(sys.stdin.readline):
        told = json.loads(line)
        try:
            said = {"value": _plain(await getattr(calls, told["call"])(**told["args"]))}
        except Exception as error:  # noqa: BLE001 - whatever their caller would see
            said = {"error": str(error), "kind": type(error).__name__}
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    asyncio.run(main())
