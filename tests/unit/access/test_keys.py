"""API keys as values: the models that they allow, their expiry, and how a store keeps them."""

from __future__ import annotations

import pytest
from modelyard.access.keys import Key, Limits, new_key, parse_expiry, shown_time
from modelyard.access.tokens import digest_of, parse_scopes

NOON = 1_795_694_400.0
"""2026-11-26T12:00:00Z"""


def key(*models: str, expires: float | None = None) -> Key:
    return new_key("ci", digest_of("x"), parse_scopes("infer"), models, expires=expires)


def test_a_key_without_models_may_use_all():
    assert key().allows("anything")


@pytest.mark.parametrize(
    ("pattern", "allowed", "refused"),
    [
        ("small", ["small"], ["Small", "small2", "a small", ""]),
        ("qwen*", ["qwen", "qwen2.5-7b", "qwen/x"], ["a-qwen", "Qwen"]),
        ("*/chat", ["a/chat", "/chat"], ["chat", "a/chat/b"]),
        ("a.b[1]?", ["a.b[1]?"], ["aXb[1]?", "a.b1x"]),
    ],
)
def test_a_star_is_any_text_and_nothing_else_is_a_pattern(pattern, allowed, refused):
    assert all(map(key("other", pattern).allows, allowed))
    assert not any(map(key("other", pattern).allows, refused))


def test_a_key_expires_at_its_moment():
    made = key(expires=NOON)
    assert [made.state(NOON - 0.1), made.state(NOON)] == ["valid", "expired"]
    assert key().state(NOON) == "valid"
    assert made.revoked_at(NOON).state(NOON - 1) == "revoked"


def test_a_document_has_all_of_a_key():
    made = new_key("ci", digest_of("x"), parse_scopes("admin"), ["a", "b*"], expires=1.5, limits=Limits(1, 2, 3))
    for entry in (made, made.revoked_at(7.25), key()):
        assert Key.of_document(entry.id, entry.document()) == entry


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("90s", NOON + 90),
        ("5m", NOON + 300),
        ("12h", NOON + 43_200),
        ("30d", NOON + 30 * 86_400),
        ("2w", NOON + 14 * 86_400),
        ("2026-11-27", NOON + 43_200),
        ("2026-11-26T12:00:01", NOON + 1),
        ("2026-11-26T14:00+01:00", NOON + 3600),
    ],
)
def test_an_expiry_is_a_duration_or_a_date(text, moment):
    assert parse_expiry(text, NOON) == moment


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "1y", "1.5d", "tomorrow", "2026-13-01", "0d", "2026-11-26"])
def test_what_is_no_time_to_come_is_refused_with_its_text(text):
    with pytest.raises(ValueError, match=r"is past|is not a duration") as refused:
        parse_expiry(text, NOON)
    assert text in str(refused.value)


@pytest.mark.parametrize("text", ["999999w", "9999-12-31T23:59-12:00"])
def test_an_expiry_that_can_not_be_shown_is_refused(text):
    with pytest.raises(ValueError, match=r"is after the year 9999"):
        parse_expiry(text, NOON)
    assert shown_time(parse_expiry("9999-12-31T23:59:59", NOON)) == "9999-12-31T23:59:59Z"


def test_a_time_is_shown_in_utc():
    assert (shown_time(NOON), shown_time(None)) == ("2026-11-26T12:00:00Z", None)


@pytest.mark.parametrize("name", ["", "two words", "key_0123456789ab", "x" * 65])
def test_a_name_that_does_not_fit_is_refused(name):
    with pytest.raises(ValueError, match="name"):
        new_key(name, digest_of("x"), parse_scopes("infer"))


def test_limits_count_as_none_when_there_are_none():
    assert not Limits()
    assert all([Limits(1), Limits(tokens=1), Limits(parallel=1)])
