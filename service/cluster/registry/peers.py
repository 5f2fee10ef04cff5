"""A row of the registry as DB-GPT's clients and controllers say it, and back."""

from __future__ import annotations

from ...types import ModelInstance
from .base import Instance
from .instance_url import host_and_port, of_host_and_port
from .row_json import iso, seconds


def to_peer(instance: Instance) -> ModelInstance | None:
    """Return the peers' form; None for an address that they can't reach, see `host_and_port`."""
    found = host_and_port(instance.url)
    if found is None:
        return None
    return ModelInstance(
        model_name=instance.key,
        host=found[0],
        port=found[1],
        weight=instance.weight,
        check_healthy=instance.check_healthy,
        healthy=instance.healthy,
        enabled=instance.enabled,
        prompt_template=instance.prompt_template,
        last_heartbeat=iso(instance.last_heartbeat),
    )


def from_peer(row: ModelInstance) -> Instance:
    """Return the row; it has no generation. ValueError where its heartbeat is no time."""
    return Instance(
        key=row.model_name,
        url=of_host_and_port(row.host, row.port),
        weight=row.weight,
        enabled=row.enabled,
        check_healthy=row.check_healthy,
        prompt_template=row.prompt_template,
        last_heartbeat=seconds(row.last_heartbeat),
        healthy=row.healthy,
    )
