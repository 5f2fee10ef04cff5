"""Check the files of a model of llama.cpp before the library loads them, which only says that one was refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..errors import BadModelFile
from ..models import gguf_header
from ..models.gguf_header import LORA_A, LORA_B, Header
from .llama_settings import Adapter

_TOKENS = "token_embd.weight"
"""The tensor whose adapter has its factors the other way round."""


def checked_model(path: Path) -> Header:
    """Return the header of the weights. Raises BadModelFile."""
    header = gguf_header.read(path)
    if header.unusable_because:
        raise BadModelFile(f"{path} can't run by itself: {header.unusable_because}")
    return header


def checked_adapters(adapters: list[Adapter], files: Mapping[str, Path], model: Header) -> list[tuple[Path, float]]:
    """Return path and scale of each adapter. Raises BadModelFile for one that is not for this model."""
    return [(_checked_adapter(files[adapter.name], model), adapter.scale) for adapter in adapters]


def _checked_adapter(path: Path, model: Header) -> Path:
    adapter = gguf_header.read(path)
    if adapter.kind != "adapter":
        raise BadModelFile(f"lora: {path} holds {_held(adapter)}, not a LoRA adapter")
    if adapter.useless_because:
        raise BadModelFile(f"lora: {path}: {adapter.useless_because}")
    if adapter.architecture != model.architecture:
        raise BadModelFile(
            f"lora: {path} is for models of the architecture {adapter.architecture!r}, and {model.path.name} is of "
            f"{model.architecture!r}"
        )
    for name, shape in adapter.shapes.items():
        _check_factor(path, name, shape, model)
    return path


def _check_factor(path: Path, name: str, shape: tuple[int, ...], model: Header) -> None:
    """Raise BadModelFile unless one factor of an adapter is for a tensor of the model, of its width."""
    base = name.removesuffix(LORA_A).removesuffix(LORA_B)
    if base in (name, _TOKENS):  # a norm has no factors
        return
    if base not in model.shapes:
        raise BadModelFile(f"lora: {path} is for another model: {model.path.name} has no tensor {base}")
    columns, rows = (*model.shapes[base], 1)[:2]
    length, expected = (shape[0], columns) if name.endswith(LORA_A) else (shape[-1], rows)
    if length != expected:
        fault = f"its {name} is for a length of {length}, {model.path.name} has {expected}"
        raise BadModelFile(f"lora: {path} is for another model: {fault}")


def _held(header: Header) -> str:
    return "an adapter" if header.kind == "adapter" else f"a {header.kind}"


def checked_projector(path: Path) -> Path:
    """Return the path of a projector of images. Raises BadModelFile."""
    projector = gguf_header.read(path)
    if projector.kind != "projector":
        raise BadModelFile(f"mmproj: {path} holds {_held(projector)}, not a projector of images")
    if "images" not in projector.projects:
        raise BadModelFile(f"mmproj: {path} does not project images, which is all that a model is given here")
    return path
