"""The source archive has the checkout. The wheel, which is built from it, has every module and what they read, and each
can be imported from it."""

from __future__ import annotations

import configparser
import os
import re
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from running import ROOT, WITHOUT_PLUGINS
from wheels import BESIDE, build_both, build_wheel, run_command

FOLDERS = {"modelyard": ROOT / "service", "modelyard.blueprints": ROOT / "blueprints"}


def packages() -> dict[str, Path]:
    """Return every package of the checkout: each folder with an ``__init__.py``."""
    found = {}
    for name, root in FOLDERS.items():
        for init in root.rglob("__init__.py"):
            found[".".join([name, *init.parent.relative_to(root).parts])] = init.parent
    return found


def expected_files() -> set[str]:
    """Return the modules of the checkout, as paths within a wheel."""
    return {
        "/".join([*name.split("."), path.name]) for name, folder in packages().items() for path in folder.glob("*.py")
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build_both(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def archive(built: tuple[Path, Path]) -> Path:
    return built[0]


@pytest.fixture(scope="module")
def wheel(built: tuple[Path, Path]) -> Path:
    return built[1]


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the wheel is installed, without its dependencies."""
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index", "--no-deps"]
    run_command([*pip, "--target", target, wheel])
    return target


def from_wheel(site: Path, script: str) -> str:
    """Run ``script`` where ``modelyard`` is the one of the wheel, and its dependencies are those of the tests."""
    environ = {**os.environ, "PYTHONPATH": str(site)}
    return run_command([sys.executable, "-c", script], cwd=site, environ=environ)


def test_every_package_folder_is_listed_in_the_configuration():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert sorted(config["options"]["packages"].split()) == sorted(packages())


def test_the_source_archive_has_what_stands_beside_the_package(archive):
    with tarfile.open(archive) as opened:
        members = {member.name.partition("/")[2] for member in opened if member.isfile()}
    files = {str(path.relative_to(ROOT)) for name in BESIDE for path in (ROOT / name).rglob("*") if path.is_file()}
    missing = {name for name in files if not name.endswith((".pyc", ".sqlite"))} - members
    assert not missing
    alone = {"CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "Makefile", "README.md", "pyproject.toml"}
    assert {*alone, "setup.cfg", "gunicorn.conf.py", "wsgi.py"} <= members


def test_it_has_every_module_of_the_checkout_and_no_other(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if name.endswith(".py")} == expected_files()
    assert all(name.split("/")[0].split("-")[0] == "modelyard" for name in names), "nothing beside the package"


def test_it_has_the_catalogue_and_says_that_it_is_typed(wheel, site):
    names = zipfile.ZipFile(wheel).namelist()
    assert {"modelyard/models/catalog.toml", "modelyard/py.typed"} <= set(names)
    shipped = {path for folder in FOLDERS.values() for path in folder.rglob("templates/*") if path.is_file()}
    assert {path.name for path in shipped} <= {name.rpartition("/")[2] for name in names}
    script = "from modelyard.models.catalog import Catalog; print(*(entry.name for entry in Catalog.load()))"
    assert from_wheel(site, script).split() == ["smollm2-135m", "minilm-l6", "echo", "echo-embed"]


def test_it_has_the_templates_and_the_files_of_the_pages(wheel):
    folder = FOLDERS["modelyard.blueprints"] / "pages"
    expected = {f"modelyard/blueprints/{path.relative_to(folder.parent)}" for path in folder.rglob("*.*")}
    expected = {name for name in expected if not name.endswith((".py", ".pyc"))}
    assert len(expected) > 5
    assert expected <= set(zipfile.ZipFile(wheel).namelist())


def test_its_metadata_names_licence_command_and_extras(wheel):
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA"))
    (entries,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith("/entry_points.txt"))
    assert re.search(r"^License(-Expression)?: Apache-2\.0$", metadata, re.MULTILINE)
    assert "modelyard = modelyard.cli:main" in entries
    assert "[pytest11]\nmodelyard.testing = modelyard.testing" in entries
    for extra in ("server", "llama", "otel"):
        assert f"Provides-Extra: {extra}" in metadata
    assert any(name.endswith("/LICENSE") for name in archive.namelist())


def test_every_module_of_it_can_be_imported(site):
    # Those that a server runs import it, and read the command line or the environment when they do.
    # Two of them need torch, which is not in this environment: `make test-torch` imports them.
    of_torch = {"modelyard/engines/transformers_batch.py", "modelyard/engines/transformers_sampling.py"}
    files = expected_files() - of_torch
    modules = sorted(name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in files)
    script = (
        "import importlib, pathlib, sys\n"
        f"for name in {modules!r}:\n"
        "    found = importlib.import_module(name)\n"
        "    assert pathlib.Path(found.__file__).is_relative_to(sys.path[1]), found.__file__\n"
        "    print(name)\n"
    )
    assert from_wheel(site, script).split() == modules


def test_pytest_finds_its_fixtures_by_itself_where_it_is_installed(site, tmp_path):
    said = "def test_it(modelyard_client):\n    assert modelyard_client.chat('Hi') == 'Hi'\n"
    (tmp_path / "test_said.py").write_text(said)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", *WITHOUT_PLUGINS, tmp_path]
    assert "1 passed" in run_command(command, cwd=tmp_path, environ={**environ, "PYTHONPATH": str(site)})


def test_without_the_package_that_builds_it_these_tests_are_skipped_with_the_reason(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "build", None)
    with pytest.raises(pytest.skip.Exception, match="the package build is not installed"):
        build_wheel(tmp_path)
    assert not list(tmp_path.iterdir())
