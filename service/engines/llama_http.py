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
from ..sessions.session import Session
from ..types import JSONObject

_FOLDER_PREFIX = "modelyard-llama-"
_TIMEOUT = 10.0


class PrivateFolder:
    """A folder of this process, for one socket. Folders of dead processes are removed."""

    def __init__(self) -> None:
        """Make the folder."""
        root = Path(tempfile.gettempdir())
        _sweep(root)
        self.path = Path(tempfile.mkdtemp(prefix=f"{_FOLDER_PREFIX}{os.getpid()}-", dir=root))
        self.socket = self.path / "llama.sock"

    def remove(self) -> None:
        """Remove the folder with its files."""
        shutil.rmtree(self.path, ignore_errors=True)


def _sweep(root: Path) -> None:
    for folder in root.glob(f"{_FOLDER_PREFIX}*-*"):
        pid = folder.name.removeprefix(_FOLDER_PREFIX).partition("-")[0]
        with contextlib.suppress(OSError):
            if pid.isdigit() and not Path(f"/proc/{pid}").exists() and folder.stat().st_uid == os.getuid():
                shutil.rmtree(folder, ignore_errors=True)


class LlamaHttp:
    """The calls to one listener, each of which takes a fraction of a millisecond. Many threads may share it."""

    def __init__(self, path: Path) -> None:
        """Send to the socket at ``path``; connect at the first call."""
        self._session = Session(_TIMEOUT, _TIMEOUT)
        self._url = f"http+unix://{quote(str(path), safe='')}"

    def post(self, path: str, body: JSONObject) -> JSONObject:
        """Return the JSON object of the response. Raises InvalidRequest (a refusal), EngineError (no answer)."""
        try:
            payload = orjson.dumps(body)
        except orjson.JSONEncodeError as error:
            raise InvalidRequest(f"the text can't be encoded as UTF-8: {error}") from error
        try:
            with self._session.request("POST", self._url + path, body=payload) as response:
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
