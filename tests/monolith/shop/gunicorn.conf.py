"""The shop's own settings of gunicorn: they tell what runs once the application is loaded."""

from __future__ import annotations

import threading
from typing import Any

# The control socket is shared by all services of a user. Versions of gunicorn that have none ignore the name.
control_socket_disable = True


def post_worker_init(worker: Any) -> None:
    names = ", ".join(sorted(thread.name for thread in threading.enumerate()))
    worker.log.info("the shop is loaded; its threads: %s", names)
