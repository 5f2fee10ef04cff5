"""What is different from place to place: environment variables, read by the application and by its jobs."""

from __future__ import annotations

import os

SECRET_KEY = os.environ.get("NOTEBOOK_SECRET_KEY", "dev")
DATABASE = os.environ.get("NOTEBOOK_DATABASE", "notebook.sqlite")
MODEL = os.environ.get("NOTEBOOK_MODEL", "smollm2-135m")
SESSION_COOKIE_SAMESITE = "Lax"
