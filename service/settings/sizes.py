"""Numbers of bytes as people write and read them: ``12GB``, ``512 MiB``, ``98.4 MB``."""

from __future__ import annotations

import re
from decimal import Decimal

_DECIMAL = ("kB", "MB", "GB", "TB")
_BINARY = ("KiB", "MiB", "GiB", "TiB")
_UNITS = {
    "b": 1,
    **{unit.lower(): 1000**power for power, unit in enumerate(_DECIMAL, 1)},
    **{unit.lower(): 1024**power for power, unit in enumerate(_BINARY, 1)},
}
"""The bytes of each unit, by its name in small letters."""
_SIZE = re.compile(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([A-Za-z]*)\s*", re.ASCII)


def bytes_of(text: str) -> int:
    """Return the bytes of a size such as ``12GB`` (1000 to the 3) or ``12 GiB`` (1024 to the 3); without a unit, bytes.

    Raises ValueError with the reason.
    """
    match = _SIZE.fullmatch(text)
    unit = _UNITS.get((match[2] or "B").lower()) if match else None
    if match is None or unit is None:
        units = ", ".join((*_DECIMAL, *_BINARY))
        raise ValueError(f"{text!r} is not a number of bytes, or a number with one of the units {units}")
    return int(Decimal(match[1]) * unit)


def size(count: int) -> str:
    """Return a number of bytes as text for people, as in 98.4 MB."""
    value, unit = float(count), "B"
    for larger in _DECIMAL:
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
