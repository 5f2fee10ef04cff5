"""TextLimit: the texts of one call to embed or rank, which are refused or cut where the model takes no longer ones."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

from ..errors import Cancelled, InputTooLong
from .base import CancelEvent

TRUNCATE = ("end", "error")
"""What happens to a text that is too long: its end is left out, or the call is refused."""

_FRAME = 4
"""Tokens that frame a text, or a query and a text, at most."""


class TextLimit:
    """Makes the texts of one call fit, and counts those that it has cut."""

    def __init__(self, model: str, tokens: int, count_token: Callable[[str], int], truncate: str) -> None:
        """Allow a text so many ``tokens``, as ``count_token`` counts them; ``truncate`` is one of `TRUNCATE`."""
        self._model = model
        self._tokens = tokens
        self._count_token = count_token
        self._cuts = truncate == "end"
        self.cut = 0
        """How many texts were cut, the query among them."""

    def texts(self, texts: Sequence[str], cancel: CancelEvent, query: str = "") -> list[str]:
        """Return the texts, each short enough, together with the query if there is one.

        Raises InputTooLong, which names the first text that is too long, and Cancelled.
        """
        fitting = []
        for index, text in enumerate(texts):
            if cancel.is_set():
                raise Cancelled("the client has gone")
            fitting.append(self._fitting(f"input[{index}]", text, f"{query} " if query else "", self._tokens))
        return fitting

    def query(self, query: str) -> str:
        """Return the query, of which the half of the tokens are left to a text if it is cut. Raises InputTooLong."""
        return self._fitting("query", query, "", self._tokens // 2 if self._cuts else self._tokens)

    def _fitting(self, field: str, text: str, before: str, tokens: int) -> str:
        # A text has at most as many tokens as bytes.
        if len((before + text).encode("utf-8", "surrogatepass")) + _FRAME <= tokens:
            return text
        count = self._count_token(before + text)
        if count <= tokens:
            return text
        if not self._cuts:
            counted = f"{count} tokens with the query" if before else f"{count} tokens"
            message = f"has {counted}, model {self._model!r} takes {tokens}: split or shorten it"
            raise InputTooLong(f"{field} {message}", [{"field": field, "message": message}])
        self.cut += 1
        room = tokens - _FRAME if before else tokens
        # The lengths that fit come before those that do not.
        fits = bisect_right(range(len(text)), room, key=lambda length: self._count_token(before + text[:length]))
        return text[: max(0, fits - 1)]
