"""The limits of the fields of an instance, for registries and for the bodies of requests."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias
from urllib.parse import SplitResult, unquote, urlsplit

from ...errors import FieldError, InvalidRequest
from .base import Instance

KEY_LENGTH = 512
URL_LENGTH = 1024
LOAD_LENGTH = 255
TEMPLATE_LENGTH = 8192
CAPABILITIES = 32
CAPABILITY_LENGTH = 64
MIN_WEIGHT = 0.001
MAX_WEIGHT = 1e6
MAX_GENERATION = 2**53 - 1
"""The largest integer that JSON and Lua keep exactly; as microseconds since 1970, in the year 2255."""

_KEY = re.compile(r".+@[A-Za-z0-9_.-]{1,64}")
"""Any type is accepted, not only those of `WorkerType`: a newer version may have others."""
_SOCKET_PATH_LENGTH = 107
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,253}")
_PATH = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@%-]+)*")  # the characters of RFC 3986

Check: TypeAlias = Callable[[object], str | None]
"""Returns what is wrong with a value; None if it is valid."""


def check_beat(instances: Sequence[Instance]) -> None:
    """Raise InvalidRequest if an instance is not valid. Its ``errors`` name the fields, as ``[3].url``."""
    _raise(instances, FIELDS)


def check_identities(instances: Sequence[Instance]) -> None:
    """Raise InvalidRequest if the key, address or generation of an instance to deregister is not valid."""
    _raise(instances, IDENTITY)


def check_lookup(key: str) -> None:
    """Raise InvalidRequest if an instance can't have that key."""
    if fault := _name_fault(key, KEY_LENGTH):
        raise InvalidRequest.of_fields([FieldError(field="key", message=fault)])


def _raise(instances: Sequence[Instance], checks: Mapping[str, Check]) -> None:
    if errors := list(_faults(instances, checks)):
        raise InvalidRequest.of_fields(errors)


def _faults(instances: Sequence[Instance], checks: Mapping[str, Check]) -> Iterator[FieldError]:
    names: set[tuple[str, str]] = set()
    for number, instance in enumerate(instances):
        is_sound = True
        for field, check in checks.items():
            if fault := check(getattr(instance, field)):
                is_sound = False
                yield FieldError(field=f"[{number}].{field}", message=fault)
        name = (instance.key, instance.url)
        if is_sound and name in names:
            yield FieldError(field=f"[{number}]", message=f"{instance.key} at {instance.url} is named twice")
        elif is_sound:
            names.add(name)


# Fields


def key_fault(value: object) -> str | None:
    """Return what is wrong with a worker key."""
    if fault := _name_fault(value, KEY_LENGTH):
        return fault
    return None if _KEY.fullmatch(str(value)) else "must be name@type, as in smollm2-135m@llm"


def url_fault(value: object) -> str | None:
    """Return what is wrong with the address of an instance."""
    if fault := _name_fault(value, URL_LENGTH):
        return fault
    url = str(value)
    if not re.fullmatch(r"[!-~]+", url):
        return "must be ASCII without spaces"
    if not url.startswith(("http://", "https://", "http+unix://")):
        return "must start with http://, https:// or http+unix://"
    if "?" in url or "#" in url:
        return "must not have a query or a fragment"
    try:
        return _parts_fault(urlsplit(url))
    except ValueError as error:  # half an IPv6 address, a port that is not a number
        return str(error)


def _parts_fault(parts: SplitResult) -> str | None:
    """Return what is wrong with the parts of an address. For some faults, raises ValueError with the text."""
    if "@" in parts.netloc:
        return "must not have a user name or password"
    if not _PATH.fullmatch(parts.path) or {".", ".."} & set(parts.path.split("/")):
        return f"has the path {parts.path!r}: it must be a plain prefix as /api, without a slash at its end"
    if parts.scheme == "http+unix":
        path = unquote(parts.netloc)
        if not path.startswith("/") or not path.isprintable() or len(path.encode()) > _SOCKET_PATH_LENGTH:
            return "must name a socket by its whole path, quoted: http+unix://%2Frun%2Fworker.sock/api"
        return None
    host = parts.hostname or ""
    if parts.netloc.startswith("["):
        ipaddress.IPv6Address(host)
    elif not _HOST.fullmatch(host):
        return f"has the host {host!r}, which is neither a name nor an address"
    return "must have a port from 1 to 65535, or none" if parts.port == 0 or parts.netloc.endswith(":") else None


def weight_fault(value: object) -> str | None:
    """Return what is wrong with a weight."""
    if isinstance(value, int | float) and not isinstance(value, bool) and MIN_WEIGHT <= value <= MAX_WEIGHT:
        return None
    return f"must be a number, {MIN_WEIGHT:g} .. {MAX_WEIGHT:g}"


def flag_fault(value: object) -> str | None:
    """Return what is wrong with a truth value."""
    return None if isinstance(value, bool) else "must be true or false"


def capability_fault(value: object) -> str | None:
    """Return what is wrong with one of the capabilities."""
    return _name_fault(value, CAPABILITY_LENGTH)


def capabilities_fault(value: object) -> str | None:
    """Return what is wrong with the list of capabilities."""
    if not isinstance(value, list) or len(value) > CAPABILITIES:
        return f"must be a list of at most {CAPABILITIES} words"
    fault = next((fault for word in value if (fault := capability_fault(word))), None)
    return fault and f"has a word that {fault}"


def load_fault(value: object) -> str | None:
    """Return what is wrong with a load."""
    return None if value is None else _text_fault(value, LOAD_LENGTH) or _print_fault(str(value))


def template_fault(value: object) -> str | None:
    """Return what is wrong with a prompt template."""
    return None if value is None else _text_fault(value, TEMPLATE_LENGTH)


def generation_fault(value: object) -> str | None:
    """Return what is wrong with a generation."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_GENERATION):
        return None
    return f"must be an integer, 0 .. {MAX_GENERATION}"


IDENTITY: Mapping[str, Check] = MappingProxyType({"key": key_fault, "url": url_fault, "generation": generation_fault})
FIELDS: Mapping[str, Check] = MappingProxyType(
    {
        **IDENTITY,
        "weight": weight_fault,
        "enabled": flag_fault,
        "check_healthy": flag_fault,
        "capabilities": capabilities_fault,
        "load": load_fault,
        "prompt_template": template_fault,
    }
)


def _name_fault(value: object, limit: int) -> str | None:
    """Return what is wrong with a name. Blanks at its ends are refused, as some databases ignore them."""
    if fault := _text_fault(value, limit):
        return fault
    name = str(value)
    if not name:
        return "must not be empty"
    if name != name.strip():
        return "must not have blanks at its ends"
    return _print_fault(name)


def _text_fault(value: object, limit: int) -> str | None:
    if not isinstance(value, str):
        return "must be a string"
    if len(value) > limit:
        return f"has {len(value)} characters, at most {limit} are accepted"
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        return "must not have NUL characters or half of a surrogate pair"
    return None


def _print_fault(text: str) -> str | None:
    return None if text.isprintable() else "must not have control characters"
