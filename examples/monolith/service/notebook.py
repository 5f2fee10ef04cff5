"""Entries: a question with its answer, and a title that a job gives them later."""

from __future__ import annotations

import sqlite3
import time

LEASE = 300.0
"""Seconds until a job that a process took is free again: that process must have died."""
PAUSE = 30.0
"""Seconds until a job that failed is tried again."""
TRIES = 5


def entries_of(db: sqlite3.Connection, user: int) -> list[sqlite3.Row]:
    """Return a user's entries, the latest first."""
    return db.execute("SELECT * FROM entry WHERE user = ? ORDER BY id DESC", (user,)).fetchall()


def keep(db: sqlite3.Connection, user: int, question: str, answer: str) -> None:
    """Keep an entry, and note that it wants a title."""
    entry = db.execute(
        "INSERT INTO entry (user, question, answer) VALUES (?, ?, ?)", (user, question, answer)
    ).lastrowid
    db.execute("INSERT INTO job (entry, due) VALUES (?, ?)", (entry, time.time()))


def take_job(db: sqlite3.Connection) -> sqlite3.Row | None:
    """Return the next job with its ``question``, taken; None if none is due."""
    now = time.time()
    job = db.execute(
        "UPDATE job SET due = ?, tries = tries + 1 WHERE id ="
        " (SELECT id FROM job WHERE due <= ? AND tries < ? ORDER BY due LIMIT 1) RETURNING id",
        (now + LEASE, now, TRIES),
    ).fetchone()
    if job is None:
        return None
    wanted = "SELECT job.id, entry, question FROM job JOIN entry ON entry.id = entry WHERE job.id = ?"
    row: sqlite3.Row = db.execute(wanted, (job["id"],)).fetchone()
    return row


def finish_job(db: sqlite3.Connection, job: sqlite3.Row, title: str) -> None:
    """Give the entry its title; the job is done."""
    db.execute("UPDATE entry SET title = ? WHERE id = ?", (title, job["entry"]))
    db.execute("DELETE FROM job WHERE id = ?", (job["id"],))


def put_off_job(db: sqlite3.Connection, job: sqlite3.Row) -> None:
    """Let the job be tried again in a while."""
    db.execute("UPDATE job SET due = ? WHERE id = ?", (time.time() + PAUSE, job["id"]))
