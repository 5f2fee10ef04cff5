"""Runs commands of the command line in this process, with an environment of their own."""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from click.testing import CliRunner
from modelyard.cli import cli


def runner() -> CliRunner:
    """Return a runner that keeps standard error apart, which Click before 8.2 is to be told."""
    options = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
    return CliRunner(**options)


class Ran:
    """What a command printed, and how it ended."""

    def __init__(self, words: Sequence[str], environ: Mapping[str, str]) -> None:
        """Run ``modelyard WORDS``; of this process's MODELYARD variables it sees only those of ``environ``."""
        hidden: dict[str, str | None] = {name: None for name in os.environ if name.startswith("MODELYARD_")}
        result = runner().invoke(cli, [*words], prog_name="modelyard", env={**hidden, **environ})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        self.status = result.exit_code
        self.out = result.stdout
        self.err = result.stderr

    @property
    def said(self) -> str:
        """What was printed, without how long it took, which is told of what is slow."""
        return re.sub(r" \(\d+\.\d s\)$", "", self.out, flags=re.MULTILINE)

    @property
    def json(self) -> Any:
        """What was printed, which is JSON and nothing else."""
        return json.loads(self.out)

    @property
    def complaint(self) -> str:
        """The one line of standard error, without the program's name; AssertionError where it is not one."""
        assert self.err.count("\n") == 1, self.err
        assert self.err.startswith("modelyard: "), self.err
        return self.err.removeprefix("modelyard: ").strip()

    @property
    def table(self) -> list[dict[str, str]]:
        """The rows of the table that was printed first, by heading, cut where the headings stand."""
        head, *lines = self.out.split("\n\n")[0].splitlines()
        starts = [at for at, char in enumerate(head) if char != " " and (at == 0 or head[at - 1] == " ")]
        names = head.split()
        spans = list(zip(starts, [*starts[1:], None], strict=True))
        return [{n: line[a:b].strip() for n, (a, b) in zip(names, spans, strict=True)} for line in lines]


def modelyard(*words: object, **environ: str) -> Ran:
    """Run ``modelyard WORDS`` with these variables."""
    return Ran([str(word) for word in words], environ)
