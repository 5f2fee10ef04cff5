"""Lists the models that this machine may run, for `models/supports`."""

from __future__ import annotations

import logging

from ..errors import ModelyardError
from ..models.catalog import CatalogEntry
from ..settings import params
from ..types import SupportedModel
from .declarations import Declarations

log = logging.getLogger(__name__)


def supported_models(declarations: Declarations) -> list[SupportedModel]:
    """Return every entry of the catalogue and every weights file of the models folders, with its parameters."""
    return [_supported(declarations, entry) for entry in declarations.catalog.with_files()]


def _supported(declarations: Declarations, entry: CatalogEntry) -> SupportedModel:
    try:
        engine = declarations.engine(entry.name)
    except ModelyardError as error:
        # One entry that can't be built must not hide the others.
        log.warning("model %s can't run here: %s", entry.name, error)
        return SupportedModel(entry.name, entry.model_path or "", entry.worker_type or "", False, False, False, [])
    path, exists = engine.params.model_path or "", not engine.needs_weights
    if engine.params.model_path:
        try:
            located = declarations.locate(engine)
            path, exists = str(located), True
        except ModelyardError:
            exists = False
    return SupportedModel(
        model=entry.name,
        path=path,
        worker_type=engine.params.worker_type,
        path_exist=exists,
        proxy=engine.is_proxy,
        enabled=entry.enabled,
        params=params.describe(type(engine.params), engine.params),
    )
