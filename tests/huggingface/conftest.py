"""The tests of engines that need torch: `make test-torch` runs them, in an environment of its own."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("transformers") is None:
    collect_ignore_glob = ["test_*.py"]
