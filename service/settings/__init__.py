"""What a service is told: parameters declared once, settings, and where their values come from."""

from __future__ import annotations

from .settings import Settings

__all__ = ["Settings"]
