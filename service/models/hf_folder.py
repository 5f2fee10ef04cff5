"""A folder with a model of Hugging Face: what it holds, read from its small files of JSON, without a library."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import orjson

from ..errors import BadModelFile
from ..types import JSONObject, WorkerType

CONFIG = "config.json"
LARGEST_CONFIG = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class HFFolder:
    """What a folder shows of its model."""

    path: Path
    architecture: str
    """The library's class, such as ``LlamaForCausalLM``; empty if the folder does not name one."""
    worker_type: WorkerType | None
    """None for a model that is not one of ours, such as one for images."""
    has_safetensors: bool

    @property
    def unusable_because(self) -> str | None:
        """Why no engine runs it by default; None if one does."""
        if self.worker_type is None:
            return f"no engine here runs a {self.architecture or 'model without architectures in its config.json'}"
        if not self.has_safetensors:
            return "it has no weights in safetensors; with allow_pickle in a [[models]] table others are loaded"
        return None

    @property
    def engine(self) -> str:
        """The engine that runs it."""
        return "transformers" if self.worker_type is WorkerType.LLM else "sentence-transformers"


def holds_model(path: Path) -> bool:
    """Return whether a folder has a model."""
    return (path / CONFIG).is_file() or (path / "modules.json").is_file()


def read(path: Path) -> HFFolder:
    """Return what a folder holds. Raises BadModelFile."""
    if not holds_model(path):
        raise BadModelFile(f"{path} is not a folder with a model of Hugging Face: it has no {CONFIG}")
    architectures = config(path).get("architectures")
    architecture = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    if (path / "modules.json").is_file():
        kind: WorkerType | None = WorkerType.TEXT2VEC
    elif architecture.endswith("ForSequenceClassification"):
        kind = WorkerType.RERANKER
    else:
        kind = WorkerType.LLM if architecture.endswith(("ForCausalLM", "LMHeadModel")) else None
    return HFFolder(path, architecture, kind, any(path.glob("*.safetensors")))


def config(path: Path) -> JSONObject:
    """Return the config.json of a folder, empty without one. Raises BadModelFile."""
    return _json(path / CONFIG) if (path / CONFIG).is_file() else {}


def chat_template(path: Path) -> str | None:
    """Return the chat template of a folder; None without one. Raises BadModelFile."""
    file = path / "chat_template.jinja"
    try:
        if file.is_file() and file.stat().st_size <= LARGEST_CONFIG:
            return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadModelFile(f"{file} can't be read: {error}") from error
    tokenizer = path / "tokenizer_config.json"
    template = _json(tokenizer).get("chat_template") if tokenizer.is_file() else None
    return template if isinstance(template, str) else None


def _json(path: Path) -> JSONObject:
    try:
        if path.stat().st_size > LARGEST_CONFIG:
            raise BadModelFile(f"{path} is larger than {LARGEST_CONFIG} bytes")
        content = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise BadModelFile(f"{path} can't be read: {error}") from error
    return content if isinstance(content, dict) else {}
