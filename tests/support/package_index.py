"""Wheels made on the spot, and a package index on localhost that serves them as slowly as a test likes."""

from __future__ import annotations

import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CHUNK = 16 * 1024


def make_wheel(folder: Path, name: str, members: Mapping[str, bytes], metadata: str = "") -> Path:
    """Write version 1.0 of a package ``name`` to ``folder``; pip takes it for a real one, for it is."""
    stem = f"{name.replace('-', '_')}-1.0"
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
        archive.writestr(f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{metadata}")
        archive.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{stem}.dist-info/RECORD", "")
    return path


class PackageIndex(ThreadingHTTPServer):
    """Serves the wheels of ``folder``, ``CHUNK`` bytes after each ``pause``; counts those fetched."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.pause = 0.0
        self.fetched = 0
        self.abandoned = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/simple/"


class _Handler(BaseHTTPRequestHandler):
    server: PackageIndex

    def do_GET(self) -> None:
        name = self.path.rstrip("/").rpartition("/")[2]
        if self.path.startswith("/simple/"):
            wheels = self.server.folder.glob(f"{name.replace('-', '_')}-*.whl")
            self._answer("text/html", "".join(f'<a href="/{w.name}">{w.name}</a>' for w in wheels).encode())
        else:
            self.server.fetched += 1
            self._answer("application/octet-stream", (self.server.folder / name).read_bytes(), self.server.pause)

    def _answer(self, kind: str, body: bytes, pause: float = 0.0) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            for start in range(0, len(body), CHUNK):
                time.sleep(pause)
                self.wfile.write(body[start : start + CHUNK])
        except OSError:
            self.server.abandoned.set()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def serving(folder: Path) -> Iterator[PackageIndex]:
    """Run an index over ``folder`` until the block ends."""
    with PackageIndex(folder) as index:
        thread = threading.Thread(target=index.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield index
        finally:
            index.shutdown()
            thread.join()
