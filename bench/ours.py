"""Our side: the server of this checkout under gunicorn, with its own settings file.

All that is known here of its configuration stands in this module.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence

from modelyard.cli.serve import ALLOCATOR

from .models import EchoModel
from .places import ROOT, run_folder
from .processes import Server, free_port

NAME = "modelyard"
DELTA = "application/x-model-output-delta"
SMOLLM2 = "smollm2-135m"
SMOLLM2_SLOTS = 8


@contextlib.contextmanager
def serving(models: Sequence[EchoModel], *, smollm2: bool = False, application: str = "wsgi:app") -> Iterator[Server]:
    """Run the server with ``models`` (none is fine) and with SmolLM2 if asked, until left; ready when entered."""
    folder = run_folder(f"{NAME}-{free_port()}")
    port = free_port()
    config = folder / "bench.toml"
    config.write_text(_config(models, smollm2=smollm2))
    environ = {
        **ALLOCATOR,  # as modelyard serve says it
        "MODELYARD_CONFIG": str(config),
        "MODELYARD_PORT": str(port),
        "MODELYARD_MODELS": ",".join([model.name for model in models] + ([SMOLLM2] if smollm2 else [])),
        "MODELYARD_MODELS_DIRS": os.environ.get("MODELYARD_MODELS_DIRS", str(ROOT / "models")),
        "MODELYARD_STATE_DIR": str(folder / "state"),
        "MODELYARD_ACCESS_LOG": "false",
        "MODELYARD_LOG_LEVEL": "warning",
    }
    command = [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", application]
    with Server(NAME, command, port, environ, folder / "log.txt") as server:
        server.wait_ready("/readyz", timeout=120)
        yield server


def _config(models: Sequence[EchoModel], *, smollm2: bool) -> str:
    tables = [
        {
            "name": model.name,
            "engine": "echo",
            "worker_type": "text2vec" if model.embeds else "llm",
            "limit_model_concurrency": model.slots,
            "max_waiting": model.waiting,
            "delay": model.delay,
        }
        for model in models
    ]
    if smollm2:
        tables.append({"name": SMOLLM2, "limit_model_concurrency": SMOLLM2_SLOTS})
    return "\n".join(
        "[[models]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items()) for table in tables
    )
