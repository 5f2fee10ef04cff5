"""WholeText: what is new in an answer that comes whole each time, as DB-GPT sends it."""

from __future__ import annotations


class WholeText:
    """What is new in a text that comes whole each time. A word once given out can't be taken back."""

    def __init__(self) -> None:
        self._last = ""

    def new_in(self, text: str) -> str:
        """Return what ``text`` has beyond the one before.

        One that only lost its end, as when blanks are trimmed, has nothing new. One that changed further ahead, as when
        half a character became whole, is new from there on.
        """
        last = self._last
        if text.startswith(last):
            self._last = text
            return text[len(last) :]
        if last.startswith(text):
            return ""
        self._last = text
        same = 0
        for mine, theirs in zip(last, text, strict=False):
            if mine != theirs:
                break
            same += 1
        return text[same:]
