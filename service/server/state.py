"""The state that a process leaves for the next one: a lock, the models that ran, and those in quarantine.

Each service (role and port) has one folder, mode 0700. The lock names the process that holds the models. `StateFile`
has the models that ran, the parameters that were set over HTTP, and the models whose load killed their process.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..files import try_lock, write_atomically
from ..processes import began, pid_namespace
from ..types import JSONObject, split_worker_key

log = logging.getLogger(__name__)

QUARANTINE_AFTER = 2
"""The number of starts in a row in which the process died, until the model is left out."""


class OwnerLock:
    """The right to hold models, as a lock on a file that names its holder. It ends with the process."""

    def __init__(self, path: Path) -> None:
        """Use the file ``path``; nothing is opened yet."""
        self.path = path
        self._fd: int | None = None

    def acquire(self) -> bool:
        """Take the lock if it is free; return whether this process holds it."""
        if self._fd is not None:
            return True
        fd = try_lock(self.path)
        if fd is None:
            return False
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(_this_process()).encode(), 0)
        self._fd = fd
        return True

    def is_lost(self) -> bool:
        """Return whether the file of the lock that this process holds was removed, or replaced by another."""
        if self._fd is None:
            return False
        try:
            return not os.path.samestat(os.fstat(self._fd), self.path.stat())
        except OSError:
            return True

    def holder(self) -> dict[str, int]:
        """Return pid, ppid and pid namespace of the last process that held the lock; empty if there was none."""
        try:
            return {k: int(v) for k, v in json.loads(self.path.read_text()).items()}
        except (OSError, ValueError, AttributeError):
            return {}

    def wait(self, stop: threading.Event, report: Callable[[str], None], interval: float = 0.1) -> bool:
        """Wait for the lock until ``stop`` is set; return whether this process holds it.

        ``report`` is called with a reason if the holder is a second service on the same role and port, or another
        application of this process, and not the previous process of this service.
        """
        reported = None
        while not self.acquire():
            reason = self._reason_to_wait()
            if reason and reason != reported:
                reported = reason
                report(reason)
            if stop.wait(interval):
                return False
        return True

    def _reason_to_wait(self) -> str:
        """Return who holds the lock and what to do; empty if the holder is the previous process, or about to end."""
        holder, this = self.holder(), _this_process()
        pid, parent = holder.get("pid"), holder.get("ppid", 0)
        if holder == this:
            return (
                f"another application of this process (pid {pid}) still holds the models of this service (lock "
                f"{self.path}): make the application once, or give each its own Modelyard(app, instance=NAME)"
            )
        place = ""
        # In another pid namespace a pid has no meaning: only the held lock shows that its holder lives.
        if holder.get("namespace", this["namespace"]) != this["namespace"]:
            place = " of another container"
        elif parent == this["ppid"] or not _is_running(parent):
            return ""
        return (
            f"another process holds the models of this service: pid {pid}, started by pid {parent}{place} "
            f"(lock {self.path}); give this one another --port or --state-dir"
        )

    def release(self) -> None:
        """Release the lock; a second call does nothing."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def _this_process() -> dict[str, int]:
    return {"pid": os.getpid(), "ppid": os.getppid(), "namespace": pid_namespace()}


def _is_running(parent: int) -> bool:
    """Return whether the process that started a holder runs; process 1 adopts those whose parent has ended."""
    return parent > 1 and began(parent) is not None


class StateFile:
    """The models that ran: a table by worker key, written whole at every change. A failed write is logged once.

    An entry has ``model`` (the declared name), ``params`` (set over HTTP), ``added`` (by a request, not configured),
    ``stopped`` (over HTTP), ``loading`` (now), ``deaths`` (of processes in a row during its load), ``died`` (when the
    last of them was noticed, in seconds since 1970), ``quarantined``.
    """

    def __init__(self, path: Path) -> None:
        """Read ``path`` if it exists; a file that can't be read is renamed to ``.bad``."""
        self._path = path
        self._lock = threading.Lock()
        self.trouble = ""
        """Why the last change was not written; empty if it was."""
        self._models: dict[str, JSONObject] = self._read()

    def _read(self) -> dict[str, JSONObject]:
        try:
            models = json.loads(self._path.read_bytes())["models"]
            if not isinstance(models, dict) or not all(isinstance(m, dict) for m in models.values()):
                raise ValueError("models is not a table of tables")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s can't be read (%s): it is renamed to .bad, and nothing is remembered", self._path, error)
            with contextlib.suppress(OSError):
                self._path.replace(self._path.with_suffix(".bad"))
            return {}
        sound = {key: entry for key, entry in models.items() if _is_sound(key, entry)}
        if len(sound) < len(models):
            log.warning("%s: entries that are not valid are left out: %s", self._path, sorted(set(models) - set(sound)))
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
        """Note that ``key`` is being loaded: if the process dies, the next one finds the note."""
        self.update(key, loading=True)

    def end_start(self, key: str) -> None:
        """Note that the process survived the load of ``key``, whether it succeeded or not; nothing if none began."""
        with self._changing():
            if (entry := self._models.get(key, {})).get("loading"):
                entry.update(loading=False, deaths=0)

    def end_all_starts(self) -> None:
        """Note that the process ends on request: the model that it was loading did not kill it."""
        with self._changing():
            for entry in self._models.values():
                entry.pop("loading", None)

    def count_deaths(self) -> list[str]:
        """Count a death for each model that the previous process was loading; return the keys in quarantine."""
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
                if not self.trouble:
                    log.warning("%s can't be written (%s): what runs will not be remembered", self._path, error)
                self.trouble = f"{self._path} can't be written: {error.strerror or error}"
            else:
                if self.trouble:
                    log.info("%s is written again", self._path)
                self.trouble = ""


def _is_sound(key: str, entry: JSONObject) -> bool:
    try:
        split_worker_key(key)
    except ValueError:
        return False
    return isinstance(entry.get("model", ""), str) and isinstance(entry.get("params", {}), dict)
