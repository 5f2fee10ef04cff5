"""Wrong tokens and keys: counted by address, within bounds, and told to the log once a minute."""

from __future__ import annotations

import logging

import pytest
from modelyard.access import wrong_keys
from modelyard.access.wrong_keys import LIMIT, SPAN, WrongKeys


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_address_waits_for_the_rest_of_its_span_and_others_do_not() -> None:
    clock = Clock()
    wrong = WrongKeys(clock)
    for _ in range(LIMIT):
        assert wrong.pause("a") == 0
        wrong.note("a")
    clock.now = 20.5
    assert (wrong.pause("a"), wrong.pause("b")) == (40, 0)
    clock.now = SPAN
    assert wrong.pause("a") == 0
    wrong.note("a")
    assert wrong.pause("a") == 0


def test_few_addresses_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wrong_keys, "ADDRESSES_KEPT", 2)
    wrong = WrongKeys(Clock())
    for address in "a" * LIMIT + "bc":
        wrong.note(address)
    assert wrong.pause("a") == 0, "the oldest span is forgotten first"


def test_the_log_has_a_line_a_minute_with_their_number(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    wrong = WrongKeys(clock)
    with caplog.at_level(logging.WARNING):
        for second in range(122):
            clock.now = float(second)
            wrong.note("10.0.0.9")
    assert [record.getMessage() for record in caplog.records] == [
        f"tokens or keys that are not known here: {number}, the last from '10.0.0.9'" for number in (1, 60, 60)
    ]
