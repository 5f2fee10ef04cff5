"""transformers: causal language models of Hugging Face, from a folder of weights or from the hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import EngineError, InvalidRequest, MissingLibrary, PromptTooLong, StartFailed
from ..settings.params import param
from ..types import Burst, GenerateRequest, JSONObject, ModelMetadata, WorkerType
from ..wire.messages import openai_messages
from .base import CancelEvent, Progress, room_in_context
from .huggingface import HuggingFaceEngine, HuggingFaceParams, free_gpu_memory
from .token_text import HermesCalls
from .transformers_answer import Answer, first_line, messages_for_template
from .transformers_rows import Row, Sampling

if TYPE_CHECKING:
    from .transformers_batch import Batch

_OPTIONS = frozenset({"logprobs", "top_logprobs", "logit_bias"})
_TOOL_OPTIONS = frozenset({"messages", "tools", "tool_choice", "parallel_tool_calls"})
_TICK = 1.0


@dataclass
class TransformersParams(HuggingFaceParams):
    """Parameters of `Transformers`."""

    dtype: str = param(
        "auto",
        help="numbers to compute with; auto: those of the weights, float32 on the CPU",
        choices=["auto", "float32", "bfloat16", "float16"],
    )
    attention: str | None = param(None, help="attn_implementation of the library, such as sdpa or flash_attention_2")
    context_length: int | None = param(
        None, help="tokens of prompt and answer; default: what the model was made for", min=16, max=100_000_000
    )
    default_max_new_tokens: int = param(1024, help="tokens of an answer without max_new_tokens", min=1, max=1_000_000)
    batch_size: int = param(16, help="requests that are computed together at most", min=1, max=1024)


class Transformers(HuggingFaceEngine):
    """One model, whose requests are computed together, step by step."""

    name = "transformers"
    Params = TransformersParams
    worker_types: ClassVar[frozenset[WorkerType]] = frozenset({WorkerType.LLM})
    ticks = True

    params: TransformersParams

    def __init__(self, params: Any, path: Path | None = None) -> None:
        super().__init__(params, path)
        self._model: Any = None
        self._tokenizer: Any = None
        self._batch: Batch | None = None
        self._context_length = 0
        self._stop_ids: frozenset[int] = frozenset()
        self._template = ""

    # Life

    def start(self, progress: Progress) -> None:
        """Load tokenizer and weights, and compute one token. Raises MissingLibrary, BadModelFile, StartFailed."""
        source = self.source()
        try:
            import torch  # noqa: PLC0415 - only models of this engine need them
            import transformers  # noqa: PLC0415

            from . import transformers_batch  # noqa: PLC0415
        except ImportError as error:
            raise MissingLibrary(
                f"the engine transformers needs torch and transformers ({error}): pip install 'modelyard[transformers]'"
            ) from error
        progress(f"loading {source}")
        params = self.params
        device, given = self.device(torch), self.loading_arguments()
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(source, **given)
            self._model = transformers.AutoModelForCausalLM.from_pretrained(
                source,
                dtype="float32" if params.dtype == "auto" and device == "cpu" else params.dtype,
                use_safetensors=self.use_safetensors(),
                attn_implementation=params.attention,
                **given,
            )
            self._model = self._model.to(device).eval()
            self._describe()
            self._batch = transformers_batch.Batch(self._model, params.batch_size, params.registered_name)
            self._batch.start()
            progress("computing a first token")
            self._batch.compute_one(self._tokens_of("a") or [0], params.start_timeout)
        except Exception as error:
            self.stop()
            raise StartFailed(f"transformers can't run {source}: {first_line(error)}") from error

    def _describe(self) -> None:
        config = self._model.config.get_text_config()
        trained = getattr(config, "max_position_embeddings", None) or 2048
        self._context_length = min(self.params.context_length or trained, trained)
        ends = self._model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        self._stop_ids = frozenset(end for end in [*ends, self._tokenizer.eos_token_id] if end is not None)
        template = self._tokenizer.chat_template
        self._template = template if isinstance(template, str) else ""

    def stop(self) -> None:
        """Free the weights."""
        if self._batch is not None:
            self._batch.stop()
        was_on_gpu = self._model is not None and self._model.device.type == "cuda"
        self._batch = self._model = self._tokenizer = None
        if was_on_gpu:
            free_gpu_memory()

    def metadata(self) -> ModelMetadata:
        """Return the metadata of the model."""
        config = self._model.config if self._model is not None else None
        return ModelMetadata(
            self.params.registered_name,
            context_length=self._context_length or None,
            chat_model=bool(self._template),
            metadata={"architecture": (getattr(config, "architectures", None) or [None])[0]},
            prompt_chat_template=self._template or None,
        )

    @property
    def options(self) -> frozenset[str]:
        """Probabilities and biases; tools where the model's template has them in the form of Hermes and Qwen."""
        return _OPTIONS | _TOOL_OPTIONS if self._has_tools else _OPTIONS

    @property
    def _has_tools(self) -> bool:
        template = self._template
        has_json_calls = HermesCalls.BEGIN in template and '"arguments"' in template and "<function=" not in template
        return has_json_calls and "tools" in template

    # Text

    def generate_stream(self, request: GenerateRequest, cancel: CancelEvent) -> Iterator[Burst | None]:
        """Yield bursts as tokens come. Raises InvalidRequest for what the template refuses, PromptTooLong."""
        assert self._batch is not None
        prompt = self._prompt(request)
        row = self._row(request, self._tokens_of(prompt, is_raw=not request.uses_messages), cancel)
        answer = Answer(request, self._tokenizer, row)
        if request.echo:
            yield Burst([prompt])
        self._batch.submit(row)
        try:
            while not answer.is_over:
                taken = row.take(_TICK)
                if cancel.is_set():
                    return
                yield answer.burst(taken)
        finally:
            row.end("stop")

    def _prompt(self, request: GenerateRequest) -> str:
        if not request.uses_messages:
            if not request.prompt:
                raise InvalidRequest.of_field("prompt", "is empty, and there are no messages: give one of them")
            return request.prompt
        if not self._template:
            raise InvalidRequest.of_field(
                "messages", f"model {self.params.registered_name!r} has no chat template: send a raw prompt"
            )
        if request.options.get("tool_choice", "auto") != "auto":
            raise InvalidRequest.of_field(
                "tool_choice", f"model {self.params.registered_name!r} can't be made to call a tool: use auto"
            )
        messages = messages_for_template(request.options.get("messages") or openai_messages(request.messages))
        try:
            rendered = self._tokenizer.apply_chat_template(
                messages, tools=request.options.get("tools"), add_generation_prompt=True, tokenize=False
            )
        except Exception as error:  # a template may raise anything
            raise InvalidRequest.of_field(
                "messages", f"are refused by the chat template: {first_line(error)}"
            ) from error
        return str(rendered)

    def _tokens_of(self, text: str, *, is_raw: bool = True) -> list[int]:
        # A chat template writes the special tokens itself.
        return list(self._tokenizer(text, add_special_tokens=is_raw)["input_ids"])

    def _row(self, request: GenerateRequest, tokens: list[int], cancel: CancelEvent) -> Row:
        name, count, room = self.params.registered_name, len(tokens), self._context_length
        if count >= room:
            field = "messages" if request.uses_messages else "prompt"
            raise PromptTooLong(
                f"the prompt has {count} tokens, model {name!r} has a context of {room} (context_length): shorten it",
                [{"field": field, "message": f"{count} tokens, at most {room}"}],
            )
        if request.context_len is not None:
            room = count + min(room - count, room_in_context(request.context_len, count))
        limit = min(request.max_new_tokens or self.params.default_max_new_tokens, room - count)
        return Row(tokens, limit, self._sampling(request), cancel)

    def _sampling(self, request: GenerateRequest) -> Sampling:
        """Return the request's sampling, and for what it leaves out that of the model's generation_config.json."""
        usual = self._model.generation_config
        samples = request.temperature is not None or bool(usual.do_sample)
        given: JSONObject = {"temperature": (usual.temperature or 1.0) if samples else 0.0, "seed": request.seed}
        if samples:
            given |= {"top_p": usual.top_p, "top_k": usual.top_k, "min_p": usual.min_p}
        given["repetition_penalty"] = usual.repetition_penalty
        for field in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty"):
            given[field] = value if (value := getattr(request, field)) is not None else given.get(field)
        given |= {"presence_penalty": request.presence_penalty, "frequency_penalty": request.frequency_penalty}
        biases = request.options.get("logit_bias") or {}
        given["logit_bias"] = {int(token): float(bias) for token, bias in biases.items()}
        given["stop_ids"] = self._stop_ids | frozenset(request.stop_token_ids)
        given["logprobs"] = request.options.get("top_logprobs", 0) if request.options.get("logprobs") else None
        return Sampling(**{name: value for name, value in given.items() if value is not None})

    def count_token(self, prompt: str) -> int:
        """Return the number of tokens of ``prompt`` as a raw prompt: the one that its usage will report."""
        if self._tokenizer is None:
            raise EngineError(f"model {self.params.registered_name!r} is not loaded")
        return len(self._tokens_of(prompt))
