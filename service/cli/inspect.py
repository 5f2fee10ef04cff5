"""``modelyard inspect``: what weights hold, what they need, and the table that runs them."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..models.gguf_parts import stem_of
from ..models.inspection import Inspection
from ..models.inspection import inspect as inspect_weights
from ..settings.sizes import size
from ..types import plain
from .options import json_option
from .tables import as_json, table, terminal_width


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--n-ctx", type=click.IntRange(1), default=2048, metavar="N", help="tokens of a request  [default: 2048]")
@click.option("--slots", type=click.IntRange(1), default=8, metavar="N", help="requests at once  [default: 8]")
@json_option
def inspect(path: Path, n_ctx: int, slots: int, json_wanted: bool) -> None:
    """Show what a GGUF file, or a folder of Hugging Face, holds, what memory it needs, and what runs it.

    Of a model in several GGUF files PATH is the first. An adapter or a projector is shown with the model that takes it.

    Nothing is loaded, and no service is called. Exit status 1 if no engine here runs it.
    """
    inspection = inspect_weights(path)
    tokens = min(n_ctx, inspection.context_length or n_ctx)
    if json_wanted:
        document = {**plain(inspection), "path": str(path), "chat_template": inspection.chat_template is not None}
        click.echo(as_json({**document, "memory_bytes": inspection.memory(tokens, slots)}))
    else:
        click.echo(table(("", ""), _rows(inspection, tokens, slots), terminal_width()).lstrip("\n"))
        if inspection.fault is None:
            click.echo(f"\n{_table_of(inspection)}")
    if inspection.fault is not None:
        raise click.exceptions.Exit(1)


def _rows(inspection: Inspection, tokens: int, slots: int) -> list[tuple[str, object]]:
    files = f", {inspection.files} files" if inspection.files > 1 else ""
    rows: list[tuple[str, object]] = [
        ("format", f"{inspection.format}{files}"),
        ("holds", _held(inspection)),
        ("name", inspection.name),
        ("architecture", inspection.architecture),
        ("type", inspection.worker_type),
        ("engine", inspection.engine if inspection.fault is None else f"none: {inspection.fault}"),
        ("weights", f"{size(inspection.weights_bytes)}{f' of {inspection.numbers}' if inspection.numbers else ''}"),
    ]
    if inspection.parameters:
        rows.append(("parameters", f"{inspection.parameters:,}"))
    if inspection.kind == "model":
        rows += _rows_of_model(inspection, tokens, slots)
    else:
        rows.append(("memory", f"{size(inspection.weights_bytes)}, beside its model"))
    return rows


def _held(inspection: Inspection) -> str:
    if inspection.kind == "adapter":
        rank = f" of rank {inspection.adapter_rank}" if inspection.adapter_rank else ""
        return f"a LoRA adapter{rank}, for models of this architecture"
    if inspection.kind == "projector":
        pixels = f" of {inspection.image_size} pixels" if inspection.image_size else ""
        projected = " and ".join(inspection.projects) or "nothing"
        return f"a projector of {projected}{pixels}, for the model it was made with"
    return "a model"


def _rows_of_model(inspection: Inspection, tokens: int, slots: int) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [
        ("context", f"{inspection.context_length} tokens" if inspection.context_length else None)
    ]
    if inspection.worker_type != "llm":
        rows.append(("embedding", f"{inspection.embedding_length} numbers" if inspection.embedding_length else None))
        rows.append(("memory", f"{size(inspection.weights_bytes)}: the weights"))
        return rows
    rows.append(("chat", _chat(inspection.chat_template)))
    if (memory := inspection.memory(tokens, slots)) is not None:
        each = size((inspection.kv_bytes_per_token or 0) * tokens)
        rows.append(("memory", f"{size(memory)}: the weights, and {each} for each of {slots} slots of {tokens} tokens"))
    return rows


def _chat(template: str | None) -> str:
    if template is None:
        return "no template"
    return "yes, with tools" if "tools" in template else "yes, without tools"


def _table_of(inspection: Inspection) -> str:
    """Return the table of a configuration file that runs the weights, once they are in a models folder."""
    file = json.dumps(inspection.path.name)
    if inspection.kind != "model":
        key = f"lora = [{file}]" if inspection.kind == "adapter" else f"mmproj = {file}"
        return f'[[models]]\nname = "my-model"\nmodel_path = "my-model.gguf"\n{key}'
    stem = inspection.path.resolve().name if inspection.path.is_dir() else stem_of(inspection.path.name)
    lines = ["[[models]]", f"name = {json.dumps(stem.lower())}", f"model_path = {file}"]
    if inspection.engine != "llama.cpp":
        lines.insert(2, f"engine = {json.dumps(inspection.engine)}")
    return "\n".join(lines)
