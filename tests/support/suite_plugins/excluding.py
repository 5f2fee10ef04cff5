"""A plugin of pytest for the suites: skips what the list of exclusions names, each with its reason.

It runs in the environment of a suite, and needs nothing but pytest.
"""

from __future__ import annotations

import fnmatch
import os
import tomllib
from pathlib import Path

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip each test whose id fits a pattern of the list. Raises UsageError for a pattern that fits none."""
    suite = os.environ["INTEROP_SUITE"]
    listed = tomllib.loads(Path(os.environ["INTEROP_EXCLUSIONS"]).read_text())
    tables = [table for name, table in listed.items() if fnmatch.fnmatchcase(suite, name)]
    reasons = {pattern: reason for table in tables for pattern, reason in table.items()}
    unused = set(reasons)
    for item in items:
        for pattern, reason in reasons.items():
            if fnmatch.fnmatchcase(item.nodeid, f"*{pattern}"):
                item.add_marker(pytest.mark.skip(reason=f"excluded: {reason}"))
                unused.discard(pattern)
    if unused:
        raise pytest.UsageError(f"no test fits these patterns of the exclusions: {', '.join(sorted(unused))}")
