"""The database: one SQLite file that all processes open."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

SCHEMA = """
CREATE TABLE IF NOT EXISTS user (id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, password TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS entry (
    id INTEGER PRIMARY KEY,
    user INTEGER NOT NULL REFERENCES user (id),
    question TEXT NOT NULL,
    answer TEXT NOT NULL,
    title TEXT
);
-- A job is to be done when it is due. Whoever takes it makes it due later, and deletes it when it is done.
CREATE TABLE IF NOT EXISTS job (
    id INTEGER PRIMARY KEY,
    entry INTEGER NOT NULL REFERENCES entry (id),
    due REAL NOT NULL,
    tries INTEGER NOT NULL DEFAULT 0
);
"""


def create(path: str) -> None:
    """Make the tables that are not there yet."""
    with opened(path) as db:
        db.executescript(SCHEMA)


@contextmanager
def opened(path: str) -> Iterator[sqlite3.Connection]:
    """Open the database for one transaction, and close it."""
    db = sqlite3.connect(path, timeout=10)
    db.row_factory = sqlite3.Row
    try:
        with db:
            yield db
    finally:
        db.close()
