"""Gives entries their titles, beside the web processes: ``python -m jobs``, or ``python -m jobs --once`` from cron.

It asks the application's own API, over HTTP: so its requests stand in the same line as those of the pages.
"""

from __future__ import annotations

import logging
import os
import sys
import time

import config
from modelyard import Client
from modelyard.errors import ModelyardError

from service import database, notebook

log = logging.getLogger("jobs")

URL = os.environ.get("MODELYARD_URL", "http://127.0.0.1:8000/ml/api")
INTERVAL = 1.0


def main() -> None:
    """Do what is due; without ``--once``, for ever."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    with Client(URL) as client:
        while True:
            while do_one(client):
                pass
            if "--once" in sys.argv:
                return
            time.sleep(INTERVAL)


def do_one(client: Client) -> bool:
    """Do one job; return whether there was one."""
    with database.opened(config.DATABASE) as db:
        job = notebook.take_job(db)
    if job is None:
        return False
    wish = f"Question: {job['question']}\nWrite a short title."
    try:
        title = client.chat(wish, model=config.MODEL, max_new_tokens=16, temperature=0)
    except ModelyardError as error:
        log.warning("entry %d: %s", job["entry"], error)
        with database.opened(config.DATABASE) as db:
            notebook.put_off_job(db, job)
    else:
        log.info("entry %d has a title", job["entry"])
        with database.opened(config.DATABASE) as db:
            notebook.finish_job(db, job, title.strip())
    return True


if __name__ == "__main__":
    main()
