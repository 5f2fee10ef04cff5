"""The tables of a registry, version by version. A new version is one more entry at the end of each list.

A migration is a list of statements with ``{prefix}`` at the start of every name. Released migrations are never edited.
MySQL commits each statement by itself, so an interrupted migration is run again: a statement that was done before must
then fail as "exists already", or do nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from ...errors import ConfigError

PREFIX = "modelyard"
REGISTRY = "registry"
"""What messages call the store of a registry."""
Migration: TypeAlias = tuple[str, ...]

SQLITE: tuple[Migration, ...] = (
    (
        """
        CREATE TABLE {prefix}_instances (
            worker_key TEXT NOT NULL,
            url TEXT NOT NULL,
            weight REAL NOT NULL,
            enabled INTEGER NOT NULL,
            check_healthy INTEGER NOT NULL,
            capabilities TEXT NOT NULL,
            last_load TEXT,
            prompt_template TEXT,
            generation INTEGER NOT NULL,
            last_heartbeat INTEGER NOT NULL,
            deregistered INTEGER NOT NULL,
            PRIMARY KEY (worker_key, url)
        ) WITHOUT ROWID
        """,
    ),
)

POSTGRESQL: tuple[Migration, ...] = (
    (
        """
        CREATE TABLE {prefix}_instances (
            id CHAR(64) COLLATE "C" PRIMARY KEY,
            worker_key TEXT COLLATE "C" NOT NULL,
            url TEXT COLLATE "C" NOT NULL,
            weight DOUBLE PRECISION NOT NULL,
            enabled BOOLEAN NOT NULL,
            check_healthy BOOLEAN NOT NULL,
            capabilities TEXT NOT NULL,
            last_load TEXT,
            prompt_template TEXT,
            generation BIGINT NOT NULL,
            last_heartbeat BIGINT NOT NULL,
            deregistered BOOLEAN NOT NULL
        ) WITH (fillfactor = 50)
        """,
        "CREATE INDEX {prefix}_instances_key ON {prefix}_instances (worker_key)",
    ),
)
"""Half of each page is free, so that a heartbeat writes the new version of a row beside the old, and no index."""

MYSQL: tuple[Migration, ...] = (
    (
        """
        CREATE TABLE IF NOT EXISTS {prefix}_instances (
            id CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
            worker_key VARCHAR(512) NOT NULL,
            url VARCHAR(1024) NOT NULL,
            weight DOUBLE NOT NULL,
            enabled BOOLEAN NOT NULL,
            check_healthy BOOLEAN NOT NULL,
            capabilities TEXT NOT NULL,
            last_load VARCHAR(255),
            prompt_template TEXT,
            generation BIGINT NOT NULL,
            last_heartbeat BIGINT NOT NULL,
            deregistered BOOLEAN NOT NULL,
            KEY {prefix}_instances_key (worker_key)
        ) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin
        """,
    ),
)


def outstanding(
    held: int | None, migrations: Sequence[Migration], prefix: str, where: str
) -> list[tuple[int, list[str]]]:
    """Return the versions that a store of version ``held`` (None: a new store) lacks, each with its statements.

    Raises ConfigError if the version of the store is newer than all ``migrations``; ``where`` names the store.
    """
    newest = len(migrations)
    if held is not None and held > newest:
        raise too_new(held, newest, where)
    return [
        (version, [statement.replace("{prefix}", prefix) for statement in migrations[version - 1]])
        for version in range((held or 0) + 1, newest + 1)
    ]


def too_new(held: int, newest: int, where: str) -> ConfigError:
    """Return the error for a store that a newer modelyard has used."""
    return ConfigError(
        f"{where}: its tables are of version {held}, and this modelyard knows up to {newest}: a newer one has "
        "used it; upgrade this one, or give it another store"
    )
