"""Weights at an address: fetches one file over HTTP, and goes on where a broken connection has left it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import quote, urlsplit

import requests

from ..errors import PullFailed
from .progress import Progress, Stage

TRIES = 5
"""Tries in a row that bring nothing."""
READ_SIZE = 64 * 1024
"""Bytes that a break may lose."""
TIMEOUT = (10.0, 60.0)
"""Seconds to connect, and of silence."""
HUB_ENDPOINT = "https://huggingface.co"


def hub_url(model: str, revision: str, file: str) -> str:
    """Return the address of a file on the Hugging Face hub, or on the mirror that ``HF_ENDPOINT`` names."""
    endpoint = os.environ.get("HF_ENDPOINT") or HUB_ENDPOINT
    return f"{endpoint.rstrip('/')}/{quote(model)}/resolve/{quote(revision, safe='')}/{quote(file)}"


def hub_headers() -> Mapping[str, str]:
    """Return the headers for the hub: with the token in ``HF_TOKEN``, for models that need one."""
    token = os.environ.get("HF_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}


def download(
    url: str,
    part: Path,
    size: int,
    progress: Progress,
    *,
    headers: Mapping[str, str] | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Write the file at ``url``, of ``size`` bytes, to ``part``; what is there already is not fetched again.

    Proxy variables count. After a break, a silence or a status of 429 and 5xx it goes on, `TRIES` times in a row at
    most without a new byte, with growing pauses. Raises PullFailed; the part stays for the next pull. Raises OSError.
    """
    tries, reason = 0, ""
    with requests.Session() as session:
        session.headers.update({"Accept-Encoding": "identity", **(headers or {})})
        while tries < TRIES:
            done = _size_of(part)
            if done == size:
                return
            if done > size:
                part.unlink()
                continue
            if tries:
                pause(2.0 ** (tries - 1))
            try:
                reason = _go_on(session, url, part, size, progress)
            except requests.RequestException as error:
                reason = f"{type(error).__name__}: {error}"
            tries = 0 if _size_of(part) > done else tries + 1
    raise PullFailed(
        f"{_shown(url)} could not be fetched: {reason}; what has come is kept: the next pull goes on from there"
    )


def _go_on(session: requests.Session, url: str, part: Path, size: int, progress: Progress) -> str:
    """Fetch the rest of a file; return why it ended, if it is not whole. Raises PullFailed if no try can help."""
    done = _size_of(part)
    headers = {"Range": f"bytes={done}-"} if done else {}
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        status = response.status_code
        if status == 429 or status >= 500:
            return f"the server answers with {status} {response.reason}"
        if status == 416:  # the part is not of this file
            part.unlink()
            return "the server has no such range"
        if status not in (200, 206):
            raise PullFailed(f"{_shown(url)} could not be fetched: the server answers with {status} {response.reason}")
        goes_on = status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {done}-")
        if done and not goes_on:
            done = 0
        with part.open("ab" if goes_on else "wb") as file:
            for data in response.iter_content(READ_SIZE):
                done += len(data)
                if done > size:
                    raise PullFailed(f"{_shown(url)} is longer than the {size} bytes of the catalogue: not kept")
                file.write(data)
                progress(Stage.DOWNLOADING, done, size)
    return f"it ended after {done} of {size} bytes"


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _shown(url: str) -> str:
    """Return an address without what may be secret in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"
