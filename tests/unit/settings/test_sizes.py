"""Sizes as people write and read them."""

from __future__ import annotations

import pytest
from modelyard.settings.params import params_of
from modelyard.settings.settings import Settings
from modelyard.settings.sizes import bytes_of


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("1234567", 1_234_567),
        ("12GB", 12 * 10**9),
        ("12 gb", 12 * 10**9),
        (" 1.5 GB ", 1_500_000_000),
        ("12GiB", 12 * 2**30),
        ("0.5 KiB", 512),
        ("7B", 7),
        ("2TB", 2 * 10**12),
        ("1.1TB", 1_100_000_000_000),
    ],
)
def test_a_size_has_a_unit_or_is_in_bytes(text, count):
    assert bytes_of(text) == count


@pytest.mark.parametrize("text", ["", "GB", "12G", "12 pounds", "-1GB", "1e9", "1.GB", "1,5GB", "9" * 5000])
def test_what_is_not_a_size_is_refused_with_the_units(text):
    with pytest.raises(ValueError, match=r"is not a number of bytes, .* kB, MB, GB, TB, KiB, MiB, GiB, TiB"):
        bytes_of(text)


def test_a_parameter_of_a_size_takes_text_from_everywhere_and_numbers():
    budget = params_of(Settings)["memory_budget"]
    assert budget.parse("12GB") == budget.check("12GB") == budget.check(12_000_000_000) == 12 * 10**9
    assert budget.parse("") is None
    for wrong in ("1kB", 5, "much"):
        with pytest.raises(ValueError, match=r"is less than 1000000|not a number of bytes"):
            budget.check(wrong)
