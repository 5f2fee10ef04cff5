"""Imports go down: a module imports from its own package, or from the floors below it, and never in a circle."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from running import ROOT

FLOORS: tuple[tuple[str, ...], ...] = (
    ("version", "errors", "types", "files", "processes", "sockets", "affinity"),
    ("threads",),
    ("settings", "wire", "streams"),
    ("access", "models", "telemetry", "pump"),
    ("sessions",),
    ("client",),
    ("engines",),
    ("worker",),
    ("cluster",),
    ("blueprints",),
    ("server",),
    ("cli", "testing"),
    ("__main__",),
)
"""The packages and the modules at the top, the lowest first: the table of docs/architecture.md."""

ROOTS = {"": ROOT / "service", "blueprints": ROOT / "blueprints"}


def place_of(module: str) -> str:
    """Return the package, or the module at the top, that a module belongs to."""
    return module.partition(".")[0]


def floor_of(module: str) -> int:
    return next(number for number, names in enumerate(FLOORS) if place_of(module) in names)


@cache
def modules() -> dict[str, Path]:
    """Return every module of the package by its name below ``modelyard``; the package itself has none."""
    found: dict[str, Path] = {}
    for prefix, root in ROOTS.items():
        for path in sorted(root.rglob("*.py")):
            parts = [prefix, *path.relative_to(root).with_suffix("").parts]
            found[".".join(part for part in parts if part and part != "__init__")] = path
    return found


def imports(module: str) -> dict[str, int]:
    """Return the modules of the package that one imports, at its top or in a function, with the lines."""
    path = modules()[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    package = [part for part in package if part]
    found: dict[str, int] = {}
    for node in _running_nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package[: len(package) - node.level + 1]
                base = ".".join(["modelyard", *above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if (imported := _within(name)) is not None and imported != module:
                found.setdefault(imported, node.lineno)
    return found


def _running_nodes(tree: ast.AST) -> list[ast.AST]:
    """Return the nodes of a module but those that only a type checker reads."""
    found: list[ast.AST] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        found += [node, *_running_nodes(node)]
    return found


def _within(name: str) -> str | None:
    """Return the module below ``modelyard`` that a dotted name leads to: the longest that is one."""
    parts = name.split(".")
    if parts[0] != "modelyard":
        return None
    for length in range(len(parts), 0, -1):
        if (module := ".".join(parts[1:length])) in modules():
            return module
    return None


def test_every_package_has_a_floor():
    named = [name for names in FLOORS for name in names]
    assert len(named) == len(set(named))
    assert {place_of(module) for module in modules() if module} == set(named)


def test_imports_go_down_or_stay_within_their_package():
    wrong = [
        f"{modules()[module].relative_to(ROOT)}:{line} imports {imported}"
        for module in modules()
        if module
        for imported, line in imports(module).items()
        if imported and place_of(imported) != place_of(module) and floor_of(imported) >= floor_of(module)
    ]
    assert wrong == []


def test_no_imports_go_round_in_a_circle():
    try:
        list(TopologicalSorter({module: set(imports(module)) - {""} for module in modules()}).static_order())
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


MOST_LINES = 400
FEW_LINES = 60
STARTED_BY_NAME = {"__main__", "server.__main__", "server.wsgi"}
ONE_A_BLUEPRINT = {"blueprints.health"}


def lines_of(module: str) -> int:
    return modules()[module].read_text(encoding="utf-8").count("\n")


def test_no_module_is_too_long_to_be_read_at_once():
    assert {module: count for module in modules() if (count := lines_of(module)) > MOST_LINES} == {}


def test_a_small_module_has_more_than_one_reader():
    # Else its only reader is the place for it.
    readers = Counter(imported for module in modules() for imported in imports(module))
    small = {name for name, path in modules().items() if lines_of(name) < FEW_LINES and path.name != "__init__.py"}
    assert {module for module in small - STARTED_BY_NAME - ONE_A_BLUEPRINT if readers[module] < 2} == set()


def test_imports_within_the_package_are_found():
    # What holds the tests above up: that they see imports of each form.
    assert "types" in imports("wire.chunks")
    assert {"engines.base", "errors"} <= set(imports("engines"))
    assert "errors" in imports("blueprints.request.problems")
    assert "settings.settings" in imports("server.gunicorn")
    assert "server.extension" not in imports("")


def test_the_page_on_the_architecture_says_the_same():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.*?) \|", page, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(len(FLOORS)))
    for number, cell in rows:
        named = {name.rstrip("/") for name in re.findall(r"`([^`]+)`", cell)}
        assert named == set(FLOORS[int(number)]), f"floor {number} of docs/architecture.md"


def test_nothing_imports_the_folders_by_their_own_names():
    # From the checkout's root they can be imported as `service` and `blueprints`: a second copy of everything.
    sources = [*modules().values(), ROOT / "wsgi.py", ROOT / "gunicorn.conf.py", *(ROOT / "bench").rglob("*.py")]
    sources += [path for path in (ROOT / "tests").rglob("*.py") if (ROOT / "tests" / "monolith") not in path.parents]
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not {name.split(".")[0] for name in names} & {"service", "blueprints"}, path


HEAVY = ("flask", "werkzeug", "marshmallow", "requests", "orjson", "click", "gunicorn", "gevent", "opentelemetry")
ENGINES = ("xllamacpp", "gguf", "numpy", "torch", "transformers")
DRIVERS = ("sqlalchemy", "psycopg", "redis", "pymysql", "sqlite3")


def loaded_after(statement: str) -> set[str]:
    """Return the modules that a fresh interpreter has loaded after ``statement``."""
    script = f"{statement}\nimport sys\nprint(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return set(ran.stdout.split())


def test_importing_the_package_loads_nothing_but_its_version():
    loaded = loaded_after("import modelyard")
    assert {name for name in loaded if name.startswith("modelyard")} == {"modelyard", "modelyard.version"}
    assert not loaded & {*HEAVY, *ENGINES, *DRIVERS}


def test_flask_is_loaded_when_the_extension_is_asked_for_and_no_engine_then():
    for statement in ("from modelyard import Modelyard", "from modelyard import create_app"):
        loaded = loaded_after(statement)
        assert "flask" in loaded
        assert not loaded & {*ENGINES, *DRIVERS, "gunicorn", "gevent", "click.testing"}
        assert not {name for name in loaded if re.match(r"modelyard\.engines\.(echo|llama)", name)}


def test_an_application_with_models_loads_no_library_of_an_engine():
    statement = (
        "from modelyard import create_app; from modelyard.settings.settings import Settings\n"
        "create_app(Settings(models=['smollm2-135m', 'echo'], models_dirs=['/nonexistent']))"
    )
    # The registry is a file, by default: Python's own sqlite3.
    assert not loaded_after(statement) & {*ENGINES, *DRIVERS} - {"sqlite3"}


def test_the_values_at_the_bottom_need_no_web_framework():
    statement = "import modelyard.errors, modelyard.types, modelyard.settings.settings, modelyard.engines.base"
    assert not loaded_after(statement) & {"flask", "werkzeug", "requests", "marshmallow", *ENGINES}
