"""The calls that all managers share: they are made of their other calls, and of the callbacks after the start."""

from __future__ import annotations

import logging
import random
import threading
from abc import abstractmethod
from collections.abc import Iterable

from ..errors import InvalidRequest, NotReady, UnknownModel
from ..streams import Cancel, whole_answer
from ..telemetry.tracing import Tracing
from ..types import GenerateRequest, ModelInstance, ModelOutput, WorkerType, split_worker_key
from .protocol import StartCallback, WorkerManager
from .states import State

log = logging.getLogger(__name__)


def shortest(lengths: Iterable[tuple[str, int | None]]) -> dict[str, int]:
    """Return the shortest of the context lengths of each name, without names that have none."""
    by_name: dict[str, int] = {}
    for name, length in lengths:
        if length is not None:
            by_name[name] = min(length, by_name.get(name, length))
    return by_name


def all_of(instances: Iterable[tuple[str, bool]]) -> set[str]:
    """Return the names of which every instance can do something."""
    able, unable = set[str](), set[str]()
    for name, can in instances:
        (able if can else unable).add(name)
    return able - unable


class SharedCalls(WorkerManager):
    """The base of managers. It has no models, and reaches them by `_instances` and `generate_stream` alone."""

    def __init__(self, tracing: Tracing | None = None) -> None:
        """Make spans by ``tracing``; without it, make none."""
        self.tracing = tracing or Tracing()
        self._after_start: list[StartCallback] | None = []
        """The callbacks that wait for the start; None after it."""
        self._after_start_lock = threading.Lock()

    @abstractmethod
    def _instances(self, key: str | None = None) -> list[ModelInstance]:
        """Return the instances of a worker key, or all, in whatever state."""

    def generate(self, request: GenerateRequest, cancel: Cancel | None = None) -> ModelOutput:
        """Return a whole answer; raises like the stream."""
        with self.generate_stream(request, cancel) as stream:
            return whole_answer(stream)

    def get_model_instances(self, key: str, *, healthy_only: bool = True) -> list[ModelInstance]:
        """Return the instances of a worker key; those that are not ready too, unless ``healthy_only``."""
        return [instance for instance in self._instances(key) if instance.healthy or not healthy_only]

    def get_all_model_instances(
        self, worker_type: WorkerType | None = None, *, healthy_only: bool = True
    ) -> list[ModelInstance]:
        """Return all instances, of one type if given; those that are not ready too, unless ``healthy_only``."""
        return [
            instance
            for instance in self._instances()
            if (instance.healthy or not healthy_only)
            and (worker_type is None or instance.model_name.endswith(f"@{worker_type.value}"))
        ]

    def select_one_instance(self, key: str) -> ModelInstance:
        """Return a healthy instance of a worker key. Raises UnknownModel, or NotReady if none is healthy."""
        instances = self._instances(key)
        if not instances:
            raise UnknownModel(f"there is no instance of {key}")
        healthy = [instance for instance in instances if instance.healthy]
        if not healthy:
            raise NotReady(f"no instance of {key} is ready")
        return random.choice(healthy)  # noqa: S311 - no secret

    def default_models(self, *types: WorkerType) -> list[str]:
        """Return the names of all models of the first of ``types`` that has any, sorted."""
        for kind in types:
            instances = self.get_all_model_instances(kind, healthy_only=False)
            if instances:
                return sorted({split_worker_key(instance.model_name)[0] for instance in instances})
        return []

    def _first_llm(self, instances: Iterable[ModelInstance]) -> str:
        """Return the name of the first LLM of ``instances`` that is loaded, or else healthy, or else of the first LLM.

        DB-GPT counts tokens without a model before each chat, so a choice is better than an error. Raises
        InvalidRequest if there is no LLM.
        """
        llms = [instance for instance in instances if instance.model_name.endswith(f"@{WorkerType.LLM.value}")]
        if not llms:
            raise InvalidRequest.of_field("model", "is missing: no LLM is hosted")
        states = self.model_states()
        first = min(llms, key=lambda i: (states.get(i.model_name) is not State.READY, not i.healthy))
        return split_worker_key(first.model_name)[0]

    # The start

    def after_start(self, callback: StartCallback | None) -> None:
        """Call ``callback`` with this manager after its models were started or have failed; at once if they were."""
        if callback is None:
            return
        with self._after_start_lock:
            if self._after_start is not None:
                self._after_start.append(callback)
                return
        self._call_back(callback)

    def notify_started(self) -> None:
        """Call the callbacks of `after_start`, in the order they were given. A second call does nothing."""
        with self._after_start_lock:
            callbacks, self._after_start = self._after_start or [], None
        for callback in callbacks:
            self._call_back(callback)

    def _call_back(self, callback: StartCallback) -> None:
        try:
            callback(self)
        except (Exception, SystemExit):
            log.exception("after_start: %s failed", getattr(callback, "__qualname__", None) or repr(callback))
