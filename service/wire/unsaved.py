"""The note that a change of a model is not remembered: in a header of the answer, and in the message of an outcome."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote, unquote

UNSAVED_HEADER = "Modelyard-Unsaved"
"""Why a start or a shutdown is not remembered, percent-encoded; absent if it is."""

_PLAIN = " !#$&'()*+,/:;=?@[]"


def encode_reason(reason: str) -> str:
    """Return a reason as the value of a header."""
    return quote(reason, safe=_PLAIN)


def unsaved_in(headers: Mapping[str, str]) -> str:
    """Return why the change that was answered is not remembered; an empty text if it is."""
    return unquote(headers.get("modelyard-unsaved") or "")


def with_note(message: str, reason: str) -> str:
    """Return the message of an outcome, with the reason why the change is not remembered, if there is one."""
    return f"{message}; this will not be remembered: {reason}" if reason else message
