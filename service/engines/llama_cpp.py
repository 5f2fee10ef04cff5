"""llama.cpp: generation, embeddings and reranking from GGUF files, through xllamacpp.

The library decodes concurrent requests together, one in each of its slots. A model is loaded after the fork, in the
process that answers: a loaded model does not survive a fork.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import orjson

from ..errors import (
    BadModelFile,
    Cancelled,
    EngineError,
    InvalidRequest,
    MissingLibrary,
    ModelyardError,
    StartFailed,
)
from ..files import SocketFolder
from ..models import gguf_header
from ..models.inspection import inspect
from ..models.memory import free_memory
from ..pump import Pump
from ..streams import Cancel
from ..types import Burst, GenerateRequest, ModelMetadata, WorkerType
from ..wire.messages import openai_messages
from . import llama_requests
from .base import CancelEvent, Engine, OfTexts, Progress, Vectors
from .llama_files import checked_adapters, checked_model, checked_projector
from .llama_requests import LlamaHttp, encoded
from .llama_server import Setup, server_params
from .llama_settings import (
    AUTO,
    GPU,
    LlamaCppParams,
    check_gpus,
    context_of,
    gpus_of,
    memory_for,
    with_cache_type,
)
from .llama_slots import PromptSlots, prompt_of
from .text_limit import TextLimit

log = logging.getLogger(__name__)

TEXTS_A_CALL = 32
LETTERS_A_CALL = 1000
"""The most texts and letters of one call to embed: about a quarter of a second on one core. A cancel acts between two
calls."""

_OPTIONS = frozenset({"response_format", "json_schema", "grammar", "logprobs", "top_logprobs", "logit_bias", "prompt"})
_TOOL_OPTIONS = frozenset({"messages", "tools", "tool_choice", "parallel_tool_calls"})


class LlamaCpp(Engine):
    """One GGUF file behind xllamacpp's server."""

    name = "llama.cpp"
    Params = LlamaCppParams
    worker_types: ClassVar[frozenset[WorkerType]] = frozenset(WorkerType)
    ticks = True

    params: LlamaCppParams

    def __init__(self, params: Any, path: Path | None = None) -> None:
        super().__init__(params, path)
        self._server: Any = None
        self._folder: SocketFolder | None = None
        self._http: LlamaHttp
        self._template_fault = ""
        """Why the model's chat template can't be read; empty where it can."""
        self._n_ctx = self.params.n_ctx
        self._slots = PromptSlots(0)
        self._metadata = ModelMetadata(self.params.registered_name)

    @classmethod
    def worker_type_of(cls, path: Path) -> WorkerType | None:
        """Return the type that the file's header shows. Raises BadModelFile."""
        return gguf_header.worker_type_of(path)

    @property
    def file_names(self) -> Sequence[str]:
        """The adapters and the projector. Raises StartFailed."""
        projector = self.params.mmproj
        return [*(adapter.name for adapter in self.params.adapters), *([projector] if projector else [])]

    @property
    def fills_memory(self) -> bool:
        """Whether the context is chosen from the free memory."""
        return self.params.n_ctx == AUTO

    def memory_needed(self) -> int:
        """Return the bytes of all files, and of the context of all slots. Raises BadModelFile, StartFailed."""
        if self.path is None:
            return 0
        weights, params = inspect(self.path), self.params
        tokens = context_of(params, weights, free_memory(), is_on_gpus=False)
        needed = with_cache_type(weights, params.cache_type).memory(tokens, params.slots) or weights.weights_bytes
        return needed + sum(path.stat().st_size for path in self.files.values())

    def start(self, progress: Progress) -> None:
        """Check files, GPUs and memory, then load. Raises MissingLibrary, BadModelFile, StartFailed."""
        if self.path is None:
            raise BadModelFile(f"model {self.params.registered_name!r} has no model_path")
        progress(f"checking {self.path.name}")
        header = checked_model(self.path)
        setup = Setup(
            params=self.params,
            weights=self.path,
            adapters=checked_adapters(self.params.adapters, self.files, header),
            projector=self._projector(),
            n_ctx=0,
        )
        xllamacpp = _library()
        setup = replace(setup, n_ctx=self._chosen_context(gpus_of(xllamacpp), self.path))
        self._n_ctx = setup.n_ctx
        progress(f"loading {self.path.name}")
        self._folder = SocketFolder("llama")
        try:
            self._server = self._load(xllamacpp, setup, header)
        except Exception as error:
            self.stop()
            beside = ", ".join(self.files)
            loaded = f"{self.path}{f' with {beside}' if beside else ''}"
            raise StartFailed(f"llama.cpp refuses {loaded}: {error}; see the log above for its reason") from error
        self._http = LlamaHttp(self._folder.socket)
        # With prompts kept in memory the library chooses: it saves and restores them only then.
        self._slots = PromptSlots(0 if self.params.cache_ram_mib else self.params.slots)
        self._metadata = self._describe(header)
        self._try_out()

    def _projector(self) -> Path | None:
        if self.params.mmproj is None:
            return None
        if self.params.worker_type != WorkerType.LLM:
            raise StartFailed(f"mmproj: a {self.params.worker_type} takes no images: leave it out")
        return checked_projector(self.files[self.params.mmproj])

    def _chosen_context(self, gpus: Sequence[GPU], path: Path) -> int:
        """Return the tokens of context of one request, on ``gpus`` or in the host's memory. Raises StartFailed."""
        params, weights = self.params, inspect(path)
        if warning := check_gpus(params, gpus):
            log.warning("model %s: %s", params.registered_name, warning)
        needed = weights.weights_bytes + sum(file.stat().st_size for file in self.files.values())
        free, is_on_gpus = memory_for(needed, free_memory(), params, gpus)
        if needed > free:
            raise StartFailed(
                f"{path.name} needs at least {math.ceil(needed / 1e6)} MB of memory, {math.floor(free / 1e6)} MB are "
                "free: stop another model, or choose smaller weights"
            )
        tokens = context_of(params, weights, free, is_on_gpus=is_on_gpus)
        if params.n_ctx == AUTO:
            place = "memory of GPUs" if is_on_gpus else "memory"
            log.info(
                "model %s: n_ctx = %d (auto): %d slots, %.0f MB of %s are free, trained with %s",
                *(params.registered_name, tokens, params.slots, free / 1e6, place, weights.context_length),
            )
        return tokens

    def _load(self, xllamacpp: Any, setup: Setup, header: gguf_header.Header) -> Any:
        """Return the library's server. An LLM whose chat template it refuses is loaded for raw prompts."""
        assert self._folder is not None
        socket = self._folder.socket
        has_template = self.params.worker_type == WorkerType.LLM and header.has_chat_template
        try:
            return xllamacpp.Server(server_params(xllamacpp, setup, socket, own_template=has_template))
        except Exception:
            if not has_template:
                raise
            socket.unlink(missing_ok=True)
            try:
                server = xllamacpp.Server(server_params(xllamacpp, setup, socket, own_template=False))
            except Exception:  # noqa: BLE001 - not the template but the file is at fault: the first error is raised
                server = None
            if server is None:
                raise
        self._template_fault = llama_requests.template_fault(header.chat_template)
        log.warning(
            "model %s answers raw prompts only: its chat template can't be read: %s",
            self.params.registered_name,
            self._template_fault,
        )
        return server

    def _try_out(self) -> None:
        """Compute one token, to find a model that can't; also, a server whose loop has not begun hangs in `stop`."""
        name, kind = self.params.registered_name, self.params.worker_type
        try:
            if kind == WorkerType.LLM:
                request = GenerateRequest(name, prompt="a", max_new_tokens=1)
                body = llama_requests.completion_body(request, 1)
                answer = llama_requests.LlamaAnswer(request, name, 1)
                answer.run(self._server.handle_completions, body, lambda burst: True, Cancel())
            elif kind == WorkerType.TEXT2VEC:
                self.embed(["a"], Cancel())
            else:
                self.rerank("a", ["a"], Cancel())
        except ModelyardError as error:
            self.stop()
            raise StartFailed(f"{self.path} was loaded, but does not work as {kind}: {error}") from error

    def _describe(self, header: gguf_header.Header) -> ModelMetadata:
        is_chat = self.params.worker_type == WorkerType.LLM and not self._template_fault
        template = header.chat_template if is_chat else None
        return ModelMetadata(
            self.params.registered_name,
            context_length=self._n_ctx,
            chat_model=template is not None,
            metadata={
                "architecture": header.architecture,
                "context_length_trained": header.context_length,
                "embedding_length": header.embedding_length,
                **({"n_ctx": "auto"} if self.params.n_ctx == AUTO else {}),
            },
            prompt_chat_template=template,
        )

    def stop(self) -> None:
        """Free the weights. Call it after all generations have ended: otherwise the library hangs."""
        if self._server is not None:
            self._http.close()
        self._server = None
        if self._folder is not None:
            self._folder.remove()
            self._folder = None

    def metadata(self) -> ModelMetadata:
        """Return the metadata of the file, and the context length of a request."""
        return self._metadata

    @property
    def options(self) -> frozenset[str]:
        """JSON and probabilities for all models, tools and images for those that have them."""
        template = self._metadata.prompt_chat_template or ""
        # With a projector the library takes no token ids.
        options = _OPTIONS if self.params.mmproj is None else _OPTIONS - {"prompt"}
        options = options | {"messages"} if self.takes_images else options
        return options | _TOOL_OPTIONS if "tools" in template else options

    @property
    def takes_images(self) -> bool:
        """Whether the model has a projector, and a chat template to put images into."""
        return self.params.mmproj is not None and self._metadata.chat_model

    def generate_stream(self, request: GenerateRequest, cancel: CancelEvent) -> Iterator[Burst | None]:
        """Yield bursts as the library decodes them; a thread waits in the library.

        Raises InvalidRequest for messages that the chat template refuses, PromptTooLong.
        """
        assert isinstance(cancel, Cancel)
        limit = request.max_new_tokens or self.params.default_max_new_tokens
        if request.uses_messages:
            if self._template_fault:
                fault = f"its chat template can't be read: {self._template_fault}; send a raw prompt"
                raise llama_requests.unfit("messages", f"model {self.params.registered_name!r} takes none: {fault}")
            body = llama_requests.chat_body(request, limit)
            handle = self._server.handle_chat_completions
        else:
            body = llama_requests.completion_body(request, limit)
            handle = self._server.handle_completions
        answer = llama_requests.LlamaAnswer(request, self.params.registered_name, limit)

        def produce(put: Callable[[Burst], bool]) -> None:
            if request.echo:
                put(Burst([self._echoed(request)]))
            with self._slots.holding(prompt_of(request)) as slot:
                given = body if slot is None else {**body, "id_slot": slot}
                answer.run(handle, given, put, cancel)

        return Pump(produce, cancel, f"generate-{self.params.registered_name}")

    def _echoed(self, request: GenerateRequest) -> str:
        if not request.uses_messages:
            ids = request.options.get("prompt")
            return self._text_of(ids) if ids is not None else request.prompt or ""
        messages = openai_messages(request.messages)
        try:
            return str(self._http.post("/apply-template", {"messages": messages})["prompt"])
        except InvalidRequest as error:
            raise llama_requests.unfit("messages", str(error)) from error

    def _text_of(self, ids: Any) -> str:
        try:
            return str(self._http.post("/detokenize", {"tokens": ids})["content"])
        except (InvalidRequest, EngineError) as error:
            raise llama_requests.unfit("prompt", f"has token ids that are not the model's: {error}") from error

    def embed(self, texts: Sequence[str], cancel: CancelEvent) -> Vectors:
        """Return one normalised row for each text. Raises InputTooLong, which names the first text that is too long."""
        limit, tokens = self._limit(), 0
        rows: list[list[float]] = []
        for part in _in_calls(limit.texts(texts, cancel)):
            _check(cancel)
            answer = self._call(self._server.handle_embeddings, {"input": part})
            rows += _short([item["embedding"] for item in sorted(answer["data"], key=lambda item: item["index"])])
            tokens += answer["usage"]["prompt_tokens"]
        return OfTexts(rows, cut=limit.cut, tokens=tokens)

    def rerank(self, query: str, texts: Sequence[str], cancel: CancelEvent) -> Sequence[float]:
        """Return the raw score of each text. Raises InputTooLong for the query, or the first text, that is too long."""
        limit = self._limit()
        query = limit.query(query)
        scores: list[float] = []
        tokens = 0
        for part in _in_calls(limit.texts(texts, cancel, query), framed_by=len(query)):
            _check(cancel)
            answer = self._call(self._server.handle_rerank, {"query": query, "documents": part})
            scores += [item["relevance_score"] for item in sorted(answer["results"], key=lambda item: item["index"])]
            tokens += answer["usage"]["prompt_tokens"]
        return OfTexts(scores, cut=limit.cut, tokens=tokens)

    def _call(self, handle: Callable[[bytes], bytes | str], body: dict[str, Any]) -> Any:
        sent = encoded(body)
        try:
            answer = orjson.loads(handle(sent))
        except (ValueError, RuntimeError, TypeError) as error:
            raise EngineError(f"llama.cpp failed: {error}") from error
        if "error" in answer:
            raise llama_requests.refusal(answer["error"], self.params.registered_name)
        return answer

    def _limit(self) -> TextLimit:
        return TextLimit(self.params.registered_name, self._n_ctx, self.count_token, self.params.truncate)

    def count_token(self, prompt: str) -> int:
        """Return the number of tokens of ``prompt`` as a raw prompt: the one that its usage will report."""
        return len(self._http.post("/tokenize", {"content": prompt, "add_special": True})["tokens"])


def _in_calls(texts: Sequence[str], framed_by: int = 0) -> Iterator[list[str]]:
    """Yield the texts in order, in lists for one call each; ``framed_by`` letters are added to each text."""
    part: list[str] = []
    letters = 0
    for text in texts:
        length = len(text) + framed_by
        if part and (len(part) == TEXTS_A_CALL or letters + length > LETTERS_A_CALL):
            yield part
            part, letters = [], 0
        part.append(text)
        letters += length
    if part:
        yield part


def _short(rows: list[list[float]]) -> list[list[float]]:
    """Return numbers of 32 bits as the shortest decimals that mean them: 0.1, where the library has 0.10000000149.

    An answer has 40 percent fewer bytes then. For 2,048 rows of 384 this takes 40 ms.
    """
    from numpy import asarray, float32  # noqa: PLC0415 - only models of this engine need it

    short: list[list[float]] = orjson.loads(orjson.dumps(asarray(rows, float32), option=orjson.OPT_SERIALIZE_NUMPY))
    return short


def _check(cancel: CancelEvent) -> None:
    if cancel.is_set():
        raise Cancelled("the client has gone")


def _library() -> Any:
    """Return the library. Raises MissingLibrary."""
    try:
        import xllamacpp  # noqa: PLC0415 - only models of this engine need it
    except ImportError as error:
        raise MissingLibrary(
            f"the engine llama.cpp needs xllamacpp ({error}): pip install 'modelyard[llama]'"
        ) from error
    return xllamacpp
