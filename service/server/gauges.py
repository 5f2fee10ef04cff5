"""Read the state of a process for its metrics: models, lines, threads, and the cluster as it sees it.

Nothing is called or loaded for it, but the registry of a controller, which has no view of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..cluster.membership import Cluster
from ..cluster.registry.base import MANAGER_KEY, Instance
from ..cluster.routing import Routes
from ..errors import ModelyardError
from ..settings.settings import Settings
from ..telemetry import metrics
from ..telemetry.metrics import Counts, Family
from ..types import JSONObject
from ..version import __version__
from ..worker.admission import Budget
from ..worker.local_models import LocalModels
from ..worker.states import State
from ..worker.worker import ModelWorker


def gauges(models: LocalModels, budget: Budget, cluster: Cluster | None) -> Counts:
    """Return the gauges of a process now: its part in those of its service."""
    values: Counts = {}
    _set(values, metrics.PROCESSES, 1)
    _set(values, metrics.THREADS, budget.threads)
    _set(values, metrics.THREADS_RESERVED, budget.reserve)
    _set(values, metrics.THREADS_HELD, budget.held)
    for worker in models.workers():
        _add_model(values, worker)
    if models.room.budget is not None and models.workers():  # not the web processes of a model host
        _set(values, metrics.MEMORY_BUDGET, models.room.budget)
    if cluster is not None and cluster.heartbeat is not None and cluster.heartbeat.succeeded_at is not None:
        _set(values, metrics.LAST_HEARTBEAT, cluster.heartbeat.succeeded_at)
    if cluster is not None and cluster.manager is not None:
        for key, requests in cluster.manager.routes.under_way().items():
            _set(values, metrics.ROUTED_RUNNING, requests, *_labels_of(key))
    return values


def common_gauges(settings: Settings, cluster: Cluster | None) -> Counts:
    """Return the gauges that all processes of a service see alike: its version, and the registry.

    A controller reads its registry for them.
    """
    values: Counts = {}
    _set(values, metrics.INFO, 1, __version__, settings.role)
    if cluster is None:
        return values
    try:
        rows, is_up = _rows(cluster)
    except ModelyardError:
        rows, is_up = [], False
    _set(values, metrics.REGISTRY_UP, float(is_up))
    routes = None if cluster.manager is None else cluster.manager.routes
    for (key, state), number in Counter((row.key, _state(row, routes)) for row in rows).items():
        if key != MANAGER_KEY:
            _set(values, metrics.INSTANCES, number, *_labels_of(key), state)
    return values


def instance_entries(cluster: Cluster) -> list[JSONObject]:
    """Return the instances of models in the registry, those that other programs have registered too.

    Each has ``model`` (its key), ``url``, ``state``, ``reason``, ``slots``, ``running`` and ``waiting`` (None if it has
    reported no load), ``weight``, and ``heartbeat``, the seconds since 1970 of its last one. Empty while the registry
    can't be read.
    """
    try:
        rows, _ = _rows(cluster)
    except ModelyardError:
        return []
    routes = None if cluster.manager is None else cluster.manager.routes
    return [_entry(row, routes) for row in rows if row.key != MANAGER_KEY]


def _entry(row: Instance, routes: Routes | None) -> JSONObject:
    load = None if routes is None else routes.load_seen(row)
    return {
        "model": row.key,
        "url": row.url,
        "state": _state(row, routes),
        "reason": ("" if routes is None else routes.why_not(row)) or None,
        "slots": load and load.slots,
        "running": load and load.slots - load.free,
        "waiting": load and load.waiting,
        "weight": row.weight,
        "heartbeat": row.last_heartbeat,
    }


def _rows(cluster: Cluster) -> tuple[Sequence[Instance], bool]:
    """Return the instances in the registry, and whether its last call succeeded. Raises RegistryUnavailable."""
    if cluster.view is not None:
        view = cluster.view
        return (view.all(), not view.error) if view.complete else ([], False)
    if cluster.heartbeat is not None:  # a worker needs to know no others
        return [], not cluster.heartbeat.error
    return cluster.registry.instances(), True


def _set(values: Counts, family: Family, value: float, *labels: str) -> None:
    values.setdefault(family.name, {})[labels] = [value]


def _add_model(values: Counts, worker: ModelWorker) -> None:
    labels = (worker.name, worker.worker_type.value)
    shown, _ = worker.shown_state
    for state in State:
        _set(values, metrics.MODEL_STATE, float(state is shown), *labels, state.value)
    gate = worker.gate
    load = gate.status()
    _set(values, metrics.MEMORY, worker.memory, *labels)
    _set(values, metrics.SLOTS, gate.slots, *labels)
    _set(values, metrics.PLACES, gate.max_waiting, *labels)
    _set(values, metrics.RUNNING, load["running"], *labels)
    for priority, waiting in load["waiting"].items():
        _set(values, metrics.WAITING, waiting, *labels, priority)


def _labels_of(key: str) -> tuple[str, str]:
    """Return the name and the type in a key; other programs may have registered types that are not ours."""
    name, _, kind = key.rpartition("@")
    return name, kind


def _state(instance: Instance, routes: Routes | None) -> str:
    if not instance.enabled:
        return "disabled"
    if not instance.healthy:
        return "unhealthy"
    return "failing" if routes is not None and routes.why_not(instance) else "usable"
