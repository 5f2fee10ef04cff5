"""What people wait for: the pages of a service, and the help of the command."""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from .. import ours
from ..client import LoadFailed
from ..models import FAST
from ..plan import Plan
from ..processes import Server
from ..report import Row, at_most, kilobytes, milliseconds

NAME = "faces"
TITLE = "the pages at /ui, with all that they load, and modelyard --help"
LIMITS = "rendering by Jinja, and the modules that the command imports"

SECONDS = 0.3
BYTES = 100_000
FIRST = "/ui/"
_LINK = re.compile(r'<a [^>]*href="(/[^"#?]*)"')
_ASSET = re.compile(r'(?:src|<link [^>]*href)="(/[^"]+)"')


def measure(plan: Plan) -> Iterator[Row]:
    """Yield a row for the slowest page, one for the largest with its assets, and one for the command."""
    with ours.serving([FAST]) as server:
        paths = sorted({FIRST, *_LINK.findall(_page(server, FIRST))})
        times = {path: statistics.median(_seconds(server, path) for _ in range(4 * plan.rounds)) for path in paths}
        sizes = {path: _loaded(server, path) for path in paths}
    slowest, largest = max(times, key=times.__getitem__), max(sizes, key=sizes.__getitem__)
    case = f"the slowest of {len(paths)} pages, {slowest}"
    yield at_most(Row(NAME, case, milliseconds(times[slowest])), times[slowest] * 1000, SECONDS * 1000, "ms")
    case = f"the largest, {largest}, with style and scripts"
    yield at_most(Row(NAME, case, kilobytes(sizes[largest])), sizes[largest] / 1000, BYTES / 1000, "KB")
    seconds = min(_help() for _ in range(2 * plan.rounds))
    yield at_most(Row(NAME, "modelyard --help", milliseconds(seconds)), seconds * 1000, SECONDS * 1000, "ms")


def _page(server: Server, path: str) -> str:
    status, body = server.ask(path)
    if status != 200:
        raise LoadFailed(f"{path}: status {status}")
    return body.decode()


def _seconds(server: Server, path: str) -> float:
    began = time.perf_counter()
    _page(server, path)
    return time.perf_counter() - began


def _loaded(server: Server, path: str) -> int:
    """Return the bytes of a page and of its assets."""
    page = _page(server, path)
    return sum(len(text.encode()) for text in (page, *(_page(server, asset) for asset in set(_ASSET.findall(page)))))


def _help() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "modelyard", "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began
