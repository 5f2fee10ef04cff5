"""Users and their passwords, of which only hashes are kept."""

from __future__ import annotations

import sqlite3

from werkzeug.security import check_password_hash, generate_password_hash


def add(db: sqlite3.Connection, name: str, password: str) -> bool:
    """Add a user; return whether the name was free."""
    try:
        db.execute("INSERT INTO user (name, password) VALUES (?, ?)", (name, generate_password_hash(password)))
    except sqlite3.IntegrityError:
        return False
    return True


def check(db: sqlite3.Connection, name: str, password: str) -> sqlite3.Row | None:
    """Return the user of that name, if that is the password."""
    user: sqlite3.Row | None = db.execute("SELECT * FROM user WHERE name = ?", (name,)).fetchone()
    return user if user is not None and check_password_hash(user["password"], password) else None


def find(db: sqlite3.Connection, number: int | None) -> sqlite3.Row | None:
    """Return the user with that id, if there is one."""
    user: sqlite3.Row | None = db.execute("SELECT * FROM user WHERE id = ?", (number,)).fetchone()
    return user
