"""An engine of an operator, with a parameter that is shared by all models."""

from __future__ import annotations

from dataclasses import dataclass

from modelyard.engines.echo import Echo, EchoParams
from modelyard.settings.params import param


@dataclass
class SharedParams(EchoParams):
    """Parameters of `Shared`."""

    language: str = param("en", help="language of the answers", tags=["shared"])


class Shared(Echo):
    """Echo, with another parameter."""

    name = "shared"
    Params = SharedParams
