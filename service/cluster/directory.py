"""Directory: which instances each model has, those of this process among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..errors import NotReady, not_callable
from ..types import WorkerType, worker_key
from ..worker.manager import LocalWorkerManager
from ..worker.worker import State
from .registry.base import MANAGER_KEY, Instance
from .routing import Routes
from .view import MISS_INTERVAL, RegistryView


class Directory:
    """What the registry shows, with what this process knows of its own models better than the registry does."""

    def __init__(
        self, view: RegistryView, routes: Routes, local: LocalWorkerManager | None, own_url: Callable[[], str]
    ) -> None:
        """Look into ``view``; instances at ``own_url`` are those of ``local``, whose load ``routes`` is told."""
        self._view = view
        self._routes = routes
        self._local = local
        self._own_url = own_url

    def known(self, key: str) -> list[Instance]:
        """Return the instances of a key: that of this process, if it is ready, and all others."""
        own_url = self._own_url()
        others = [one for one in self._view.instances(key) if one.url != own_url]
        own = self._own(key)
        return [own, *others] if own is not None else others

    def _own(self, key: str) -> Instance | None:
        worker = None if self._local is None else self._local.models.find(key)
        if worker is None or worker.state is not State.READY:
            return None
        load = worker.gate.load()
        own = Instance(key, self._own_url(), load=load, healthy=True, weight=worker.params.weight)
        self._routes.answered(own, load)
        return own

    def all_of(self, key: str) -> list[Instance]:
        """Return the instances of a key, in whatever state."""
        own = None if self._local is None else self._local.models.find(key)
        known = self.known(key)
        if own is None or (known and known[0].url == self._own_url()):
            return known
        return [Instance(key, self._own_url(), weight=own.params.weight), *known]

    def all_anew(self, key: str) -> list[Instance]:
        """The same, after the registry was asked once more."""
        self._view.refresh_now()
        return self.all_of(key)

    def is_own(self, instance: Instance) -> bool:
        """Return whether an instance is this process's own."""
        return self._local is not None and instance.url == self._own_url()

    def keys(self) -> list[str]:
        """Return the keys of all models, sorted."""
        own = set() if self._local is None else {worker.key for worker in self._local.models.workers()}
        return sorted((own | {one.key for one in self._view.all() if one.url != self._own_url()}) - {MANAGER_KEY})

    def key_of(self, model: str, *kinds: WorkerType) -> str:
        """Return the key of a model that is called for one of ``kinds``. Raises UnknownModel, Unsupported, NotReady."""
        keys = [worker_key(model, kind) for kind in kinds]
        found = self._first_known(keys)
        if found is None and (self._local is None or not self._local.models.has(model, None)):
            self._view.refresh_now(MISS_INTERVAL)
            found = self._first_known(keys)
        if found is not None:
            return found
        if self._local is not None and self._local.models.has(model, None):
            # It starts, has failed, or is of another type: its own manager says so best.
            self._local.models.worker(model, *kinds).check_ready()
        if not self._view.complete:
            raise NotReady(f"the registry can't be read: {self._view.error or 'it was not asked yet'}", retry_after=2)
        raise not_callable(self.keys(), model, kinds)

    def _first_known(self, keys: Sequence[str]) -> str | None:
        return next((key for key in keys if self.known(key)), None)
