"""A store of keys in tables, by statements that SQLite, PostgreSQL, MySQL and MariaDB understand alike.

``api_keys`` has the keys as JSON, ``api_key_use`` what is used of their limits in the current window,
``api_key_places`` the leased places of each process, and ``ended_sign_ins`` the sign-ins of pages that were ended.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from ...access.keys import Key
from ...errors import ConfigError, Unauthorized
from .base import LEASE, MAX_KEYS, MICROSECONDS, Amounts, Grant, Return, Use, after_return, current, grant

T = TypeVar("T")

SELECT_KEYS = "SELECT id, document FROM {prefix}_api_keys ORDER BY created, id"
SELECT_STAMP = "SELECT COUNT(*) AS amount, MAX(changed) AS changed FROM {prefix}_api_keys"
SELECT_NAMED = "SELECT id, document, {now} AS now FROM {prefix}_api_keys WHERE id = :name OR live_name = :name"
INSERT_KEY = """
    INSERT INTO {prefix}_api_keys (id, live_name, document, created, changed)
    VALUES (:id, :name, :document, {now}, {now})
"""
INSERT_USE = "INSERT INTO {prefix}_api_key_use (key_id, window_start, requests, tokens) VALUES (:id, 0, 0, 0)"
UPDATE_KEY = "UPDATE {prefix}_api_keys SET live_name = NULL, document = :document, changed = {now} WHERE id = :id"
DELETE_KEY = "DELETE FROM {prefix}_api_keys WHERE id = :id"
DELETE_USE = "DELETE FROM {prefix}_api_key_use WHERE key_id = :id"
DELETE_PLACES = "DELETE FROM {prefix}_api_key_places WHERE key_id = :id"
SELECT_USE = """
    SELECT window_start, requests, tokens, {now} AS now FROM {prefix}_api_key_use WHERE key_id = :id {lock}
"""
UPDATE_USE = """
    UPDATE {prefix}_api_key_use SET window_start = :window, requests = :requests, tokens = :tokens WHERE key_id = :id
"""
SELECT_OTHERS = """
    SELECT SUM(places) AS places FROM {prefix}_api_key_places
    WHERE key_id = :id AND holder <> :holder AND expires > :now
"""
DELETE_OWN_PLACES = """
    DELETE FROM {prefix}_api_key_places WHERE key_id = :id AND (holder = :holder OR expires <= :now)
"""
INSERT_PLACES = """
    INSERT INTO {prefix}_api_key_places (key_id, holder, places, expires) VALUES (:id, :holder, :places, :expires)
"""
INSERT_ENDED = "INSERT INTO {prefix}_ended_sign_ins (id, expires) VALUES (:id, {now} + :lifetime)"
DELETE_EXPIRED = "DELETE FROM {prefix}_ended_sign_ins WHERE expires <= {now}"
SELECT_ENDED = "SELECT id FROM {prefix}_ended_sign_ins WHERE id = :id AND expires > {now}"


class Statements(Protocol):
    """A transaction that is under way."""

    def run(self, statement: str, **values: Any) -> Sequence[Mapping[str, Any]]:
        """Run a statement of this module, and return its rows."""


class Tables(Protocol):
    """The tables in a database; ``{prefix}``, ``{now}`` (microseconds since 1970) and ``{lock}`` are its own."""

    def read(self, work: Callable[[Statements], T]) -> T | None:
        """Return the result of ``work``, which only reads; None if there are no tables."""

    def write(self, work: Callable[[Statements], T], *, is_durable: bool = False) -> T:
        """Return the result of ``work`` in a transaction; one that is durable is never lost."""

    def close(self) -> None:
        """Close the connections."""


class TableKeyStore:
    """A store of keys in the tables of a database."""

    def __init__(self, tables: Tables, lease: float = LEASE) -> None:
        """Use ``tables``; places are leased for ``lease`` seconds."""
        self._tables = tables
        self._lease = int(lease * MICROSECONDS)

    def add(self, key: Key) -> None:
        """Keep a key. Raises ConfigError if its name is that of a valid key, or there are too many."""

        def work(transaction: Statements) -> None:
            if transaction.run(SELECT_NAMED, name=key.name):
                raise ConfigError(f"there is a key named {key.name} already: revoke it, or choose another name")
            if transaction.run(SELECT_STAMP)[0]["amount"] >= MAX_KEYS:
                raise ConfigError(f"there are {MAX_KEYS} keys, the most of a store: forget some (key revoke --forget)")
            transaction.run(INSERT_KEY, id=key.id, name=key.name, document=json.dumps(key.document()))
            transaction.run(INSERT_USE, id=key.id)

        self._tables.write(work, is_durable=True)

    def revoke(self, name: str, *, forget: bool = False) -> Key:
        """Revoke the key of an id or name, and return it. Raises ConfigError if there is none."""

        def work(transaction: Statements) -> Key:
            rows = transaction.run(SELECT_NAMED, name=name)
            if not rows:
                raise ConfigError(
                    f"there is no key {name!r}: see modelyard key list (--all has the ids of revoked ones)"
                )
            key = _key(rows[0])
            if forget:
                for statement in (DELETE_KEY, DELETE_USE, DELETE_PLACES):
                    transaction.run(statement, id=key.id)
            elif key.revoked is None:
                key = key.revoked_at(rows[0]["now"] / MICROSECONDS)
                transaction.run(UPDATE_KEY, id=key.id, document=json.dumps(key.document()))
            return key

        return self._tables.write(work, is_durable=True)

    def all(self) -> list[Key]:
        """Return all keys in the order of their making."""
        rows = self._tables.read(lambda transaction: transaction.run(SELECT_KEYS))
        return [_key(row) for row in rows or ()]

    def stamp(self) -> str:
        """Return a text that is another after each change of the keys."""
        rows = self._tables.read(lambda transaction: transaction.run(SELECT_STAMP))
        return f"{rows[0]['amount']} {rows[0]['changed']}" if rows and rows[0]["amount"] else ""

    def take(self, key: Key, holder: str, held: int, need: Amounts, spare: Amounts) -> Grant:
        """Take ``need``, and up to ``spare`` beside it. Raises Unauthorized if the key has gone."""

        def work(transaction: Statements) -> Grant:
            rows = transaction.run(SELECT_USE, id=key.id)
            if not rows:
                raise Unauthorized(f"the key {key.name} was revoked")
            now = int(rows[0]["now"])
            use, occupied = current(_use(rows[0]), now), held
            if key.limits.parallel is not None:
                others = transaction.run(SELECT_OTHERS, id=key.id, holder=holder, now=now)[0]["places"]
                occupied += int(others or 0)
            granted = grant(key.limits, use, occupied, need, spare=spare, now=now)
            taken = granted.taken
            if taken.requests or taken.tokens:
                used = Use(use.window, use.requests + taken.requests, use.tokens + taken.tokens)
                transaction.run(UPDATE_USE, id=key.id, **used._asdict())
            if taken.places:
                self._hold(transaction, key.id, holder, held + taken.places, now)
            return granted

        return self._tables.write(work)

    def settle(self, holder: str, returns: Mapping[str, Return]) -> None:
        """Take back what a process does not need, and renew its places."""

        def work(transaction: Statements) -> None:
            # In this order: two processes never wait for each other.
            for number, back in sorted(returns.items()):
                rows = transaction.run(SELECT_USE, id=number)
                if not rows:
                    continue
                now, previous = int(rows[0]["now"]), _use(rows[0])
                use = after_return(current(previous, now), back)
                if use != previous:
                    transaction.run(UPDATE_USE, id=number, **use._asdict())
                self._hold(transaction, number, holder, back.places, now)

        self._tables.write(work)

    def end_sign_in(self, number: str, seconds: float) -> None:
        """Keep for ``seconds`` that the sign-in of an id has ended."""

        def work(transaction: Statements) -> None:
            transaction.run(DELETE_EXPIRED)
            transaction.run(INSERT_ENDED, id=number, lifetime=int(seconds * MICROSECONDS))

        self._tables.write(work, is_durable=True)

    def has_ended(self, number: str) -> bool:
        """Return whether the sign-in of an id has ended."""
        return bool(self._tables.read(lambda transaction: transaction.run(SELECT_ENDED, id=number)))

    def close(self) -> None:
        """Close the connections."""
        self._tables.close()

    def _hold(self, transaction: Statements, number: str, holder: str, places: int, now: int) -> None:
        transaction.run(DELETE_OWN_PLACES, id=number, holder=holder, now=now)
        if places:
            transaction.run(INSERT_PLACES, id=number, holder=holder, places=places, expires=now + self._lease)


def _key(row: Mapping[str, Any]) -> Key:
    return Key.of_document(row["id"], json.loads(row["document"]))


def _use(row: Mapping[str, Any]) -> Use:
    return Use(int(row["window_start"]), int(row["requests"]), int(row["tokens"]))
