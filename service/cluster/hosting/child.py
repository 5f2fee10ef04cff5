"""ChildProcess: the process of one isolated model, from its start to its end, whatever ends it.

It gets its order over its standard input, and answers it by one line on its standard output: both are one socket. What
it writes to its standard error goes into this process's log. It ends when its standard input is closed, and when this
process ends. A read of a socket, unlike one of a pipe, blocks a greenlet alone under gevent.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping

from ...files import SocketFolder
from ...settings.sizes import size
from ...threads import start_thread
from ...types import JSONObject
from .spawn import Spawned, environ_of_child, python_command, socket_pair

log = logging.getLogger(__name__)

END_TIMEOUT = 5.0
"""Seconds that it gets to end in order before it is killed."""
KILL_TIMEOUT = 5.0
LINES_KEPT = 5
RECEIVE_SIZE = 1 << 16
LINE_LENGTH = 300

_LEVELS = {name: getattr(logging, name) for name in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")}


class ChildProcess:
    """One process for one model. `start` it once, and `stop` it."""

    def __init__(self, key: str, memory_limit: int | None, environment: Mapping[str, str]) -> None:
        """Make the folder of its socket. ``key`` is the model's, ``memory_limit`` its bytes, for messages.

        Its variables are those of this process, and over them ``environment``. Raises OSError.
        """
        self._key = key
        self._memory_limit = memory_limit
        self._environment = environment
        self._talk, self._its_talk = socket_pair()
        self._log, self._its_log = socket_pair()
        self.folder = SocketFolder("isolated")
        self.pid = 0
        self._process: Spawned | None = None
        self._answer = b""
        self._failure: BaseException | None = None
        self._began = threading.Event()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._cause = ""
        """Why this process has killed it; empty if it has not."""
        self._why = ""
        self._is_stopping = False
        self._callback: Callable[[str], None] | None = None
        self._last_lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._keeper = threading.Thread(target=self._keep, name=f"isolated-{key}", daemon=True)
        self._reader = threading.Thread(target=self._read_log, name=f"isolated-log-{key}", daemon=True)

    def start(self, order: JSONObject) -> None:
        """Start the process, and give it its order. Raises OSError, Overloaded."""
        start_thread(self._keeper)
        self._began.wait()
        if self._failure is not None:
            raise self._failure
        start_thread(self._reader)
        with contextlib.suppress(OSError):  # it has ended, which `answer` shows
            self._talk.sendall(json.dumps({**order, "parent": os.getpid(), "path": sys.path}).encode() + b"\n")

    def _keep(self) -> None:
        """Start the process and wait for its end: it is killed when the thread ends that has started it."""
        try:
            process = Spawned(
                python_command("modelyard.server.isolated_process", self._key),  # the key is for people, in ps
                # Its settings are in its order; what is secret among these variables is not for it.
                {**environ_of_child(without=["MODELYARD_"]), **self._environment},
                {0: self._its_talk.fileno(), 1: self._its_talk.fileno(), 2: self._its_log.fileno()},
            )
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that starts it
            self._failure = error
            self._began.set()
            return
        finally:
            self._its_talk.close()
            self._its_log.close()
        with self._lock:
            self.pid, self._process = process.pid, process
            if self._cause:
                process.kill()
        self._began.set()
        status = process.wait()
        self._close_orders()
        with self._lock:
            self._why = f"the process of model {self._key} {self._cause or self._described(status)}"
            self._ended.set()
            callback = None if self._is_stopping else self._callback
        self.folder.remove()
        if callback is not None:
            self._talk.close()
            callback(self._why)

    def _described(self, status: int) -> str:
        if status >= 0:
            text = f"ended with status {status}"
        else:
            with contextlib.suppress(ValueError):
                status = signal.Signals(-status)
            text = f"was killed by {getattr(status, 'name', f'signal {-status}')}"
        return text if self._memory_limit is None else f"{text} (memory_limit is {size(self._memory_limit)})"

    def _close_orders(self) -> None:
        with contextlib.suppress(OSError):
            self._talk.shutdown(socket.SHUT_WR)

    def _read_log(self) -> None:
        with self._log, self._log.makefile("rb") as lines:
            for data in lines:
                line = data.decode("utf-8", "replace").rstrip()
                level, _, text = line.partition(" ")
                if level not in _LEVELS:
                    level, text = "INFO", line
                if text:
                    self._last_lines.append(text[:LINE_LENGTH])
                    log.log(_LEVELS[level], "model %s, pid %d: %s", self._key, self.pid, text)

    def answer(self, timeout: float) -> bytes | None:
        """Return its only line; None if that has not come within ``timeout`` seconds, empty at its end."""
        self._talk.settimeout(timeout)
        try:
            while not self._answer.endswith(b"\n"):
                if not (data := self._talk.recv(RECEIVE_SIZE)):
                    return b""
                self._answer += data
        except TimeoutError:
            return None
        except ConnectionError:  # it has ended before it read its order
            return b""
        return self._answer

    @property
    def last_lines(self) -> str:
        """The last lines of its log, after its end."""
        self._reader.join(1.0)
        return " | ".join(self._last_lines)

    def why_ended(self, timeout: float = 0.0) -> str:
        """Return how it has ended; empty if it has not within ``timeout`` seconds."""
        self._ended.wait(timeout)
        return self._why

    def when_ended(self, callback: Callable[[str], None]) -> None:
        """Call ``callback`` with the reason when it ends without `stop`: at once if it has."""
        with self._lock:
            self._callback = callback
            has_ended = self._ended.is_set() and not self._is_stopping
        if has_ended:
            callback(self._why)

    def kill(self, cause: str) -> None:
        """End it at once, or as soon as it is started, because of ``cause``.

        These are words that go on with "the process of model ...".
        """
        with self._lock:
            if self._ended.is_set():
                return
            self._cause = self._cause or cause
            if self._process is not None:
                self._process.kill()

    def stop(self) -> None:
        """End it in order, or kill it where that takes too long. A second call does nothing."""
        with self._lock:
            self._is_stopping = True
        if self._process is not None:
            self._close_orders()
            if not self._ended.wait(END_TIMEOUT):
                log.warning("model %s: its process does not end within %g s, and is killed", self._key, END_TIMEOUT)
                self.kill("was stopped")
            self._keeper.join(KILL_TIMEOUT)
            if self._reader.is_alive():
                self._reader.join(KILL_TIMEOUT)
        for end in (self._talk, self._its_talk, self._log, self._its_log):
            end.close()
        self.folder.remove()
