"""Keeper: the owner of a model, as the model sees it, and why models are loaded and unloaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from .life import ModelLife

LoadCause: TypeAlias = Literal["start", "call", "request", "restart"]
"""Why a model is loaded: with the start of its process, by a call that starts it, by a request to it, or because its
engine was lost."""
UnloadCause: TypeAlias = Literal["idle", "room"]


class Keeper:
    """The owner of a model, which hears of it and unloads it. This one is that of a model by itself."""

    def health_changed(self, model: ModelLife) -> None:
        """Note that a model that is ready has become unhealthy, or healthy again; called in a thread of its watch."""

    def lost(self, model: ModelLife) -> None:
        """Note that a model that was ready has failed, because its engine was lost; called in any thread."""

    def wanted(self, model: ModelLife) -> None:
        """Load an unloaded model, for which a request waits, in another thread. Raises Overloaded."""

    def loading(self, model: ModelLife) -> None:
        """Note that a model has its memory, and its engine starts now; called in the thread that starts it."""

    def make_room(self, model: ModelLife) -> bool:
        """Unload a model so that another one can be loaded; return False if that is not possible now."""
        return model.unload("room")
