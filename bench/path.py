"""Print the files and functions of modelyard that one streamed request passes, in one process and in a gateway.

Run ``python -m bench.path``. The requests come from Flask's test client, so the web server's own files are not counted.
The figures are in docs/architecture.md.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from modelyard import create_app
from modelyard.settings import Settings

from . import ours
from .models import EchoModel
from .places import ROOT

MODEL = EchoModel("echo", slots=8, waiting=8)
BODY = {"model": "echo", "messages": [{"role": "user", "content": "hello"}], "max_new_tokens": 4}
READY_TIMEOUT = 20.0
_FOLDERS = tuple(str(ROOT / name) for name in ("service", "blueprints"))


class RequestPath:
    """Records the code of modelyard that runs in this thread, and in threads that start meanwhile."""

    def __init__(self) -> None:
        """Record nothing yet."""
        self.functions: dict[CodeType, None] = {}

    def record(self, call: Callable[[], object]) -> None:
        """Run ``call``, and record the functions that it calls."""
        threading.setprofile(self._note)
        sys.setprofile(self._note)
        try:
            call()
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    def _note(self, frame: FrameType, event: str, _argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(_FOLDERS):
            self.functions.setdefault(frame.f_code)

    def files(self) -> list[str]:
        """Return the files that were passed, in the order of their first function."""
        return list(dict.fromkeys(str(Path(code.co_filename).relative_to(ROOT)) for code in self.functions))


def recorded(settings: Settings) -> RequestPath:
    """Return the path of one streamed request to a service with ``settings``, after one that is not recorded."""
    app = create_app(settings)
    runtime = app.extensions["modelyard"]
    client = app.test_client()
    path = RequestPath()

    def ask() -> None:
        response = client.post("/api/worker/generate_stream", json=BODY)
        if response.status_code != 200 or not response.data:
            raise RuntimeError(
                f"the request was answered with {response.status_code}: {response.get_data(as_text=True)}"
            )
        response.close()

    runtime.start()
    try:
        _wait_ready(client)
        ask()
        path.record(ask)
    finally:
        runtime.stop()
    return path


def _wait_ready(client: Any) -> None:
    deadline = time.monotonic() + READY_TIMEOUT
    while client.get("/readyz").status_code != 200:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the service is not ready after {READY_TIMEOUT:g} s")
        time.sleep(0.02)


def main() -> None:
    """Print both paths."""
    with tempfile.TemporaryDirectory() as folder:
        table = {"name": MODEL.name, "engine": "echo"}
        alone = Settings(models=[MODEL.name], model_tables=(table,), state_dir=folder, access_log=False)
        _print("one process", recorded(alone))
        with ours.cluster([[MODEL]], gateways=()) as cluster:
            registry = f"http://127.0.0.1:{cluster.controller.port}/api"
            gateway = Settings(role="gateway", registry=registry, state_dir=folder, access_log=False)
            _print("a gateway's part", recorded(gateway))


def _print(title: str, path: RequestPath) -> None:
    files = path.files()
    sys.stdout.write(f"{title}: {len(files)} files, {len(path.functions)} functions\n")
    sys.stdout.writelines(f"    {file}\n" for file in files)


if __name__ == "__main__":
    main()
