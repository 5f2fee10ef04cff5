"""Tokens: secrets with scopes, of which only the hash is kept.

A token is ``modelyard_`` and 256 random bits. A plain SHA-256 is enough to keep such a secret: salt and a slow hash
protect what a person can think of, and nobody tries out 2**256. For the same reason only tokens made here
(`new_secret`) should be hashed so.

An entry is one line, ``NAME SCOPE[+SCOPE...] SHA256``, in a file or as an item of the setting ``tokens``.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import ConfigError, ModelyardError
from .settings import Settings
from .state import write_atomically

log = logging.getLogger(__name__)

INFER, WORKER, ADMIN = "infer", "worker", "admin"
SCOPES = (INFER, WORKER, ADMIN)
"""Asking models; registering them; starting, stopping and changing them, which includes the other two."""

PREFIX = "modelyard_"
"""So that a person, or a search for leaked secrets, knows one when it sees one."""

LOOK_AGAIN = 1.0
"""Seconds between two looks at whether the file of tokens has changed."""

LARGEST_FILE = 4 * 1024 * 1024

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_HASH = re.compile(r"[0-9a-fA-F]{64}")
_SECRET = re.compile(r"[\x21-\x7e]{1,4096}")


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token: not the secret itself."""

    name: str
    scopes: frozenset[str]
    digest: bytes

    @property
    def line(self) -> str:
        """The entry that `parse` reads."""
        return f"{self.name} {spoken(self.scopes)} {self.digest.hex()}"


def new_secret() -> str:
    """Return a new token. It is nowhere else: show it once."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(secret: str) -> bytes:
    """Return what is kept of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def parse_scopes(text: str) -> frozenset[str]:
    """Return the scopes in ``infer+worker``; with admin, all of them. ValueError says which is none."""
    named = [name.strip() for name in text.split("+")]
    for name in named:
        if name not in SCOPES:
            raise ValueError(f"{name!r} is no scope: there are {', '.join(SCOPES)}")
    return with_implied(named)


def with_implied(named: Iterable[str]) -> frozenset[str]:
    """Return these scopes with those that they include: admin includes all."""
    found = frozenset(named)
    return frozenset(SCOPES) if ADMIN in found else found


def spoken(scopes: Iterable[str]) -> str:
    """Return scopes as they are written: ``infer+worker``, and for all of them ``admin``."""
    found = frozenset(scopes)
    return ADMIN if ADMIN in found else "+".join(scope for scope in SCOPES if scope in found)


def parse(entry: str) -> Token:
    """Return the token of one entry. ValueError says what is wrong with it, without repeating it."""
    parts = entry.split()
    if len(parts) != 3:
        raise ValueError(f"expected NAME SCOPES SHA256, there are {len(parts)} words")
    name, scopes, digest = parts
    if not _NAME.fullmatch(name):
        raise ValueError("the name may have letters, digits, dot, dash, underscore and @, 64 at most")
    if not _HASH.fullmatch(digest):
        raise ValueError(f"token {name}: the third word is no SHA-256 in 64 hexadecimal digits")
    return Token(name, parse_scopes(scopes), bytes.fromhex(digest))


def parse_all(entries: Iterable[tuple[str, str]]) -> list[Token]:
    """Return the tokens of ``(place, entry)``. ConfigError names the place of each that does not fit."""
    found: dict[str, Token] = {}
    faults = []
    for place, entry in entries:
        try:
            token = parse(entry)
            if token.name in found:
                raise ValueError(f"there are two tokens named {token.name}")
            if any(other.digest == token.digest for other in found.values()):
                raise ValueError(f"token {token.name} is the same secret as another")
        except ValueError as error:
            faults.append(f"{place}: {error}")
        else:
            found[token.name] = token
    if faults:
        raise ConfigError("; ".join(faults))
    return list(found.values())


# The file


def read_file(path: Path) -> list[Token]:
    """Return the tokens of a file: an entry a line, ``#`` begins a comment.

    Raises ConfigError, also where others than its owner may write it: they could let themselves in.
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
        raise ConfigError(f"tokens_file {path}: is no text") from error
    entries = ((f"tokens_file {path}, line {n}", _entry(line)) for n, line in enumerate(lines, 1))
    return parse_all((place, entry) for place, entry in entries if entry)


def add_to_file(path: Path, token: Token) -> None:
    """Add a token to a file, which is made where it is not there. ConfigError where its name is taken."""
    with _changing(path) as lines:
        if any(_name_in(line) == token.name for line in lines):
            raise ConfigError(f"{path} has a token named {token.name} already: give this one another --name")
        lines.append(token.line)


def remove_from_file(path: Path, name: str) -> None:
    """Remove a token from a file. ConfigError where it is not there."""
    with _changing(path) as lines:
        kept = [line for line in lines if _name_in(line) != name]
        if len(kept) == len(lines):
            there = ", ".join(token.name for token in read_file(path)) or "none"
            raise ConfigError(f"{path} has no token named {name}; there are: {there}")
        lines[:] = kept


def _entry(line: str) -> str:
    return line.partition("#")[0].strip()


def _name_in(line: str) -> str:
    return _entry(line).partition(" ")[0]


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[list[str]]:
    """Give the lines of a file, and write it anew, whole or not at all; mode and owner stay, a new one has 0600."""
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


# What a service knows


class Tokens:
    """The tokens that a service knows: of its settings, and of a file that is read anew when it has changed."""

    def __init__(self, entries: Iterable[str] = (), file: Path | None = None) -> None:
        """Read them. Raises ConfigError."""
        self._own = parse_all((f"tokens, item {number}", entry) for number, entry in enumerate(entries, 1))
        self._file = file
        self._seen: tuple[int, ...] | None = None
        self._look_at = 0.0
        self._complaint = ""
        self._looking = threading.Lock()
        self._known: dict[bytes, Token] = {}
        self._seen = _look_of(file) if file is not None else None
        self._read()
        self._look_at = time.monotonic() + LOOK_AGAIN
        self.configured = bool(self._own) or file is not None
        """Whether tokens are asked for at all: also while none is in the file."""

    @classmethod
    def of(cls, settings: Settings) -> Tokens:
        """Return those that the settings name. Raises ConfigError."""
        file = settings.tokens_file
        return cls(settings.tokens, Path(file).expanduser().absolute() if file else None)

    def find(self, secret: str) -> Token | None:
        """Return the token of a secret; None where it is not known."""
        if self._file is not None and time.monotonic() >= self._look_at:
            self._look()
        digest = digest_of(secret)
        # Found by hash: what the time of that tells is about the hash of the asker's own guess.
        token = self._known.get(digest)
        return token if token is not None and hmac.compare_digest(token.digest, digest) else None

    def _look(self) -> None:
        """Read the file again if it has changed; one that does not fit, or has gone, changes nothing."""
        if not self._looking.acquire(blocking=False):
            return
        try:
            assert self._file is not None
            self._look_at = time.monotonic() + LOOK_AGAIN
            seen = _look_of(self._file)
            if seen == self._seen and not self._complaint:
                return
            try:
                self._read()
            except ModelyardError as error:
                self._complain(str(error))
            else:
                log.info("%s has changed: %d tokens are known", self._file, len(self._known))
                self._complaint = ""
            self._seen = seen
        finally:
            self._looking.release()

    def _read(self) -> None:
        filed = read_file(self._file) if self._file is not None else []
        named = [*((f"tokens, {token.name}", token.line) for token in self._own)]
        named += [(f"tokens_file {self._file}, {token.name}", token.line) for token in filed]
        self._known = {token.digest: token for token in parse_all(named)}

    def _complain(self, reason: str) -> None:
        if reason != self._complaint:
            log.error("%s; the tokens that were known before stay", reason)
        self._complaint = reason


def _look_of(path: Path) -> tuple[int, ...] | None:
    """Return what tells one content of a file from another without reading it; None where it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


# What it says itself


class OwnToken:
    """The token that a service says to others: of the settings, or of a file that is read anew when it has changed."""

    def __init__(self, token: str | None, file: Path | None = None) -> None:
        """Read it; ``token`` is stronger than ``file``. Raises ConfigError."""
        self._file = None if token else file
        self._value = check_secret(token, "token") if token else None
        self._seen: tuple[int, ...] | None = None
        self._look_at = 0.0
        if self._file is not None:
            self._seen = _look_of(self._file)
            self._value = read_secret(self._file)
            self._look_at = time.monotonic() + LOOK_AGAIN

    @classmethod
    def of(cls, settings: Settings) -> OwnToken:
        """Return the one that the settings name. Raises ConfigError."""
        file = settings.token_file
        return cls(settings.token, Path(file).expanduser().absolute() if file else None)

    def __call__(self) -> str | None:
        """Return the token as it is now; None where there is none."""
        if self._file is not None and time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_AGAIN
            seen = _look_of(self._file)
            if seen != self._seen:
                self._seen = seen
                try:
                    self._value = read_secret(self._file)
                except ModelyardError as error:
                    log.error("%s; the token that was known before stays", error)  # noqa: TRY400 - nothing to trace
        return self._value


def read_secret(path: Path) -> str:
    """Return the token in a file that only its owner, or group, may read. Raises ConfigError."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode) and mode & stat.S_IRWXO:
            raise ConfigError(f"token_file {path} can be read by every user of this machine: chmod 600 {path}")
        with path.open("rb") as file:
            text = file.read(64 * 1024).decode()
    except OSError as error:
        raise ConfigError(f"token_file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"token_file {path}: is no text") from error
    return check_secret(text.strip(), f"token_file {path}")


def check_secret(text: str, place: str) -> str:
    """Return ``text`` if it can stand in a header; ConfigError names the place, never the text."""
    if not _SECRET.fullmatch(text):
        raise ConfigError(f"{place}: a token is one word of letters, digits and signs without blanks, and not empty")
    return text
