"""Ask the service of this container for its health, at the address in its variables: exit status 0 if it answers.

The process runs; whether its models are ready is told by /readyz.
"""

import os
import socket
import sys

path = os.environ.get("MODELYARD_HOST", "").removeprefix("unix:")
is_unix = path.startswith("/")
address = path if is_unix else ("127.0.0.1", int(os.environ.get("MODELYARD_PORT", "8000")))
with socket.socket(socket.AF_UNIX if is_unix else socket.AF_INET) as connection:
    connection.settimeout(4)
    connection.connect(address)
    connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
    status_line = connection.makefile("rb").readline(1000)
sys.exit(b" 200 " not in status_line)
