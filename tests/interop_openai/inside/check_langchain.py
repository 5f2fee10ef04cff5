"""LangChain's standard tests of a chat model and of embeddings, through langchain-openai."""

from __future__ import annotations

import os
from typing import Any

from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_tests.integration_tests import ChatModelIntegrationTests, EmbeddingsIntegrationTests

URL = os.environ["INTEROP_URL"]
PLACE = {"base_url": URL, "api_key": "none"}


class _ChatTests(ChatModelIntegrationTests):
    """The tests of a chat model that takes no images, no sound and no files."""

    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "gpt-5.4"


class CheckChat(_ChatTests):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {**PLACE, "model": "gpt-4o-mini", "stream_usage": True}


class CheckResponses(_ChatTests):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {**PLACE, "model": "gpt-4o-mini", "use_responses_api": True}


class CheckEmbeddings(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[OpenAIEmbeddings]:
        return OpenAIEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {**PLACE, "model": "text-embedding-3-small", "check_embedding_ctx_length": False}
