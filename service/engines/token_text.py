"""The text of tokens as they come: whole letters, ended by a stop text, without the calls of tools in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import orjson

from ..types import JSONObject
from .tool_calls import new_call_id

_HALF_LETTER = "\ufffd"
_TOKENS_A_LETTER = 4
"""The most tokens of one letter: its bytes in UTF-8."""


class TokenText:
    """Turns tokens into new text. Letters that the next token may complete are held back.

    A tokenizer's text of a token depends on the tokens before it, so each text is the difference of two longer ones, as
    in text-generation-inference and vLLM.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        """``decode`` returns the text of a list of tokens."""
        self._decode = decode
        self._tokens: list[int] = []
        self._begin = 0
        """Where the tokens begin whose text was returned last."""
        self._end = 0
        """Where the tokens end whose text was returned."""

    def feed(self, token: int) -> str:
        """Return the text that a token adds; empty while it ends within a letter."""
        self._tokens.append(token)
        text = self._new_text()
        if text.endswith(_HALF_LETTER) and len(self._tokens) - self._end < _TOKENS_A_LETTER:
            return ""
        self._begin, self._end = self._end, len(self._tokens)
        return text

    def rest(self) -> str:
        """Return the letters that were held back, without a half one at the end."""
        return self._new_text().rstrip(_HALF_LETTER)

    def _new_text(self) -> str:
        before = self._decode(self._tokens[self._begin : self._end])
        return self._decode(self._tokens[self._begin :])[len(before) :]


class StopTexts:
    """Cuts a text before the first of some stop texts. What may become one is held back."""

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.hit = False
        """Whether a stop text has come."""

    def feed(self, text: str) -> str:
        """Return the text that is surely before a stop text."""
        self._held += text
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            self.hit = True
            return self._held[: min(places)]
        kept = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        free, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return free

    def rest(self) -> str:
        """Return what was held back, at an end without a stop text."""
        return "" if self.hit else self._held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of ``text`` that ``stop`` begins with."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)


class HermesCalls:
    """Takes the calls of tools out of a text: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``.

    So write Hermes 2 Pro, Qwen 2.5 and 3, and models that were trained like them.
    """

    BEGIN, END = "<tool_call>", "</tool_call>"

    def __init__(self, at_most: int | None = None) -> None:
        """Take ``at_most`` calls; None: all."""
        self._at_most = at_most
        self._held = ""
        self._is_inside = False
        self.count = 0
        """How many calls have come."""

    @property
    def is_over(self) -> bool:
        """Whether all calls that may come have come."""
        return self.count == self._at_most

    def feed(self, text: str) -> tuple[str, list[JSONObject]]:
        """Return the text beside calls, and the calls that have become whole, as ``tool_calls`` of a delta."""
        self._held += text
        outside, calls = "", []
        while not self.is_over:
            if not self._is_inside:
                before, begin, after = self._held.partition(self.BEGIN)
                kept = 0 if begin else _overlap(before, self.BEGIN)
                outside += before[: len(before) - kept]
                self._held = after if begin else before[len(before) - kept :]
                if not begin:
                    break
                self._is_inside = True
            written, end, after = self._held.partition(self.END)
            if not end:
                break
            self._held, self._is_inside = after, False
            if (call := self._parsed(written)) is None:
                outside += f"{self.BEGIN}{written}{self.END}"
            else:
                calls.append(call)
        return ("" if self.count and not outside.strip() else outside), calls

    def rest(self) -> tuple[str, list[JSONObject]]:
        """Return the same at the end of the text: a call without its last mark counts, if it is whole."""
        if self.is_over:
            return "", []
        if not self._is_inside:
            return self._held, []
        call = self._parsed(self._held)
        return (f"{self.BEGIN}{self._held}", []) if call is None else ("", [call])

    def _parsed(self, written: str) -> JSONObject | None:
        """Return the call of a text of JSON as a part of a delta; None if it is not one."""
        try:
            call = orjson.loads(written)
        except orjson.JSONDecodeError:
            return None
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return None
        arguments = call.get("arguments", {})
        self.count += 1
        return {
            "index": self.count - 1,
            "id": new_call_id(),
            "type": "function",
            "function": {
                "name": call["name"],
                "arguments": arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode(),
            },
        }
