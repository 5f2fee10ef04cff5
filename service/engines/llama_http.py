"""The few calls that llama.cpp answers only over its own HTTP listener, on a private unix socket.

The listener can't be switched off; as a socket in a folder of mode 0700 no other user reaches it.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

import orjson

from ..errors import EngineError, InvalidRequest

_FOLDER_PREFIX = "modelyard-llama-"
_TIMEOUT = 10.0


class PrivateFolder:
    """A folder of this process alone, for one socket. Those of dead processes are swept away."""

    def __init__(self) -> None:
        """Make the folder."""
        root = Path(tempfile.gettempdir())
        _sweep(root)
        self.path = Path(tempfile.mkdtemp(prefix=f"{_FOLDER_PREFIX}{os.getpid()}-", dir=root))
        self.socket = self.path / "llama.sock"

    def remove(self) -> None:
        """Remove it with what it holds."""
        shutil.rmtree(self.path, ignore_errors=True)


def _sweep(root: Path) -> None:
    for folder in root.glob(f"{_FOLDER_PREFIX}*-*"):
        pid = folder.name.removeprefix(_FOLDER_PREFIX).partition("-")[0]
        with contextlib.suppress(OSError):
            if pid.isdigit() and not Path(f"/proc/{pid}").exists() and folder.stat().st_uid == os.getuid():
                shutil.rmtree(folder, ignore_errors=True)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class LlamaHttp:
    """One kept connection, used by one thread at a time: the calls take a fraction of a millisecond."""

    def __init__(self, path: Path) -> None:
        """Talk to the socket at ``path``; connects at the first call."""
        self._connection = _UnixConnection(path)
        self._lock = threading.Lock()

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return the answer's object. Raises InvalidRequest for a refusal, EngineError for silence."""
        try:
            payload = orjson.dumps(body)
        except orjson.JSONEncodeError as error:
            raise InvalidRequest(f"the text can't be encoded as UTF-8: {error}") from error
        return self._call("POST", path, payload)

    def get(self, path: str) -> dict[str, Any]:
        """Return the answer's object; raises like `post`."""
        return self._call("GET", path, None)

    def _call(self, method: str, path: str, payload: bytes | None) -> dict[str, Any]:
        with self._lock:
            for attempt in (1, 2):
                try:
                    self._connection.request(method, path, payload, {"Content-Type": "application/json"})
                    response = self._connection.getresponse()
                    status, data = response.status, response.read()
                    break
                except (OSError, http.client.HTTPException) as error:
                    # The listener closes idle connections: once more on a new one.
                    self._connection.close()
                    if attempt == 2:
                        raise EngineError(f"llama.cpp did not answer {path}: {error}") from error
        answer: dict[str, Any] = orjson.loads(data)
        if status >= 400:
            message = str(answer.get("error", {}).get("message", data[:200]))
            raise (InvalidRequest if status < 500 else EngineError)(message)
        return answer

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._connection.close()
