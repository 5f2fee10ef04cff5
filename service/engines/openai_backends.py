"""The servers behind one model: which of them a request goes to, and which are left out until they answer again."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TypeVar

from ..affinity import Candidate, preferred
from ..errors import ConfigError, Overloaded, Unavailable, WorkerLost, WorkerUnreachable
from ..sessions.address import origin_of
from ..streams import Cancel

log = logging.getLogger(__name__)
T = TypeVar("T")
_CALLS = ("/completions", "/embeddings", "/models", "/rerank", "/responses")


class Backend:
    """One server, by the address that its calls stand under."""

    def __init__(self, url: str, where: str) -> None:
        """``where`` names it in messages."""
        self.url = url
        self.where = where
        self.requests = 0
        """The requests that are under way."""
        self.trouble = ""
        """Why it is left out while others answer; empty if it is not."""

    def note(self, trouble: str, *, logs: bool = True) -> None:
        """Note why it does not answer, or by an empty text that it does; with ``logs`` a change is logged."""
        if logs and trouble and not self.trouble:
            log.warning("%s does not answer: %s", self.where, trouble)
        elif logs and self.trouble and not trouble:
            log.info("%s answers again", self.where)
        self.trouble = trouble


def addresses_in(urls: str) -> list[str]:
    """Return the addresses in ``urls``, comma-separated, without a slash at their ends. Raises ValueError."""
    addresses = [url.strip().rstrip("/") for url in urls.split(",") if url.strip()]
    if not addresses:
        raise ValueError("has no address")
    for url in addresses:
        origin_of(url)
        if "?" in url or url.endswith(_CALLS):
            raise ValueError(
                f"{url!r} is not an address that calls stand under: expected something like http://HOST/v1"
            )
    return addresses


class Backends:
    """The servers of one model. Many threads may share them."""

    def __init__(self, urls: str, where: str, slots: int) -> None:
        """Take the addresses in ``urls``, comma-separated; ``where`` names the servers. Raises ConfigError.

        ``slots`` is the most requests at once: a session keeps its server while that has less than half of them.
        """
        try:
            addresses = addresses_in(urls)
        except ValueError as error:
            raise ConfigError(f"base_url: {error}") from None
        names = [f"{where} at {origin_of(url)}" for url in addresses] if len(addresses) > 1 else [where]
        self._slots = slots
        self._all = [Backend(url, name) for url, name in zip(addresses, names, strict=True)]
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Backend]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def result(self, call: Callable[[Backend], T], cancel: Cancel) -> T:
        """Return the result of ``call`` at the first server that does not refuse, as `results` finds it."""

        def once(backend: Backend) -> Generator[T, None, None]:
            yield call(backend)

        (result,) = self.results(once, cancel)
        return result

    def results(
        self, call: Callable[[Backend], Generator[T, None, None]], cancel: Cancel, session: str = ""
    ) -> Generator[T, None, None]:
        """Yield the results of ``call`` at the server that a ``session`` prefers; without one, at the least busy.

        If it can't be reached, or refuses, before its first result (None is not one), the next server is called: each
        once, as long as ``cancel`` is not set. Raises Overloaded if one was, or else the last error; WorkerLost if the
        server broke off after its first result.
        """
        tried: list[Backend] = []
        errors: list[Unavailable] = []
        has_begun = False
        while True:
            backend = self._take(tried, session)
            results = call(backend)
            try:
                for result in results:
                    has_begun = has_begun or result is not None
                    yield result
            except Unavailable as error:
                if cancel.is_set():
                    raise
                if isinstance(error, WorkerUnreachable):
                    backend.note(str(error))
                if has_begun:
                    raise WorkerLost(str(error)) from error
                tried.append(backend)
                errors.append(error)
                if len(tried) == len(self._all):
                    raise next((error for error in errors if isinstance(error, Overloaded)), error) from None
            else:
                return
            finally:
                results.close()
                with self._lock:
                    backend.requests -= 1

    def _take(self, tried: Sequence[Backend], session: str) -> Backend:
        """Return the server for a request that was not tried, one that answers if there is one, and count its request.

        It is the first with room in the order of the ``session``, or else the least busy.
        """
        with self._lock:
            left = [backend for backend in self._all if backend not in tried]
            taken = left[0] if len(left) == 1 else self._best(left, session)
            taken.requests += 1
            return taken

    def _best(self, left: Sequence[Backend], session: str) -> Backend:
        usable = [backend for backend in left if not backend.trouble] or left
        least_busy = min(usable, key=lambda backend: (backend.requests, random.random()))  # noqa: S311 - no secret
        return self._preferred(session, usable) or least_busy

    def _preferred(self, session: str, usable: Sequence[Backend]) -> Backend | None:
        if not session or len(usable) == 1:
            return None
        backends = {Candidate(backend.url, backend.requests, self._slots): backend for backend in usable}
        order = preferred(session, list(backends))
        return backends[order[0]] if order else None
