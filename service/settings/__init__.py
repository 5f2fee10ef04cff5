"""Settings and parameters: each is declared once, and loaded from options, environment and TOML."""

from __future__ import annotations

from .settings import Settings

__all__ = ["Settings"]
