"""Directory: the instances of each model, those of this process too, and the worker to call for each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from ..errors import NotReady, UnknownModel, not_callable
from ..sessions.session import Session
from ..types import WorkerType, worker_key
from ..worker.local_models import LocalModels
from ..worker.shared_calls import all_of, shortest
from ..worker.states import State, best_states
from ..worker.worker import ModelWorker
from .registry.base import IMAGES, MANAGER_KEY, Instance
from .remote_model import RemoteModelWorker
from .routing import Routes, state_of
from .view import RegistryView

Worker: TypeAlias = ModelWorker | RemoteModelWorker
"""A model of this process or of another: both have the same calls."""


class HostedCheck(Protocol):
    """A question to the model host of this service."""

    def __call__(self, model: str, *types: WorkerType) -> None:
        """Raise the error of ``model``, as one of ``types``, if the host has it and it can't answer."""


class Directory:
    """The instances that the registry shows, with the newer state of the models of this process."""

    def __init__(
        self,
        view: RegistryView,
        routes: Routes,
        session: Session,
        models: LocalModels | None,
        own_url: Callable[[], str],
        *,
        check_complete: Callable[[], None],
        check_hosted: HostedCheck | None,
    ) -> None:
        """Read ``view``. The instances at ``own_url`` are ``models``; None if this process holds none.

        ``routes`` gets the load of these. All other instances are called by ``session``. ``check_complete`` raises
        NotReady while this service may hold models that are not declared yet, ``check_hosted`` the error of a model of
        its model host; None without one.
        """
        self._view = view
        self._routes = routes
        self._session = session
        self._models = models
        self._own_url = own_url
        self.check_complete = check_complete
        self._check_hosted = check_hosted
        self._workers: dict[tuple[str, str], RemoteModelWorker] = {}

    # What to call

    def worker_at(self, instance: Instance) -> Worker:
        """Return the worker to call for an instance. Raises UnknownModel for one of this process that was shut down."""
        if self._models is not None and instance.url == self._own_url():
            model = self._models.find(instance.key)
            if model is None:
                raise UnknownModel.among(self.keys(), instance.key)
            return model
        place = (instance.key, instance.url)
        worker = self._workers.get(place)
        if worker is None:
            worker = self._workers[place] = RemoteModelWorker(*place, self._session)
        return worker

    def alone(self, key: str) -> ModelWorker | None:
        """Return the model of this process if no other process has an instance of the key; else None."""
        worker = self._find(key)
        return worker if worker is not None and not self._remote(key) else None

    def _find(self, key: str) -> ModelWorker | None:
        return None if self._models is None else self._models.find(key)

    # Instances

    def usable(self, key: str) -> list[Instance]:
        """Return the instances of a key: that of this process, if it is available, and those of other processes."""
        remote, worker = self._remote(key), self._find(key)
        if worker is None or not worker.is_available:
            return remote
        local = Instance(key, self._own_url(), load=worker.load, healthy=worker.is_healthy, weight=worker.params.weight)
        self._routes.answered(local, local.load)
        return [local, *remote]

    def _remote(self, key: str) -> list[Instance]:
        """Return the instances of a key in other processes; a model that is available here does not wait for a read."""
        own_url = self._own_url()
        rows = self._view.last_instances(key) if self._is_available(key) else self._view.instances(key)
        return [row for row in rows if row.url != own_url]

    def _is_available(self, key: str) -> bool:
        worker = self._find(key)
        return worker is not None and worker.is_available

    def all_of(self, key: str) -> list[Instance]:
        """Return the instances of a key, in whatever state."""
        instances, worker = self.usable(key), self._find(key)
        if worker is None or (instances and instances[0].url == self._own_url()):
            return instances
        return [Instance(key, self._own_url(), weight=worker.params.weight), *instances]

    def refreshed(self, key: str) -> list[Instance]:
        """Return the instances of a key, in whatever state, after the registry was read once more."""
        self._view.refresh_now()
        return self.all_of(key)

    # Keys

    def keys(self) -> list[str]:
        """Return the keys of all models, sorted."""
        local = set() if self._models is None else set(self._models.keys())
        return sorted((local | {row.key for row in self._view.all() if row.url != self._own_url()}) - {MANAGER_KEY})

    def states(self) -> dict[str, State]:
        """Return the state of each model, that of its most usable instance, by its key."""
        local = [] if self._models is None else self._models.workers()
        rows = [row for row in self._view.all() if row.key != MANAGER_KEY and row.url != self._own_url()]
        states = [(worker.key, worker.shown_state[0]) for worker in local]
        return best_states([*states, *((row.key, state_of(row)) for row in rows)])

    def context_lengths(self) -> dict[str, int]:
        """Return the context length of each model, by its name: of this process, or of healthy instances in view."""
        local = [] if self._models is None else self._models.workers()
        rows = [row for row in self._view.all() if row.healthy and row.url != self._own_url()]
        lengths = [(worker.name, worker.context_length) for worker in local]
        return shortest([*lengths, *((row.key.rpartition("@")[0], row.context_length) for row in rows)])

    def models_with_images(self) -> set[str]:
        """Return the names of the models that take images, in this process and at every healthy instance in view."""
        local = [] if self._models is None else self._models.workers()
        rows = [row for row in self._view.all() if row.healthy and row.url != self._own_url()]
        images = [(worker.name, worker.takes_images) for worker in local]
        return all_of([*images, *((row.key.rpartition("@")[0], IMAGES in row.capabilities) for row in rows)])

    def key_of(self, model: str, *types: WorkerType) -> str:
        """Return the key of a model that is called as one of ``types``. Raises UnknownModel, Unsupported, NotReady."""
        if (key := self._first_usable(model, types)) is not None:
            return key
        if self._models is not None and self._models.has(model, None):
            # It is starting, has failed, or is of another type: this process has the more exact error.
            self._models.worker(model, *types).check_available()
        try:
            self.check_complete()
        except NotReady:
            # What is just being started may have been registered since the last read.
            self._view.refresh_now()
            if (key := self._first_usable(model, types)) is not None:
                return key
            raise
        if not self._view.complete:
            raise NotReady(f"the registry can't be read: {self._view.error or 'it was not read yet'}", retry_after=2)
        if self._check_hosted is not None:
            self._check_hosted(model, *types)
        raise not_callable(self.keys(), model, types)

    def _first_usable(self, model: str, types: Sequence[WorkerType]) -> str | None:
        for worker_type in types:
            key = worker_key(model, worker_type)
            if self._is_available(key) or self._remote(key):
                return key
        return None
