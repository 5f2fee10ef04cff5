r"""Patterns of JSON schemas in the words that llama.cpp's compiler of grammars knows.

Of a pattern that it can't read, such as ``^\d+$`` or one without anchors, the library accepts any text, and tells its
log alone. A character outside of ASCII has no quantifier there, and a negated class takes the quotation mark that ends
the text. So a pattern is written with groups, quantifiers and classes of the characters that stand in JSON as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NoReturn, TypeAlias

Ranges: TypeAlias = list[tuple[int, int]]
"""Ranges of characters, by the numbers of the first and the last."""

_LAST = 0x10FFFF
_NEVER_PLAIN: Ranges = [(0, 0x1F), (ord('"'), ord('"')), (ord("\\"), ord("\\")), (0xD800, 0xDFFF)]
"""The characters that JSON has as escapes alone, and the halves of surrogate pairs."""
_SETS: dict[str, Ranges] = {
    "d": [(ord("0"), ord("9"))],
    "w": [(ord("0"), ord("9")), (ord("A"), ord("Z")), (ord("_"), ord("_")), (ord("a"), ord("z"))],
    "s": [(ord(" "), ord(" ")), (0xA0, 0xA0), (0x2000, 0x200A), (0x3000, 0x3000)],
}
_QUANTIFIER = re.compile(r"([*+?]|\{\d+(?:,\d*)?\})\??")
_GROUP = re.compile(r"\?:|\?P?<[A-Za-z_]\w*>")
_CODE = re.compile(r"u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})")
_MEANS_MORE = frozenset("^$.[]|(){}*+?")


class Pattern:
    """A regular expression of a schema: JavaScript's, without what needs more than the text so far."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def translated(self) -> str:
        """Return it as the library reads it. Raises ValueError with what it can't be written with."""
        alternatives = self._alternatives(is_top=True)
        if self._at < len(self._text):
            self._refuse("a parenthesis too many")
        return f"^({'|'.join(alternatives)})$"

    def _refuse(self, what: str) -> NoReturn:
        raise ValueError(f"{self._text!r} has {what}")

    def _next(self) -> str:
        """Return the next character; empty at the end."""
        return self._text[self._at : self._at + 1]

    def _alternatives(self, *, is_top: bool = False) -> list[str]:
        alternatives = [self._sequence(is_top)]
        while self._next() == "|":
            self._at += 1
            alternatives.append(self._sequence(is_top))
        return alternatives

    def _sequence(self, is_top: bool) -> str:
        """Return one alternative; at the top, with any text where it has no anchor."""
        begins, ends = not is_top, not is_top
        if is_top and self._next() == "^":
            begins, self._at = True, self._at + 1
        atoms: list[str] = []
        while (character := self._next()) not in ("", "|", ")"):
            self._at += 1
            if character == "$" and is_top and self._next() in ("", "|"):
                ends = True
                continue
            atoms.append(self._atom(character) + self._quantifier())
        anything = f"{_class(_plain([(0, _LAST)]))}*"
        return ("" if begins else anything) + "".join(atoms) + ("" if ends else anything)

    def _quantifier(self) -> str:
        match = _QUANTIFIER.match(self._text, self._at)
        if match is None:
            return ""
        self._at = match.end()
        return match[1]

    def _atom(self, character: str) -> str:
        if character == "(":
            return self._group()
        if character == "[":
            return _class(self._set())
        if character == ".":
            return _class(_plain([(0, _LAST)]))
        if character == "\\":
            return _class(_plain(self._escape()))
        if character in _MEANS_MORE:
            self._refuse(f"{character!r} at a place where it is not understood")
        return _class(_plain([(ord(character), ord(character))]))

    def _group(self) -> str:
        if self._next() == "?":
            match = _GROUP.match(self._text, self._at)
            if match is None:
                self._refuse(f"a group of the kind {self._text[self._at - 1 : self._at + 2]!r}")
            self._at = match.end()
        alternatives = self._alternatives()
        if self._next() != ")":
            self._refuse("a group without an end")
        self._at += 1
        return f"({'|'.join(alternatives)})"

    def _escape(self) -> Ranges:
        """Return what stands after a backslash."""
        character = self._next()
        if character.lower() in _SETS:
            self._at += 1
            ranges = _SETS[character.lower()]
            return ranges if character.islower() else _others(ranges)
        match = _CODE.match(self._text, self._at)
        if match is not None:
            self._at = match.end()
            high, low, *codes = match.groups()
            if high:
                code = 0x10000 + ((int(high, 16) - 0xD800) << 10) + int(low, 16) - 0xDC00
            else:
                code = int(next(filter(None, codes)), 16)
            return [(code, code)]
        if not character or character.isalnum():
            self._refuse(f"the escape '\\{character}'")
        self._at += 1
        return [(ord(character), ord(character))]

    def _set(self) -> Ranges:
        """Return the characters of a class, after its bracket."""
        is_negated = self._next() == "^"
        self._at += is_negated
        ranges: Ranges = []
        while (character := self._next()) != "]":
            first = self._member()
            if self._next() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                last = self._member()
                ends = [*first, *last]
                if any(low != high for low, high in ends) or ends[0] > ends[-1]:
                    self._refuse(f"a range whose ends are not in order, at {character!r}")
                first = [(ends[0][0], ends[-1][1])]
            ranges += first
        self._at += 1
        return _plain(_others(ranges) if is_negated else ranges)

    def _member(self) -> Ranges:
        character = self._next()
        if not character:
            self._refuse("a class without an end")
        self._at += 1
        return self._escape() if character == "\\" else [(ord(character), ord(character))]


def _others(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Return all characters that are not in ``ranges``."""
    gaps: Ranges = []
    start = 0
    for first, last in sorted(ranges):
        if first > start:
            gaps.append((start, first - 1))
        start = max(start, last + 1)
    return [*gaps, (start, _LAST)] if start <= _LAST else gaps


def _plain(ranges: Ranges) -> Ranges:
    """Return those of ``ranges`` that stand in JSON as they are. Raises ValueError if none does."""
    plain = _others([*_others(ranges), *_NEVER_PLAIN])
    if not plain:
        raise ValueError("it needs a character that JSON has as an escape alone")
    return plain


def _class(ranges: Ranges) -> str:
    """Return the class of ``ranges``, or the only character."""
    (first, last), *more = ranges
    if first == last < 0x80 and not more:
        return f"\\{chr(first)}" if chr(first) in _MEANS_MORE else chr(first)
    parts: list[str] = []
    for first, last in ranges:
        start = first + 1 if chr(first) == "^" else first  # it would negate the class at its beginning
        if start <= last:
            parts.append(_member(start) if start == last else f"{_member(start)}-{_member(last)}")
    return f"[{''.join(parts)}{'^' if any(chr(first) == '^' for first, _ in ranges) else ''}]"


def _member(code: int) -> str:
    return f"\\{chr(code)}" if chr(code) in "[]-" else chr(code)
