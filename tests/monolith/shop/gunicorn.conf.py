"""The shop's own settings of gunicorn: they tell what runs once the application is loaded."""

from __future__ import annotations

import threading
from typing import Any


def post_worker_init(worker: Any) -> None:
    names = ", ".join(sorted(thread.name for thread in threading.enumerate()))
    worker.log.info("the shop is loaded; its threads: %s", names)
