"""The pages on the command line and the configuration say what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import click
import configuration_tables
import pytest
from commands import modelyard
from configuration_tables import PAGE, placed, tables
from modelyard.cli import cli
from modelyard.settings.params import params_of
from modelyard.settings.settings import Settings

CLI_PAGE = PAGE.with_name("cli.md")


def commands(group: click.Group = cli, path: str = "modelyard") -> dict[str, click.Command]:
    """Return every command by the words that call it."""
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found |= commands(command, f"{path} {name}")
        else:
            found[f"{path} {name}"] = command
    return found


def test_the_tables_of_the_page_are_the_declarations():
    page = PAGE.read_text()
    hint = f"write them again: python {Path(configuration_tables.__file__).relative_to(PAGE.parents[1])}"
    assert page == placed(page), hint


def test_every_table_has_its_place_in_the_page():
    places = re.findall(r"<!-- table: (.+?) -->", PAGE.read_text())
    assert sorted(places) == sorted(tables())


@pytest.mark.parametrize("words", commands())
def test_every_command_is_on_the_page_with_its_options(words: str):
    page = CLI_PAGE.read_text()
    assert f"`{words}" in page
    for param in commands()[words].params:
        if isinstance(param, click.Option) and param.name not in params_of(Settings):  # those are on the other page
            assert f"`{param.opts[0]}" in page, param.opts[0]


@pytest.mark.parametrize("words", [*commands(), "modelyard", "modelyard models"])
def test_every_command_has_a_help_that_fits_a_terminal(words: str):
    ran = modelyard(*words.split()[1:], "--help", COLUMNS="80")
    assert ran.status == 0
    assert ran.out.startswith(f"Usage: {words} ")
    assert all(len(line) <= 80 for line in ran.out.splitlines())
    assert "\\b" not in ran.out


def test_examples_in_a_help_are_lines_of_their_own():
    assert "\n  modelyard serve\n" in modelyard("serve", "--help").out
    assert "\n  modelyard models start echo delay=0.1\n" in modelyard("models", "start", "--help").out


def test_every_command_can_print_json():
    without = {
        words for words, command in commands().items() if "--json" not in {o for p in command.params for o in p.opts}
    }
    assert without == {"modelyard serve", "modelyard completion"}
