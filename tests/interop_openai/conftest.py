"""The services that the suites run against, and the line of each suite at the end. No part of `make test`."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import ROOT, Service, Services, services

sys.path.insert(0, str(ROOT))

from suites import Suites

collect_ignore = ["inside"]
SUITES = Suites(Path(__file__).parent)
ANSWERS = Path(__file__).with_name("answers.toml")
REAL = """
[[models]]
name = "smollm2-135m"

[[models]]
name = "minilm-l6"
"""
NAMES = {"default_models": "llm=smollm2-135m,text2vec=minilm-l6", "unknown_models": "default"}
KEY = "sk-this-is-the-secret-key"
"""The key that the tests of llama-server send."""
ORIGINS = ",".join(
    f"http://{host}{port}" for host in ("localhost", "127.0.0.1", "[::1]") for port in ("", ":3000", ":8080")
)
SCRIPTED = f"""
[[models]]
name = "scripted"
worker_class = "modelyard.engines.scripted:Scripted"
table = "{ANSWERS}"

[[models]]
name = "text-embedding-3-small"
engine = "echo"
worker_type = "text2vec"
"""
BACKENDS = """
[[models]]
name = "scripted"
engine = "openai"
base_url = "{url}"

[[models]]
name = "text-embedding-3-small"
engine = "openai"
worker_type = "text2vec"
base_url = "{url}"
"""
MODELS = (
    *("gpt-6-astra", "gpt-5.4", "gpt-5.1", "gpt-4o-mini", "gpt-3.5-turbo-instruct"),
    *("claude-opus-5-5", "claude-mythos-preview", "model_id"),
)
ALIASES = ",".join(f"{name}=scripted" for name in MODELS)
"""The names of models that the suites ask for."""


@pytest.fixture(scope="session")
def suites() -> Suites:
    """Runs the suites of this folder."""
    return SUITES


@pytest.fixture(scope="session")
def run() -> Iterator[Services]:
    """Makes services that end with the session."""
    with services() as made:
        yield made


@pytest.fixture(scope="session")
def standalone(run: Services) -> Service:
    """A standalone service whose models answer from the table `ANSWERS`."""
    return run.start(SCRIPTED, role="standalone", aliases=ALIASES)


@pytest.fixture(scope="session")
def gateway(run: Services) -> Service:
    """A gateway over a worker that has the same models."""
    controller = run.start("", "controller", registry="memory:")
    registry = controller.url("/api").removesuffix("/")
    run.start(SCRIPTED, "worker", registry=registry)
    return run.start("", "gateway", registry=registry, aliases=ALIASES, worker_class="gevent")


@pytest.fixture(scope="session")
def backend(run: Services, standalone: Service) -> Service:
    """A gateway whose models are those of another server, by the engine ``openai``."""
    return run.start(BACKENDS.format(url=standalone.url("/v1")), "gateway", aliases=ALIASES, worker_class="gevent")


@pytest.fixture(scope="session")
def real(run: Services, models_dir: Path) -> Service:
    """A standalone service with SmolLM2 and MiniLM, which answer for every name."""
    aliases = "text-embedding-3-small=minilm-l6,test=smollm2-135m"
    return run.start(REAL, role="standalone", models_dirs=models_dir, aliases=aliases, **NAMES)


@pytest.fixture(scope="session")
def secured(run: Services, models_dir: Path) -> Service:
    """The same with a key, for pages of this machine alone."""
    tokens = f"tests infer {hashlib.sha256(KEY.encode()).hexdigest()}"
    tables = REAL.partition('[[models]]\nname = "minilm')[0]
    return run.start(tables, role="standalone", models_dirs=models_dir, tokens=tokens, cors_origins=ORIGINS, **NAMES)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the line of each suite."""
    terminalreporter.section("suites")
    for line in SUITES.lines:
        terminalreporter.line(line)
