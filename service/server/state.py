"""What a process leaves for its successor: a lock, what was running, what is quarantined.

One folder a service (role and port), mode 0700. The lock says who owns the models; `StateFile` says which of them ran,
with which parameters that were set over HTTP, and which kill their process while they load.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..files import write_atomically
from ..types import JSONObject, split_worker_key

log = logging.getLogger(__name__)

QUARANTINE_AFTER = 2
"""Starts of a model in a row during which its process died, until it is left out."""


class OwnerLock:
    """The right to hold models, as a lock on a file that names its holder. Ends with the process."""

    def __init__(self, path: Path) -> None:
        """Use the file ``path``; nothing is opened yet."""
        self.path = path
        self._fd: int | None = None

    def acquire(self) -> bool:
        """Take the lock if it is free; return whether this process holds it."""
        if self._fd is not None:
            return True
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps({"pid": os.getpid(), "ppid": os.getppid()}).encode(), 0)
        self._fd = fd
        return True

    def holder(self) -> dict[str, int]:
        """Return pid and ppid of the last process that held the lock; empty where none did."""
        try:
            return {k: int(v) for k, v in json.loads(self.path.read_text()).items()}
        except (OSError, ValueError, AttributeError):
            return {}

    def wait(self, stop: threading.Event, report: Callable[[str], None], interval: float = 0.1) -> bool:
        """Take the lock, waiting for a holder that is about to end; return whether it is ours.

        False where ``stop`` is set. ``report`` is called with the reason of each wait that is not a mere hand-over: a
        second service on the same role and port.
        """
        reported = None
        while not self.acquire():
            holder = self.holder()
            if holder.get("ppid") != os.getppid() and _alive(holder.get("ppid", 0)) and reported != holder:
                reported = holder
                report(
                    f"another process holds the models of this service: pid {holder.get('pid')}, "
                    f"started by pid {holder.get('ppid')} (lock {self.path}); "
                    "give this one another --port or --state-dir"
                )
            if stop.wait(interval):
                return False
        return True

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def _alive(pid: int) -> bool:
    if pid <= 1:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class StateFile:
    """What ran: a table by worker key, written whole at every change. A folder that can't be written is logged once.

    Of a model: ``model`` (the name it is declared by), ``params`` (what was set over HTTP), ``added`` (declared by a
    request only), ``stopped`` (over HTTP), ``loading`` (now), ``deaths`` (of processes in a row, while it loaded),
    ``died`` (when the last of them was noticed, in seconds since 1970), ``quarantined``.
    """

    def __init__(self, path: Path) -> None:
        """Read ``path`` if it is there; one that can't be read is set aside as ``.bad``."""
        self._path = path
        self._lock = threading.Lock()
        self._complained = False
        self._models: dict[str, JSONObject] = self._read()

    def _read(self) -> dict[str, JSONObject]:
        try:
            models = json.loads(self._path.read_bytes())["models"]
            if not isinstance(models, dict) or not all(isinstance(m, dict) for m in models.values()):
                raise ValueError("models is not a table of tables")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s can't be read (%s): set aside, nothing is remembered", self._path, error)
            with contextlib.suppress(OSError):
                self._path.replace(self._path.with_suffix(".bad"))
            return {}
        sound = {key: entry for key, entry in models.items() if _is_sound(key, entry)}
        if len(sound) < len(models):
            log.warning("%s: entries that make no sense are left out: %s", self._path, sorted(set(models) - set(sound)))
        return sound

    def forget_all(self) -> None:
        """Forget everything (``--fresh``)."""
        with self._changing():
            self._models.clear()

    def models(self) -> dict[str, JSONObject]:
        """Return a copy of all entries."""
        with self._lock:
            return {key: dict(entry) for key, entry in self._models.items()}

    def update(self, key: str, **values: Any) -> None:
        """Set ``values`` in the entry of ``key``."""
        with self._changing():
            self._models.setdefault(key, {}).update(values)

    def forget(self, key: str) -> None:
        """Remove the entry of ``key``."""
        with self._changing():
            self._models.pop(key, None)

    def begin_start(self, key: str) -> None:
        """Note that ``key`` loads now: should the process die, the next one finds the note."""
        self.update(key, loading=True)

    def end_start(self, key: str) -> None:
        """Note that the process outlived the load of ``key``, however it went."""
        self.update(key, loading=False, deaths=0)

    def end_all_starts(self) -> None:
        """Note that the process ends on request: the model that it was loading did not kill it."""
        with self._changing():
            for entry in self._models.values():
                entry.pop("loading", None)

    def count_deaths(self) -> list[str]:
        """Count what a dead predecessor was loading; return the keys that are quarantined now."""
        with self._changing():
            for entry in self._models.values():
                if entry.pop("loading", False):
                    entry["deaths"] = entry.get("deaths", 0) + 1
                    entry["quarantined"] = entry["deaths"] >= QUARANTINE_AFTER
                    entry["died"] = time.time()
            return [key for key, entry in self._models.items() if entry.get("quarantined")]

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        with self._lock:
            yield
            try:
                write_atomically(self._path, json.dumps({"models": self._models}, indent=1).encode())
            except OSError as error:
                if not self._complained:
                    log.warning("%s can't be written (%s): what runs will not be remembered", self._path, error)
                self._complained = True


def _is_sound(key: str, entry: JSONObject) -> bool:
    try:
        split_worker_key(key)
    except ValueError:
        return False
    return isinstance(entry.get("model", ""), str) and isinstance(entry.get("params", {}), dict)
