"""What the engines for models of Hugging Face share: their parameters, where the weights are, and the device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadModelFile
from ..models import hf_folder
from ..models.inspection import inspect
from ..settings.params import param
from ..types import JSONObject, WorkerType
from .base import Engine, ModelParams


@dataclass
class HuggingFaceParams(ModelParams):
    """Parameters of every model of Hugging Face."""

    hub_model: str | None = param(
        None,
        help="model of the Hugging Face hub, fetched at the start, in place of model_path",
        tags=["fixed", "operator"],
    )
    hub_revision: str | None = param(None, help="branch, tag or commit of hub_model", tags=["fixed", "operator"])
    device: str = param("auto", help="cpu, cuda, cuda:1, mps; auto: the first GPU, else the CPU")
    trust_remote_code: bool = param(
        False, help="whether Python code that comes with the weights is run", tags=["fixed", "operator"]
    )
    allow_pickle: bool = param(
        False,
        help="whether weights in pickle files are loaded, which can hold code; else safetensors only",
        tags=["fixed", "operator"],
    )


class HuggingFaceEngine(Engine):
    """The base class of these engines."""

    Params = HuggingFaceParams

    params: HuggingFaceParams

    @classmethod
    def worker_type_of(cls, path: Path) -> WorkerType | None:
        """Return the type that the folder shows. Raises BadModelFile."""
        return hf_folder.read(path).worker_type

    def source(self) -> str:
        """Return what the library loads: a folder, or a name on the hub. Raises BadModelFile without either."""
        if self.path is not None:
            hf_folder.read(self.path)
            return str(self.path)
        if self.params.hub_model:
            return self.params.hub_model
        name = self.params.registered_name
        raise BadModelFile(f"model {name!r} has neither a model_path (a folder) nor a hub_model")

    def memory_needed(self) -> int:
        """Return the bytes of the weights as they are stored, and of one context; 0 for a model of the hub."""
        if self.path is None:
            return 0
        weights = inspect(self.path)
        return weights.memory(weights.context_length or 0, 1) or weights.weights_bytes

    def loading_arguments(self) -> JSONObject:
        """Return what every loader of the libraries takes: which code may run, and which version is fetched."""
        params = self.params
        given: JSONObject = {"trust_remote_code": params.trust_remote_code, "local_files_only": self.path is not None}
        if params.hub_revision is not None and self.path is None:
            given["revision"] = params.hub_revision
        return given

    def use_safetensors(self) -> bool | None:
        """Return the libraries' argument of that name: None allows pickle files too."""
        return None if self.params.allow_pickle else True

    def device(self, torch: Any) -> str:
        """Return the device to compute on; ``auto`` is the first GPU, else the CPU."""
        if self.params.device != "auto":
            return self.params.device
        return "cuda" if torch.cuda.is_available() else "cpu"


def free_gpu_memory() -> None:
    """Give memory of a GPU that nothing uses any more back to other processes."""
    import torch  # noqa: PLC0415 - only models of these engines need it

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
