"""schemathesis over the OpenAPI document of running services: what it sends is refused or answered as it says.

`make test` sends a few requests to each call. `make fuzz` sends many, with the edges of every range and another seed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from modelyard.access.tokens import digest_of, new_secret
from running import ROOT, WORKER_CLASSES, Service, Services

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "8"))
"""The requests that are made up for each call."""
IS_LONG = EXAMPLES > 20
"""Whether there is time for the edges of all ranges, and for all services."""
SEED = os.environ.get("FUZZ_SEED", "1")
MODELS = """
[[models]]
name = "echo"

[[models]]
name = "emb"
engine = "echo"
worker_type = "text2vec"

[[models]]
name = "rank"
engine = "echo"
worker_type = "reranker"
"""
SECRET = new_secret()
TOKENS = f"fuzz infer+worker+admin {digest_of(SECRET).hex()}"
EXCLUDED = (
    # Statuses of 500 and above are in the document where they may be; a traceback in the log is a failure here.
    "not_a_server_error",
    # The document can't say what a model takes, nor that one field needs another.
    "positive_data_acceptance",
)
ROLES = {"standalone": ("--exclude-tag", "Controller"), "controller": (), "gateway": ()}
"""The options of each role. A standalone service would send requests to workers that its registry is made to list."""


def started(run: Services, role: str, worker_class: str) -> Service:
    """Return a service of a role; a gateway is before a worker."""
    settings: dict[str, Any] = {"worker_class": worker_class, "tokens": TOKENS, "first_output_timeout": 2}
    if role == "gateway":
        registry = run.start("", role="controller", registry="memory:").url("/api")
        run.start(MODELS, role="worker", registry=registry)
        settings |= {"registry": registry, "registry_refresh": 0.2}
    return run.start(MODELS if role == "standalone" else "", role=role, **settings)


@pytest.mark.parametrize("worker_class", WORKER_CLASSES if IS_LONG else WORKER_CLASSES[:1])
@pytest.mark.parametrize("role", ROLES if IS_LONG else list(ROLES)[:2])
def test_a_fuzzer_finds_nothing_that_the_document_does_not_have(
    run: Services, role: str, worker_class: str, tmp_path: Path
) -> None:
    service = started(run, role, worker_class)
    options = {
        "--phases": "examples,coverage,fuzzing" if IS_LONG else "examples,fuzzing",
        "--max-examples": EXAMPLES,
        "--seed": SEED,
        "--exclude-checks": ",".join(EXCLUDED),
        "--request-timeout": 20,
        "--header": f"Authorization: Bearer {SECRET}",
        "--generation-database": "none",
        "--suppress-health-check": "all",  # of a slow machine
    }
    command = [sys.executable, "-m", "schemathesis.cli", "run", service.url("/openapi.json"), "--continue-on-failure"]
    command += [text for name, value in options.items() for text in (name, str(value))]
    environ = {**os.environ, "SCHEMATHESIS_HOOKS": "fuzz_hooks", "PYTHONPATH": str(ROOT / "tests" / "support")}
    command += ["--no-color", *ROLES[role]]
    limit = 3600 if IS_LONG else 120
    ran = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=limit)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "Traceback" not in service.log()
    assert not [line for line in service.access_lines() if line.get("error") == "error"], "an error nobody foresaw"
    assert service.status()["ready"]
