"""API keys: secrets for people and applications, with scopes, models, an expiry and limits. Only the hash is stored.

A key's secret is made like that of a token (`tokens`). Keys live in a store that many processes share, tokens in the
configuration of one service.
"""

from __future__ import annotations

import functools
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from ..types import JSONObject
from .tokens import check_name, join_scopes, parse_scopes

MAX_MODELS = 256
LARGEST_LIMIT = 10**12
ID = re.compile(r"key_[0-9a-f]{12}")

_DURATION = re.compile(r"([0-9]{1,6})([smhdw])")
_LATEST = datetime.max.replace(tzinfo=UTC).timestamp() // 1
"""The last second that can be shown."""
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that a key may use over all processes; None: no limit."""

    requests: int | None = None
    """Requests a minute."""
    tokens: int | None = None
    """Tokens a minute, of prompts and answers."""
    parallel: int | None = None
    """Requests at once."""

    def __bool__(self) -> bool:
        return (self.requests, self.tokens, self.parallel) != (None, None, None)


@dataclass(frozen=True, slots=True)
class Key:
    """A key without its secret."""

    id: str
    name: str
    digest: bytes
    scopes: frozenset[str]
    models: tuple[str, ...] = ()
    """Names, or patterns with ``*``, of the models that it may use; empty: all."""
    expires: float | None = None
    """Seconds since 1970; None: never."""
    limits: Limits = field(default_factory=Limits)
    created: float = 0.0
    revoked: float | None = None
    """Seconds since 1970; None: it is not revoked."""

    def allows(self, model: str) -> bool:
        """Return whether the key may use a model, by the name that the client writes."""
        return not self.models or any(pattern.fullmatch(model) for pattern in _patterns(self.models))

    def has_expired(self, now: float) -> bool:
        """Return whether the key has expired at ``now``, in seconds since 1970."""
        return self.expires is not None and now >= self.expires

    def state(self, now: float) -> str:
        """Return ``valid``, ``expired`` or ``revoked``."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.has_expired(now) else "valid"

    def document(self) -> JSONObject:
        """Return what a store keeps of the key, as JSON."""
        return {
            "name": self.name,
            "digest": self.digest.hex(),
            "scopes": join_scopes(self.scopes),
            "models": list(self.models),
            "expires": self.expires,
            "requests": self.limits.requests,
            "tokens": self.limits.tokens,
            "parallel": self.limits.parallel,
            "created": self.created,
            "revoked": self.revoked,
        }

    @classmethod
    def of_document(cls, number: str, document: JSONObject) -> Key:
        """Return the key of an id and a `document`."""
        return cls(
            id=number,
            name=document["name"],
            digest=bytes.fromhex(document["digest"]),
            scopes=parse_scopes(document["scopes"]),
            models=tuple(document["models"]),
            expires=document["expires"],
            limits=Limits(document["requests"], document["tokens"], document["parallel"]),
            created=document["created"],
            revoked=document["revoked"],
        )

    def revoked_at(self, now: float) -> Key:
        """Return the key as revoked."""
        return replace(self, revoked=now)


def new_key(
    name: str,
    digest: bytes,
    scopes: frozenset[str],
    models: Sequence[str] = (),
    *,
    expires: float | None = None,
    limits: Limits | None = None,
) -> Key:
    """Return a new key for the hash of a secret. Raises ValueError for a name or a model that is not valid."""
    check_name(name)
    if ID.fullmatch(name):
        raise ValueError(f"{name} is how ids of keys look: choose another name")
    if len(models) > MAX_MODELS or not all(models):
        raise ValueError(f"models: at most {MAX_MODELS}, and none may be empty")
    number = f"key_{secrets.token_hex(6)}"
    return Key(number, name, digest, scopes, tuple(models), expires, limits or Limits(), time.time())


def parse_expiry(text: str, now: float) -> float:
    """Return the time, in seconds since 1970, of a duration from ``now`` (``90m``, ``12h``, ``30d``, ``8w``) or a date.

    A date (``2027-01-31``, the beginning of that day) and a time (``2027-01-31T18:00``) are in UTC unless the time has
    another zone. Raises ValueError, also for a time that is past, or after the year 9999.
    """
    duration = _DURATION.fullmatch(text)
    if duration is not None:
        moment = now + int(duration[1]) * _SECONDS[duration[2]]
    else:
        try:
            parsed = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError(f"{text!r} is not a duration like 30d or 12h, nor a date like 2027-01-31") from None
        moment = (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    if moment <= now:
        raise ValueError(f"{text} is past")
    if moment > _LATEST:
        raise ValueError(f"{text} is after the year 9999: leave it out for a key that never expires")
    return moment


def shown_time(moment: float | None) -> str | None:
    """Return a time in seconds since 1970 as ISO 8601 in UTC; None as None."""
    return None if moment is None else datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@functools.lru_cache(maxsize=1024)
def _patterns(models: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(".*".join(map(re.escape, model.split("*"))), re.DOTALL) for model in models)
