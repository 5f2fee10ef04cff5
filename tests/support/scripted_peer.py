"""A server of the loopback that answers every GET with the same headers and an empty object."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer


class Peer:
    """Gives its address and the headers of the requests to it, within a ``with``."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._requests: list[Mapping[str, str]] = []
        requests = self._requests

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                requests.append(dict(self.headers))
                self.send_response_only(200)
                for name, value in {**headers, "Content-Length": "2"}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="peer", daemon=True)

    def __enter__(self) -> tuple[str, list[Mapping[str, str]]]:
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_port}/api", self._requests

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()
