"""The process of one isolated model: the worker service on a private unix socket, for the process that started it.

Run as ``python -m modelyard.server.isolated_process KEY``. The first line of its standard input is its order, JSON with
the settings and the model. One line of JSON on its standard output says that the model is loaded, or why not. It ends
when its standard input does.

Its server is werkzeug's: it has one client, which sends what it has checked, and it must be one process, so that the
status of its end tells what ended it, and the memory limit is that of the engine.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import resource
import signal
import socket
import sys
import threading
from contextlib import suppress
from io import BytesIO
from typing import IO, Any

from werkzeug.serving import WSGIRequestHandler, make_server

from ..errors import ModelyardError
from ..settings.loading import deserialize
from ..types import JSONObject, WorkerType, plain
from ..wire.errors import PROBLEM_TYPE
from .extension import KEY, create_app
from .runtime import Runtime

BACKLOG = 2048
"""Connections that may wait to be accepted."""
LOAD_TIMEOUT = 60.0
"""Seconds that the service without its model takes to start at most."""
_PR_SET_PDEATHSIG = 1
"""The option of Linux's prctl(2): the signal that a process gets when its parent ends."""


class _Handler(WSGIRequestHandler):
    """Answers the requests of one connection, without a line for each in the log.

    werkzeug's own `run_wsgi` closes the connection after each response, and waits 10 ms before its end leaves.
    """

    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def run_wsgi(self) -> None:
        """Answer one request; each piece of a stream leaves in one write."""
        environ = self.make_environ()
        # Whole, so that the next request begins after it.
        environ["wsgi.input"] = BytesIO(self.rfile.read(int(environ.get("CONTENT_LENGTH") or 0)))
        is_chunked = False

        def start_response(status: str, headers: list[tuple[str, str]], exc_info: object = None) -> Any:
            nonlocal is_chunked
            code, _, phrase = status.partition(" ")
            self.send_response(int(code), phrase)
            for name, value in headers:
                self.send_header(name, value)
            is_chunked = not any(name.lower() == "content-length" for name, _ in headers)
            if is_chunked:
                self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()

        body = self.server.app(environ, start_response)
        try:
            for data in body:
                if data:
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data) if is_chunked else data)
                    self.wfile.flush()
            if is_chunked:
                self.wfile.write(b"0\r\n\r\n")
            self.wfile.flush()
        except BaseException:
            self.close_connection = True
            raise
        finally:
            if (close := getattr(body, "close", None)) is not None:
                close()

    def finish(self) -> None:
        """Close the connection, without an error where the client has closed it first."""
        with suppress(ConnectionError):
            super().finish()

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log nothing."""


def main() -> None:
    """Serve until the standard input ends."""
    orders, answers = _own_pipes()
    order: JSONObject = json.loads(orders.readline())
    _end_with_parent(order["parent"])
    if (limit := order["memory_limit"]) is not None:
        # Memory that it may write to: a limit of its addresses would count weights that are only mapped.
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    settings = deserialize(order["settings"])
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    sys.path[:] = order["path"]  # as in the process that started this one: it has found the class of the engine there
    app = create_app(settings)
    runtime: Runtime = app.extensions[KEY]
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(order["socket"])
    listener.listen(BACKLOG)
    server = make_server(
        f"unix://{order['socket']}", 0, app, threaded=True, request_handler=_Handler, fd=listener.fileno()
    )
    threading.Thread(target=server.serve_forever, name="isolated-server", daemon=True).start()
    status = 0
    try:
        answers.write(json.dumps(_load(runtime, order)).encode() + b"\n")
        answers.flush()
        orders.read()
        runtime.drain(0)
    except ModelyardError as error:
        answers.write(json.dumps({"error": _document(error)}).encode() + b"\n")
        answers.flush()
        status = 1
    finally:
        runtime.stop()
    sys.stderr.flush()
    # A thread of an engine that does not end must not keep the process.
    os._exit(status)


def _own_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Return the pipes to the parent, apart from standard input and output: an engine may read and write those."""
    orders, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return orders, answers


def _end_with_parent(parent: int) -> None:
    """Be killed with the parent, also while stopped or in a call that never returns; ignore what a terminal sends."""
    # The parent lets the answers end first; a handler, unlike "ignore", is not inherited by what an engine starts.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _stay)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _stay(number: int, frame: Any) -> None:
    """Do nothing: the parent ends this process."""


def _load(runtime: Runtime, order: JSONObject) -> JSONObject:
    """Load the model, and return what it takes and is. Raises StartFailed."""
    runtime.start()
    runtime.wait_loaded(LOAD_TIMEOUT)
    models = runtime.local.models
    models.startup(order["model"], WorkerType(order["worker_type"]), {})
    engine = models.workers()[0].engine
    options, images = sorted(engine.options), engine.takes_images
    return {"options": options, "takes_images": images, "metadata": plain(engine.metadata())}


def _document(error: ModelyardError) -> JSONObject:
    return {"type": f"{PROBLEM_TYPE}{error.code}", "detail": str(error), "errors": error.errors}


if __name__ == "__main__":
    main()
