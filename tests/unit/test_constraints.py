"""The oldest versions that are tested are those that the package accepts."""

from __future__ import annotations

import configparser

from packaging.requirements import Requirement
from packaging.version import Version
from running import ROOT

EXTRAS = ("server", "llama", "otel", "sql", "postgres", "mysql", "redis")


def test_what_is_tested_as_oldest_is_each_lower_bound() -> None:
    configuration = configparser.ConfigParser()
    configuration.read(ROOT / "setup.cfg")
    options = configuration["options.extras_require"]
    lines = [configuration["options"]["install_requires"], *(options[extra] for extra in EXTRAS)]
    wanted = [Requirement(line) for line in "\n".join(lines).splitlines() if line and not line.startswith("#")]
    pinned = [Requirement(line) for line in (ROOT / "tests" / "constraints-oldest.txt").read_text().splitlines()[1:]]
    oldest = {each.name: Version(str(each.specifier).removeprefix("==").removesuffix(".*")) for each in pinned}
    for each in wanted:
        assert oldest[each.name] == Version(str(each.specifier).removeprefix(">=")), each
