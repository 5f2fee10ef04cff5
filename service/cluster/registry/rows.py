"""What is the same in every store: which instances fit, which generation a beat comes to, who is healthy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ...errors import FieldError, InvalidRequest
from .base import ANY_GENERATION, Instance

KEY_LENGTH = 512
URL_LENGTH = 1024
LOAD_LENGTH = 255
TEMPLATE_LENGTH = 8192
CAPABILITIES = 32
CAPABILITY_LENGTH = 64
MAX_WEIGHT = 1e6
MAX_GENERATION = 2**53 - 1
"""The largest integer that JSON and Lua keep exactly; as microseconds since 1970, in the year 2255."""
MAX_INTERVAL = 20.0
MICROSECONDS = 1_000_000


def interval(heartbeat_timeout: float) -> float:
    """Return the seconds between two beats: two may be lost until an instance counts as unhealthy."""
    return min(MAX_INTERVAL, heartbeat_timeout / 3)


def is_healthy(instance: Instance, deregistered: bool, now: float, heartbeat_timeout: float) -> bool:
    """Return whether it lives, as far as the store can tell at ``now``, in seconds by its clock."""
    if deregistered:
        return False
    return not instance.check_healthy or now - (instance.last_heartbeat or 0.0) <= heartbeat_timeout


def settle(said: int | None, held: int | None, now: int) -> int | None:
    """Return the generation that a row has after a beat; None where the beat is superseded.

    ``said`` is the beat's, ``held`` the row's (None: there is no row), ``now`` the store's clock in microseconds.
    """
    if said is None or (said == ANY_GENERATION and held is None):
        return max(now, 0 if held is None else held + 1)
    if said == ANY_GENERATION:
        return held
    return None if held is not None and said < held else said


def outlives(held: int, said: int | None) -> bool:
    """Return whether a row is newer than whoever wants to deregister it."""
    return said is not None and said != ANY_GENERATION and said < held


def ordered(instances: list[Instance], *, healthy_only: bool) -> list[Instance]:
    """Return them by key and address, the same whatever a database thinks of letters."""
    return sorted((one for one in instances if one.healthy or not healthy_only), key=lambda one: (one.key, one.url))


def check_beat(instances: Sequence[Instance]) -> None:
    """Raise InvalidRequest where one of them does not fit; its ``errors`` name the fields."""
    errors = list(_identity_faults(instances))
    for number, instance in enumerate(instances):
        errors += [FieldError(field=f"{number}.{field}", message=text) for field, text in _detail_faults(instance)]
    if errors:
        raise InvalidRequest.of_fields(errors)


def check_identities(instances: Sequence[Instance]) -> None:
    """The same for those that are to be deregistered: only what names them counts."""
    if errors := list(_identity_faults(instances)):
        raise InvalidRequest.of_fields(errors)


def check_key(key: str) -> None:
    """Raise InvalidRequest where no instance can have that key."""
    if fault := _name_fault(key, KEY_LENGTH):
        raise InvalidRequest.of_fields([FieldError(field="key", message=fault)])


def _identity_faults(instances: Sequence[Instance]) -> Iterator[FieldError]:
    seen: set[tuple[str, str]] = set()
    for number, instance in enumerate(instances):
        for field, value, limit in (("key", instance.key, KEY_LENGTH), ("url", instance.url, URL_LENGTH)):
            if fault := _name_fault(value, limit):
                yield FieldError(field=f"{number}.{field}", message=fault)
                break
        else:
            if (instance.key, instance.url) in seen:
                yield FieldError(field=str(number), message=f"{instance.key} at {instance.url} is named twice")
            seen.add((instance.key, instance.url))
        generation = instance.generation
        if generation is not None and not (_is_integer(generation) and 0 <= generation <= MAX_GENERATION):
            yield FieldError(field=f"{number}.generation", message=f"must be an integer, 0 .. {MAX_GENERATION}")


def _detail_faults(instance: Instance) -> Iterator[tuple[str, str]]:
    weight = instance.weight
    if not isinstance(weight, int | float) or not math.isfinite(weight) or not 0 <= weight <= MAX_WEIGHT:
        yield "weight", f"must be a number, 0 .. {MAX_WEIGHT:g}"
    for field, value in (("enabled", instance.enabled), ("check_healthy", instance.check_healthy)):
        if not isinstance(value, bool):
            yield field, "must be true or false"
    for field, text, limit in (
        ("load", instance.load, LOAD_LENGTH),
        ("prompt_template", instance.prompt_template, TEMPLATE_LENGTH),
    ):
        if text is not None and (fault := _text_fault(text, limit)):
            yield field, fault
    listed = instance.capabilities
    if not isinstance(listed, list) or len(listed) > CAPABILITIES:
        yield "capabilities", f"must be a list of at most {CAPABILITIES} words"
    elif fault := next((fault for word in listed if (fault := _name_fault(word, CAPABILITY_LENGTH))), None):
        yield "capabilities", f"a word of it {fault}"


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _name_fault(value: object, limit: int) -> str | None:
    """Return what is wrong with a name. Blanks at its ends are refused: not every database tells them apart."""
    if fault := _text_fault(value, limit):
        return fault
    assert isinstance(value, str)
    if not value:
        return "must not be empty"
    if value != value.strip() or not value.isprintable():
        return "must have no control characters, and no blanks at its ends"
    return None


def _text_fault(value: object, limit: int) -> str | None:
    if not isinstance(value, str):
        return "must be a string"
    if len(value) > limit:
        return f"has {len(value)} characters, at most {limit} are taken"
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        return "must have neither NUL characters nor half of a surrogate pair"
    return None
