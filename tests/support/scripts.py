"""Requests that the engine ``scripted`` follows, and the journal that it keeps (tests/process/engines/scripted.py)."""

from __future__ import annotations

import json
from typing import Any

from running import Service


def script(model: str = "script", **plan: Any) -> dict[str, Any]:
    """Return the body of a request for a model that follows ``plan``; for ``vectors``, of embeddings."""
    text = json.dumps(plan)
    if model == "vectors":
        return {"model": model, "input": [text]}
    return {"model": model, "messages": [{"role": "human", "content": text}]}


def journal(service: Service, *words: object) -> list[str]:
    """Return the lines of the journal in a service's folder that begin with ``words``."""
    path = service.folder / "journal"
    lines = path.read_text().splitlines() if path.exists() else []
    beginning = " ".join(map(str, words))
    return [line for line in lines if not beginning or line == beginning or line.startswith(f"{beginning} ")]
