"""What pages look like: their templates, the filters of these, and the files that browsers load.

The templates have an environment of their own: nothing that an application does to its own reaches them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

from flask import Response, request
from jinja2 import Environment, PackageLoader, StrictUndefined
from werkzeug.exceptions import NotFound

KEPT_FOR = 31_536_000
"""Seconds that a browser keeps a file: a year, as another content has another address."""
_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}


class Assets:
    """The files in the folder ``static``, read once."""

    def __init__(self) -> None:
        folder = files(__package__) / "static"
        self._files = {entry.name: entry.read_bytes() for entry in folder.iterdir() if _suffix(entry.name) in _TYPES}
        self._hashes = {name: hashlib.sha256(data).hexdigest()[:16] for name, data in self._files.items()}

    def address(self, name: str) -> str:
        """Return the address of a file, below that of the pages. Raises KeyError."""
        return f"static/{self._hashes[name]}/{name}"

    def response(self, version: str, name: str) -> Response:
        """Return the answer to a request for a file; a version that is not the current one is not kept."""
        if name not in self._files:
            raise NotFound
        response = Response(self._files[name], content_type=_TYPES[_suffix(name)])
        response.set_etag(self._hashes[name])
        if version == self._hashes[name]:
            response.headers["Cache-Control"] = f"public, max-age={KEPT_FOR}, immutable"
        else:
            response.headers["Cache-Control"] = "no-cache"
        response.make_conditional(request)
        return response


def _suffix(name: str) -> str:
    return f".{name.rpartition('.')[2]}"


# How values are shown

NOT_KNOWN = "\u2013"


def seconds(value: float | None) -> str:
    """Return a duration for people: ``184 ms``, ``1.24 s``, ``3 min``, ``5 h``, ``2 d``."""
    if value is None:
        return NOT_KNOWN
    if value < 0.0995:
        return f"{value * 1000:.1f} ms" if value < 0.00995 else f"{value * 1000:.0f} ms"
    if value < 0.9995:
        return f"{value * 1000:.0f} ms"
    for limit, unit, length in ((100.0, "s", 1), (6000.0, "min", 60), (172_800.0, "h", 3600)):
        if value < limit:
            return f"{value / length:.3g} {unit}"
    return f"{value / 86_400:.0f} d"


def milliseconds(value: float | None) -> str:
    """Return a duration in milliseconds for people."""
    return seconds(None if value is None else value / 1000)


def age(value: float) -> str:
    """Return a time that has passed for people, in whole seconds."""
    return "now" if value < 1 else f"{seconds(float(round(value)))} ago"


def number(value: float | None) -> str:
    """Return a number with groups of thousands: ``12 345``, ``3.1``."""
    if value is None:
        return NOT_KNOWN
    text = f"{value:,.1f}" if isinstance(value, float) and value < 99.95 and value != int(value) else f"{value:,.0f}"
    return text.replace(",", "\u202f")


def tone(state: str) -> str:
    """Return the tone in which a state is shown; one that is not known here is ``neutral``."""
    return _TONES.get(state, "neutral")


_TONES: Mapping[str, str] = {
    **dict.fromkeys(("ready", "usable"), "good"),
    **dict.fromkeys(("starting", "stopping", "loading", "unloading", "waiting", "draining"), "busy"),
    **dict.fromkeys(("failed", "failing", "unhealthy", "disconnected"), "bad"),
}

FILTERS: Mapping[str, Callable[[Any], str]] = {
    "age": age,
    "seconds": seconds,
    "milliseconds": milliseconds,
    "number": number,
    "tone": tone,
}


def environment() -> Environment:
    """Return the environment of the templates: all values are text, and a name without a value is an error."""
    made = Environment(
        loader=PackageLoader(__package__ or "", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(FILTERS)
    return made
