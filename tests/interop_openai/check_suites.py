"""The suites: each check runs one of them, and fails where one of its tests does."""

from __future__ import annotations

import pytest
from running import Service
from suites import Suites

OPENAI_TESTS = ("chat", "responses", "test_completions.py", "test_embeddings.py", "test_models.py", "test_responses.py")
LLAMA_TESTS = ("chat_completion", "compat_anthropic", "compat_oai_responses", "completion", "embedding", "rerank")

every_way = pytest.mark.parametrize("place", ["standalone", "gateway", "backend"])
"""Against one process with the models, a gateway over a worker, and a gateway over another server."""


@pytest.fixture
def service(request: pytest.FixtureRequest, place: str) -> Service:
    """The service of that kind."""
    service: Service = request.getfixturevalue(place)
    return service


@every_way
@pytest.mark.parametrize("version", ["3.57.0", "2.54.0"])
def check_openai_python(suites: Suites, service: Service, place: str, version: str) -> None:
    packages = suites.environment(f"openai-{version[0]}")
    suites.run_pytest(
        f"openai-python {version} {place}",
        packages,
        suites.source(packages, "openai", version),
        [f"tests/api_resources/{name}" for name in OPENAI_TESTS],
        {"TEST_API_BASE_URL": service.url("/v1")},
        *("-p", "values"),
    )


@every_way
def check_anthropic(suites: Suites, service: Service, place: str) -> None:
    packages = suites.environment("anthropic")
    suites.run_pytest(
        f"anthropic 2.14.0 {place}",
        packages,
        suites.source(packages, "anthropic", "2.14.0"),
        [f"tests/api_resources/{name}.py" for name in ("test_messages", "test_models", "beta/test_messages")],
        {"TEST_API_BASE_URL": service.url("/")},
    )


@every_way
@pytest.mark.parametrize(
    ("suite", "packages", "script"),
    [
        ("openai helpers 3.57.0", "openai-3", "check_openai.py"),
        ("openai helpers 2.54.0", "openai-2", "check_openai.py"),
        ("anthropic helpers 2.14.0", "anthropic", "check_anthropic.py"),
        ("langchain-tests 1.1.9", "openai-3", "check_langchain.py"),
        ("llama-index-llms-openai 0.8.3", "openai-2", "check_llama_index.py"),
    ],
)
def check_client(suites: Suites, service: Service, place: str, suite: str, packages: str, script: str) -> None:
    suites.run_pytest(
        f"{suite} {place}", suites.environment(packages), suites.inside, [script], {"INTEROP_URL": service.url("/v1")}
    )


@every_way
def check_ai_sdk(suites: Suites, service: Service, place: str) -> None:
    suites.run_node(f"ai-sdk 6 {place}", suites.inside / "ai_sdk.mjs", {"INTEROP_URL": service.url("/v1")})


@pytest.mark.parametrize(
    ("kind", "place", "tests"), [("unit", "real", LLAMA_TESTS), ("security", "secured", ["security"])]
)
def check_llama_server(suites: Suites, service: Service, kind: str, place: str, tests: list[str]) -> None:
    packages = suites.environment("openai-2")
    suites.run_pytest(
        f"llama-server {kind}",
        packages,
        suites.source(packages, "llama-cpp-python", "0.3.36", "vendor/llama.cpp/tools/server/tests"),
        [f"unit/test_{name}.py" for name in tests],
        # Their tests start a server each; this makes them take one that is there.
        {"DEBUG_EXTERNAL": "1", "PORT": str(service.port), "PYTHONPATH": "."},
        *("-m", "not slow"),
    )
