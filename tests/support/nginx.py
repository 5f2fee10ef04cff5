"""A real nginx: with the configuration of docs/operations.md, to the letter but for the ports, or with none at all."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

from running import ROOT
from stores import Server, program

_SURROUNDINGS = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/log;
events {{ }}
http {{
access_log off;
{places}
{page}
}}
"""
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def configuration(port: int, upstreams: Sequence[int]) -> str:
    """Return the configuration in the page, which listens on ``port`` before ``upstreams``."""
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```nginx\n(.*?)```", page, re.DOTALL)
    servers = "\n".join(f"    server 127.0.0.1:{upstream};" for upstream in upstreams)
    for line, other in {"    server 127.0.0.1:8000;": servers, "listen 80;": f"listen 127.0.0.1:{port};"}.items():
        assert block.count(line) == 1, f"{line!r} in docs/operations.md"
        block = block.replace(line, other)
    return block


def plain_configuration(port: int, upstreams: Sequence[int]) -> str:
    """Return the least that makes a proxy: nginx speaks HTTP/1.0 to its upstream then, and buffers."""
    (upstream,) = upstreams
    return f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://127.0.0.1:{upstream}; }} }}"


class Nginx(Server):
    """nginx before services of this machine. `start` it, `close` it in the end."""

    name = "nginx"

    def __init__(self, *upstreams: int, configured: Callable[[int, Sequence[int]], str] = configuration) -> None:
        """Let it stand before the services on the ports ``upstreams``. Skips where nginx is not installed."""
        self._upstreams = upstreams
        self._configured = configured
        super().__init__()

    def prepare(self) -> None:
        self._nginx = program("nginx")
        places = "\n".join(f"{name}_temp_path {self.folder}/{name};" for name in _TEMPORARY)
        page = self._configured(self.port, self._upstreams)
        self._path = self.folder / "nginx.conf"
        self._path.write_text(_SURROUNDINGS.format(folder=self.folder, places=places, page=page))

    def command(self) -> Sequence[object]:
        return [self._nginx, "-p", self.folder, "-c", self._path]

    def answers(self) -> object:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 5).close()
            return True
        return False
