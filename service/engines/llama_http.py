"""The calls that llama.cpp answers only over its own HTTP listener, on a private unix socket.

The listener can't be switched off. Its socket is in a folder of mode 0700, so no other user can reach it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from urllib.parse import quote

import orjson

from ..errors import EngineError, InvalidRequest, WorkerUnreachable
from ..files import is_at, try_lock
from ..sessions.session import Session
from ..types import JSONObject

_FOLDER_PREFIX = "modelyard-llama_"
"""Not the prefix of versions that removed the folder of every process that they did not see."""
_TIMEOUT = 10.0


class PrivateFolder:
    """A folder of this process, for one socket. Folders that no process holds the lock of are removed."""

    def __init__(self) -> None:
        """Make the folder, and hold its lock. Raises OSError."""
        root = Path(tempfile.gettempdir())
        _sweep(root)
        self.path, self._fd = _locked_folder(root)
        self.socket = self.path / "llama.sock"

    def remove(self) -> None:
        """Remove the folder with its files; a second call does nothing."""
        fd, self._fd = self._fd, None
        if fd is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(fd)


def _locked_folder(root: Path) -> tuple[Path, int | None]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX, dir=root))
        with contextlib.suppress(FileNotFoundError):
            fd = try_lock(path, os.O_RDONLY | os.O_DIRECTORY)
            if fd is not None:
                if is_at(path, fd):
                    return path, fd
                os.close(fd)
        # Another process has removed it before it was locked: the next one.


def _sweep(root: Path) -> None:
    for path in root.glob(f"{_FOLDER_PREFIX}*"):
        with contextlib.suppress(OSError):
            if path.lstat().st_uid != os.getuid():
                continue
            fd = try_lock(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            if fd is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(fd)


def encoded(body: JSONObject) -> bytes:
    """Return a body as JSON. Raises InvalidRequest for text that UTF-8 does not have."""
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        raise InvalidRequest(f"the text can't be encoded as UTF-8: {error}") from error


class LlamaHttp:
    """The calls to one listener, each of which takes a fraction of a millisecond. Many threads may share it."""

    def __init__(self, path: Path) -> None:
        """Send to the socket at ``path``; connect at the first call."""
        self._session = Session(_TIMEOUT, _TIMEOUT)
        self._url = f"http+unix://{quote(str(path), safe='')}"

    def post(self, path: str, body: JSONObject) -> JSONObject:
        """Return the JSON object of the response. Raises InvalidRequest (a refusal), EngineError (no answer)."""
        try:
            with self._session.request("POST", self._url + path, body=encoded(body)) as response:
                data = response.content
        except WorkerUnreachable as error:
            raise EngineError(f"llama.cpp did not answer {path}: {error}") from error
        answer: JSONObject = orjson.loads(data)
        if response.status_code >= 400:
            message = str(answer.get("error", {}).get("message", data[:200]))
            raise (InvalidRequest if response.status_code < 500 else EngineError)(message)
        return answer

    def close(self) -> None:
        """Close the connections."""
        self._session.close()
