"""The suites: each check runs one of them, and fails where one of its tests does."""

from __future__ import annotations

import pytest
from running import Service
from suites import INSIDE, environment, run_node, run_pytest, source

OPENAI_TESTS = ("chat", "responses", "test_completions.py", "test_embeddings.py", "test_models.py", "test_responses.py")


@pytest.mark.parametrize("kind", ["scripted", "gateway"])
@pytest.mark.parametrize("version", ["3.57.0", "2.54.0"])
def check_openai_python(request: pytest.FixtureRequest, version: str, kind: str) -> None:
    service: Service = request.getfixturevalue(kind)
    place = environment(f"openai-{version[0]}")
    run_pytest(
        f"openai-python {version} {kind}",
        place,
        source(place, "openai", version),
        [f"tests/api_resources/{name}" for name in OPENAI_TESTS],
        {"TEST_API_BASE_URL": service.url("/v1")},
        "-p",
        "defaults",
    )


def check_anthropic(scripted: Service) -> None:
    place = environment("anthropic")
    run_pytest(
        "anthropic 2.14.0",
        place,
        source(place, "anthropic", "2.14.0"),
        ["tests/api_resources/test_messages.py", "tests/api_resources/beta/test_messages.py"],
        {"TEST_API_BASE_URL": scripted.url("/")},
    )


def check_langchain(scripted: Service) -> None:
    run_pytest(
        "langchain-tests 1.1.9",
        environment("openai-3"),
        INSIDE,
        ["check_langchain.py"],
        {"INTEROP_URL": scripted.url("/v1")},
    )


def check_llama_index(scripted: Service) -> None:
    run_pytest(
        "llama-index-llms-openai 0.8.3",
        environment("openai-2"),
        INSIDE,
        ["check_llama_index.py"],
        {"INTEROP_URL": scripted.url("/v1")},
    )


def check_ai_sdk(scripted: Service) -> None:
    run_node("ai-sdk 6", INSIDE / "ai_sdk.mjs", {"INTEROP_URL": scripted.url("/v1")})
