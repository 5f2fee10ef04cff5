"""``modelyard inspect``: what weights hold, what they need, and the table that runs them."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..models.inspection import Inspection
from ..models.inspection import inspect as inspect_weights
from ..types import plain
from .tables import as_json, size, table, terminal_width


@click.command(short_help="Show what weights hold and need.")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--n-ctx", type=click.IntRange(1), default=2048, metavar="N", help="tokens of a request  [default: 2048]")
@click.option("--slots", type=click.IntRange(1), default=8, metavar="N", help="requests at once  [default: 8]")
@click.option("--json", "json_wanted", is_flag=True, help="print JSON")
def inspect(path: Path, n_ctx: int, slots: int, json_wanted: bool) -> None:
    """Show what a GGUF file, or a folder of Hugging Face, holds, what memory it needs, and what runs it.

    Nothing is loaded, and no service is called. Exit status 1 if no engine here runs it.
    """
    found = inspect_weights(path)
    tokens = min(n_ctx, found.context_length or n_ctx)
    if json_wanted:
        document = {**plain(found), "path": str(path), "chat_template": found.chat_template is not None}
        click.echo(as_json({**document, "memory_bytes": _memory(found, tokens, slots)}))
    else:
        click.echo(table(("", ""), _rows(found, tokens, slots), terminal_width()).lstrip("\n"))
        if found.fault is None:
            click.echo(f"\n{_table_of(found)}")
    if found.fault is not None:
        raise click.exceptions.Exit(1)


def _rows(found: Inspection, tokens: int, slots: int) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [
        ("format", found.format),
        ("name", found.name),
        ("architecture", found.architecture),
        ("type", found.worker_type),
        ("engine", found.engine if found.fault is None else f"none: {found.fault}"),
        ("weights", f"{size(found.weights_bytes)}{f' of {found.numbers}' if found.numbers else ''}"),
    ]
    if found.parameters:
        rows.append(("parameters", f"{found.parameters:,}"))
    rows.append(("context", f"{found.context_length} tokens" if found.context_length else None))
    if found.worker_type == "llm":
        template = found.chat_template
        rows.append(
            (
                "chat",
                "no template" if template is None else f"yes, {'with' if 'tools' in template else 'without'} tools",
            )
        )
        if (memory := _memory(found, tokens, slots)) is not None:
            each = size((found.kv_bytes_per_token or 0) * tokens)
            rows.append(
                ("memory", f"{size(memory)}: the weights, and {each} for each of {slots} slots of {tokens} tokens")
            )
    else:
        rows.append(("embedding", f"{found.embedding_length} numbers" if found.embedding_length else None))
    return rows


def _chat(template: str | None) -> str:
    if template is None:
        return "no template"
    return "yes, with tools" if "tools" in template else "yes, without tools"


def _memory(found: Inspection, tokens: int, slots: int) -> int | None:
    return found.memory(tokens, slots) if found.worker_type == "llm" else found.weights_bytes


def _table_of(found: Inspection) -> str:
    """Return the table of a configuration file that runs the weights, once they are in a models folder."""
    name = (found.path.resolve().name if found.path.is_dir() else found.path.stem).lower()
    lines = ["[[models]]", f"name = {json.dumps(name)}", f"model_path = {json.dumps(found.path.name)}"]
    if found.engine != "llama.cpp":
        lines.insert(2, f"engine = {json.dumps(found.engine)}")
    return "\n".join(lines)
