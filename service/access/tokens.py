"""Tokens: secrets with scopes, of which only the hash is stored.

A token is ``modelyard_`` and 256 random bits. A plain SHA-256 is enough for such a secret: salt and a slow hash protect
passwords that can be guessed, and 2**256 tries are too many. So use it only for tokens of `new_secret`.

An entry is one line, ``NAME SCOPE[+SCOPE...] SHA256``, in a file or as an item of the setting ``tokens``.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError
from ..files import write_atomically

INFER, WORKER, METRICS, ADMIN = "infer", "worker", "metrics", "admin"
SCOPES = (INFER, WORKER, METRICS, ADMIN)
"""To use models; to register them; to read metrics; to start, stop and change models, which includes the others."""

PREFIX = "modelyard_"
"""Makes a token recognizable, for people and for scanners of leaked secrets."""

LARGEST_FILE = 4 * 1024 * 1024

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_HASH = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True, slots=True)
class Token:
    """A token without its secret."""

    name: str
    scopes: frozenset[str]
    digest: bytes

    @property
    def line(self) -> str:
        """The entry that `parse` reads."""
        return f"{self.name} {join_scopes(self.scopes)} {self.digest.hex()}"


def new_secret() -> str:
    """Return a new token. It is not stored: show it once."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(secret: str) -> bytes:
    """Return the hash of a secret, which is stored."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def parse_scopes(text: str) -> frozenset[str]:
    """Return the scopes of a text such as ``infer+worker``; admin includes all. Raises ValueError."""
    named = [name.strip() for name in text.split("+")]
    for name in named:
        if name not in SCOPES:
            raise ValueError(f"{name!r} is not a scope: there are {', '.join(SCOPES)}")
    return with_implied(named)


def with_implied(named: Iterable[str]) -> frozenset[str]:
    """Return scopes with those that they include: admin includes all."""
    scopes = frozenset(named)
    return frozenset(SCOPES) if ADMIN in scopes else scopes


def join_scopes(scopes: Iterable[str]) -> str:
    """Return scopes as `parse_scopes` reads them: ``infer+worker``, or ``admin`` for all."""
    present = frozenset(scopes)
    return ADMIN if ADMIN in present else "+".join(scope for scope in SCOPES if scope in present)


def check_name(name: str) -> None:
    """Raise ValueError if ``name`` can't be that of a token or a key."""
    if not _NAME.fullmatch(name):
        raise ValueError("the name may have letters, digits, dot, dash, underscore and @, 64 at most")


def parse(entry: str) -> Token:
    """Return the token of one entry. Raises ValueError with the reason, without the text of the entry."""
    parts = entry.split()
    if len(parts) != 3:
        raise ValueError(f"expected NAME SCOPES SHA256, there are {len(parts)} words")
    name, scopes, digest = parts
    check_name(name)
    if not _HASH.fullmatch(digest):
        raise ValueError(f"token {name}: the third word is not a SHA-256 in 64 hexadecimal digits")
    return Token(name, parse_scopes(scopes), bytes.fromhex(digest))


def parse_all(entries: Iterable[tuple[str, str]]) -> list[Token]:
    """Return the tokens of ``(place, entry)``. Raises ConfigError with the place of each that is not valid."""
    tokens: dict[str, Token] = {}
    faults = []
    for place, entry in entries:
        try:
            token = parse(entry)
            if token.name in tokens:
                raise ValueError(f"there are two tokens named {token.name}")
            if any(other.digest == token.digest for other in tokens.values()):
                raise ValueError(f"token {token.name} is the same secret as another")
        except ValueError as error:
            faults.append(f"{place}: {error}")
        else:
            tokens[token.name] = token
    if faults:
        raise ConfigError("; ".join(faults))
    return list(tokens.values())


# The file


def read_file(path: Path) -> list[Token]:
    """Return the tokens of a file with one entry a line; ``#`` begins a comment.

    Raises ConfigError, also if others than its owner may write the file: they could add tokens.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode) and mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ConfigError(f"tokens_file {path} can be written by others than its owner: chmod 600 {path}")
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
        if len(data) > LARGEST_FILE:
            raise ConfigError(f"tokens_file {path} is larger than {LARGEST_FILE} bytes")
        lines = data.decode().splitlines()
    except OSError as error:
        hint = "" if path.exists() else f": make it with modelyard token new --file {path}"
        raise ConfigError(f"tokens_file {path}: {error.strerror}{hint}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"tokens_file {path}: is not text") from error
    entries = ((f"tokens_file {path}, line {n}", _entry(line)) for n, line in enumerate(lines, 1))
    return parse_all((place, entry) for place, entry in entries if entry)


def add_to_file(path: Path, token: Token) -> None:
    """Add a token to a file, which is created if missing. Raises ConfigError if the name is taken."""
    with _changing(path) as lines:
        if any(_name_in(line) == token.name for line in lines):
            raise ConfigError(f"{path} has a token named {token.name} already: give this one another --name")
        lines.append(token.line)


def remove_from_file(path: Path, name: str) -> None:
    """Remove a token from a file. Raises ConfigError if it is missing."""
    with _changing(path) as lines:
        kept = [line for line in lines if _name_in(line) != name]
        if len(kept) == len(lines):
            names = ", ".join(token.name for token in read_file(path)) or "none"
            raise ConfigError(f"{path} has no token named {name}; there are: {names}")
        lines[:] = kept


def _entry(line: str) -> str:
    return line.partition("#")[0].strip()


def _name_in(line: str) -> str:
    return _entry(line).partition(" ")[0]


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[list[str]]:
    """Yield the lines of a file, then replace it atomically; mode and owner stay, a new file has 0600."""
    path = path.resolve()  # A link stays one.
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"{path.parent}: {error.strerror}") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        before = path.stat() if path.exists() else None
        if before is not None:
            read_file(path)
        lines = path.read_text(encoding="utf-8").splitlines() if before is not None else []
        yield lines
        write_atomically(path, "".join(f"{line}\n" for line in lines).encode())
        if before is not None:
            with contextlib.suppress(OSError):
                os.chown(path, before.st_uid, before.st_gid)
            path.chmod(stat.S_IMODE(before.st_mode))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    finally:
        os.close(folder)
