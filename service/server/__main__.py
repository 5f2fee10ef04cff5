"""Become gunicorn: ``python -m modelyard.server``. Ctrl-C ends it without a traceback, also while it is imported."""

from __future__ import annotations

import runpy
import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until gunicorn sets its handler
    runpy.run_module("gunicorn", run_name="__main__", alter_sys=True)
