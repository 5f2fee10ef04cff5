"""The state of sockets, with gevent's patches and without."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import socket, time
from modelyard.sockets import wait_readable

here, there = socket.socketpair()
began = time.monotonic()
assert not wait_readable(here.fileno(), 0.05)
assert time.monotonic() - began >= 0.04
there.send(b"x")
assert wait_readable(here.fileno(), 5)
here.recv(1)
there.close()
assert wait_readable(here.fileno(), 5), "the end is something to read"
"""


@pytest.mark.parametrize("patch", ["", "from gevent import monkey; monkey.patch_all()"], ids=["threads", "gevent"])
def test_a_wait_ends_with_bytes_with_the_end_or_with_its_time(patch: str) -> None:
    subprocess.run([sys.executable, "-c", patch + SCRIPT], check=True, timeout=60)
