"""The tests of Flask, its extensions and applications, while each application that they make has Modelyard."""

from __future__ import annotations

import pytest
from running import ROOT
from suites import Suites

SUITES = {
    "flask": ("3.1.3", "", ["tests"]),
    "flaskr": ("3.1.3", "examples/tutorial", ["tests"]),
    "Flask-Login": ("0.6.3", "", ["tests/test_login.py"]),
    "Flask-WTF": ("1.3.0", "", ["tests"]),
    "Flask-SQLAlchemy": ("3.1.1", "", ["tests"]),
    "Flask-Limiter": ("4.1.1", "", ["tests"]),
    "Flask-Compress": ("1.25", "", ["tests"]),
    "Flask-Security": ("5.9.2", "", ["examples/fsqlalchemy1/tests", "tests/test_basic.py", "tests/test_csrf.py"]),
    "Flask-Admin": ("2.2.1", "", ["flask_admin/tests/test_base.py", "flask_admin/tests/test_host_matching.py"]),
    "httpbin": ("0.10.4", "", ["tests"]),
}
"""The version, the folder in the source distribution, and the tests of each suite."""
PACKAGES = {"flaskr": "Flask"}
"""The distributions of suites that have another name."""


@pytest.mark.parametrize("name", SUITES)
def check_suite(suites: Suites, name: str) -> None:
    version, folder, tests = SUITES[name]
    place = suites.environment("flask", "--editable", f"{ROOT}[server]")
    root = suites.source(place, PACKAGES.get(name, name), version)
    # Folders below the root are on the path as the suites expect it.
    variables = {"PYTHONPATH": ".:examples", "MODELYARD_STATE_DIR": str(suites.state_dir)}
    suites.run_pytest(f"{name} {version}", place, root / folder, tests, variables, "-p", "mounting")
