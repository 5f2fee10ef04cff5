"""Our side: the server of this checkout under gunicorn, with its own settings file, alone or as a cluster.

Only this module has the configuration of our side.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from modelyard.settings.settings import ALLOCATOR

from .models import EchoModel
from .places import ROOT, run_folder
from .processes import Server, ServerFailed, free_port

NAME = "modelyard"
DELTA = "application/x-model-output-delta"
SMOLLM2 = "smollm2-135m"
SMOLLM2_SLOTS = 8
JOIN_TIMEOUT = 20.0

Table: TypeAlias = Mapping[str, object]
"""The parameters of a model."""


@contextlib.contextmanager
def serving(
    models: Sequence[EchoModel],
    *,
    smollm2: bool = False,
    application: str = "wsgi:app",
    role: str = "standalone",
    registry: str = "",
    slots: int = SMOLLM2_SLOTS,
    tables: Sequence[Table] = (),
    **settings: str,
) -> Iterator[Server]:
    """Run the server with ``models``, and with SmolLM2 if ``smollm2``, in the body of a ``with``.

    ``slots`` are those of SmolLM2; ``tables`` are models of other engines; ``settings`` are further settings, by their
    names.
    """
    folder = run_folder(f"{NAME}-{free_port()}")
    port = free_port()
    environ = {
        **environ_of(models, folder, smollm2=smollm2, slots=slots, tables=tables),
        **{f"MODELYARD_{name.upper()}": value for name, value in settings.items()},
        "MODELYARD_ROLE": role,
        "MODELYARD_PORT": str(port),
        **({"MODELYARD_REGISTRY": registry} if registry else {}),
    }
    command = [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", application]
    with Server(NAME, command, port, environ, folder / "log.txt") as server:
        server.wait_ready("/readyz", timeout=120)
        yield server


def environ_of(
    models: Sequence[EchoModel],
    folder: Path,
    *,
    smollm2: bool,
    slots: int = SMOLLM2_SLOTS,
    tables: Sequence[Table] = (),
) -> dict[str, str]:
    """Return the settings that name ``models``, with the state in ``folder``; their tables are written there."""
    config = folder / "bench.toml"
    every = _tables(models, smollm2=smollm2, slots=slots) + list(tables)
    config.write_text("\n".join(map(_table, every)))
    return {
        **ALLOCATOR,  # as modelyard serve sets it
        "MODELYARD_CONFIG": str(config),
        "MODELYARD_MODELS": ",".join(str(table["name"]) for table in every),
        "MODELYARD_MODELS_DIRS": os.environ.get("MODELYARD_MODELS_DIRS", str(ROOT / "models")),
        "MODELYARD_STATE_DIR": str(folder / "state"),
        "MODELYARD_ACCESS_LOG": "false",
        "MODELYARD_LOG_LEVEL": "warning",
    }


@dataclass(frozen=True)
class Cluster:
    """A controller, workers that are registered there, and gateways over them; each is a process of its own."""

    controller: Server
    workers: list[Server]
    gateways: list[Server]


@contextlib.contextmanager
def cluster(
    workers: Sequence[Sequence[EchoModel]], gateways: Sequence[str] = ("wsgi:app",), **settings: str
) -> Iterator[Cluster]:
    """Run a worker for each list of models, and a gateway for each application, in the body of a ``with``.

    ``settings`` are those of the gateways.
    """
    with contextlib.ExitStack() as stack:
        controller = stack.enter_context(serving([], role="controller"))
        registry = f"http://127.0.0.1:{controller.port}/api"
        servers = [stack.enter_context(serving(models, role="worker", registry=registry)) for models in workers]
        _await_instances(controller, sum(map(len, workers)))
        # Last, so that their first read of the registry shows all.
        ways = [
            stack.enter_context(serving([], role="gateway", registry=registry, application=application, **settings))
            for application in gateways
        ]
        yield Cluster(controller, servers, ways)


@contextlib.contextmanager
def smollm2_cluster(workers: int, slots: int) -> Iterator[Cluster]:
    """Run as many workers with SmolLM2, whose logs have a line for each request, and two gateways.

    The first gateway sends the requests of a session to one worker, the second does not.
    """
    with contextlib.ExitStack() as stack:
        controller = stack.enter_context(serving([], role="controller"))
        registry = f"http://127.0.0.1:{controller.port}/api"
        logged = {"access_log": "true", "log_level": "info"}
        servers = [
            stack.enter_context(serving([], smollm2=True, slots=slots, role="worker", registry=registry, **logged))
            for _ in range(workers)
        ]
        _await_instances(controller, workers)
        ways = [
            stack.enter_context(serving([], role="gateway", registry=registry, session_affinity=affinity))
            for affinity in ("true", "false")
        ]
        yield Cluster(controller, servers, ways)


def _await_instances(controller: Server, count: int) -> None:
    """Wait until so many instances of models are healthy. Raises ServerFailed."""
    deadline = time.monotonic() + JOIN_TIMEOUT
    while time.monotonic() < deadline:
        status, body = controller.ask("/api/controller/instances?healthy=true")
        if status == 200 and sum(not row["key"].endswith("@service") for row in json.loads(body)) >= count:
            return
        time.sleep(0.05)
    raise ServerFailed(f"not all of {count} instances have registered within {JOIN_TIMEOUT:g} s")


def _tables(models: Sequence[EchoModel], *, smollm2: bool, slots: int) -> list[Table]:
    tables: list[Table] = [
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
        tables.append({"name": SMOLLM2, "limit_model_concurrency": slots})
    return tables


def _table(parameters: Table) -> str:
    return "[[models]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in parameters.items())
