"""Housekeeper: loads the models that requests want, and unloads those that nobody uses, or that make room.

It starts the models again whose engine was lost.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..errors import ModelyardError, NotReady, Overloaded, UnknownModel
from ..threads import BackgroundThread, start_thread
from .keeper import Keeper, UnloadCause
from .life import ModelLife
from .restarts import Restarts
from .states import State

if TYPE_CHECKING:
    from .local_model import LocalModel
    from .local_models import LocalModels

log = logging.getLogger(__name__)

LOOK = 1.0
"""Seconds until a model that is due is looked at again, where it could not be unloaded."""


class Housekeeper(Keeper):
    """The keeper of all models of a process. Objects only, until a model that has a ``keep_alive`` is loaded."""

    def __init__(self, models: LocalModels) -> None:
        """Keep ``models``."""
        self._models = models
        self._lock = threading.Lock()
        self._loading: set[ModelLife] = set()
        """The models that a thread loads. Not their keys: a change of parameters gives the key to another one."""
        self._watch = BackgroundThread("modelyard-idle", self._unload_idle)
        self._restarts = Restarts(self._start_again)

    def health_changed(self, model: ModelLife) -> None:
        """Call the listeners of the models."""
        with contextlib.suppress(LookupError):
            self._models.tell("health", self._owner_of(model))

    # Engines that were lost

    def lost(self, model: ModelLife) -> None:
        """Call the listeners, and start the model again."""
        with contextlib.suppress(LookupError):
            self._models.tell("failed", self._owner_of(model))
            self._restarts.begin(model)

    def _start_again(self, model: ModelLife) -> bool:
        """Start a model whose engine was lost; return whether that is settled, by this start or in another way."""
        try:
            owner = self._owner_of(model)
            with self._models.held(owner):
                if owner.worker is model and model.state is State.FAILED:
                    self._models.start_held(owner, "restart")
        except (UnknownModel, LookupError):
            return True
        except ModelyardError:
            return model.state is not State.FAILED
        return True

    # Loads

    def loading(self, model: ModelLife) -> None:
        """Call the listeners of the models."""
        with contextlib.suppress(LookupError):
            self._models.tell("loading", self._owner_of(model))

    def wanted(self, model: ModelLife) -> None:
        """Load an unloaded model in a thread of its own, unless one is about to. Raises Overloaded."""
        with self._lock:
            if model in self._loading:
                return
            self._loading.add(model)
        try:
            start_thread(threading.Thread(target=self._load, args=(model,), name=f"load-{model.key}", daemon=True))
        except BaseException:
            self._loading.discard(model)
            raise

    def _load(self, model: ModelLife) -> None:
        try:
            owner = self._owner_of(model)
            with self._models.held(owner):
                if owner.worker is model and _is_wanted(model):
                    self._models.start_held(owner, "request")
        except (ModelyardError, LookupError) as error:
            log.debug("model %s is not loaded: %s", model.key, error)  # its requests have the error
        except Exception:
            log.exception("model %s is not loaded", model.key)
        finally:
            self._loading.discard(model)
        if _is_wanted(model):  # by a request that has come meanwhile
            with contextlib.suppress(ModelyardError):
                self.wanted(model)

    def loaded(self, model: ModelLife) -> None:
        """Note that a model was loaded: it is unloaded once nobody has used it for its ``keep_alive``."""
        if model.params.keep_alive is not None and not model.pinned:
            try:
                self._watch.start()
            except Overloaded as error:  # the load of the next model tries again
                log.warning("idle models are not unloaded: %s", error)
            self._watch.wake()

    # Unloads

    def make_room(self, model: ModelLife) -> bool:
        """Unload a model, unless it is in use, or is just being started, stopped or changed."""
        return self._unload(model, "room")

    def _unload(self, model: ModelLife, cause: UnloadCause) -> bool:
        try:
            with self._free(model) as owner:
                is_unloaded = model.unload(cause)
                if is_unloaded:
                    self._models.tell("unloaded", owner)
        except (NotReady, LookupError):
            return False
        return is_unloaded

    @contextlib.contextmanager
    def _free(self, model: ModelLife) -> Iterator[LocalModel]:
        """Hold the lifecycle lock of a model, without waiting for it. Raises NotReady, LookupError."""
        owner = self._owner_of(model)
        with owner.alone(0):
            if self._owner_of(model) is not owner:
                raise LookupError(model.key)
            yield owner

    def _owner_of(self, model: ModelLife) -> LocalModel:
        """Return what holds a model. Raises LookupError if it was replaced, or shut down."""
        for owner in self._models.all():
            if owner.worker is model:
                return owner
        raise LookupError(model.key)

    def _unload_idle(self) -> float | None:
        """Unload the models that nobody has used for their ``keep_alive``; return the seconds until the next is due."""
        pauses: list[float] = []
        for model in self._models.workers():
            limit = model.params.keep_alive
            if limit is None or model.pinned or model.state is not State.READY:
                continue
            left = model.last_used + limit - self._models.room.clock()
            if left > 0:
                pauses.append(left)
            elif not self._unload(model, "idle"):
                pauses.append(min(limit, LOOK))  # it is in use, perhaps only by a look at its metadata
        return min(pauses, default=None)

    def stop(self) -> None:
        """End the thread that looks for idle models, the wait of models for memory, and all restarts."""
        self._restarts.stop()
        for model in self._models.workers():
            model.cancel_start()
        self._watch.stop()


def _is_wanted(model: ModelLife) -> bool:
    return model.state is State.UNLOADED and model.gate.waiting > 0
