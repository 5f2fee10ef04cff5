"""``modelyard token``: make, list and revoke the tokens in a file that services read."""

from __future__ import annotations

import secrets
from pathlib import Path

import click

from ..access.tokens import (
    INFER,
    SCOPES,
    Token,
    add_to_file,
    digest_of,
    join_scopes,
    new_secret,
    parse,
    read_file,
    remove_from_file,
    with_implied,
)
from .failures import Misuse
from .options import json_option
from .tables import as_json, print_table

FILE_VARIABLE = "MODELYARD_TOKENS_FILE"

_file = click.option(
    "--file",
    "file",
    envvar=FILE_VARIABLE,
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="file with the tokens of a service",
)


@click.group("token")
def token() -> None:
    """Make, list and revoke tokens, which say what a caller of a service may do.

    Start a service with --tokens-file FILE; it reads the file again within about a second after a change.
    """


@token.command(short_help="Make a token, and show it once.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(SCOPES),
    help="what it allows; may be repeated  [infer]",
)
@click.option("--name", metavar="NAME", help="name to list and revoke it by; default: generated")
@_file
@json_option
def new(scopes: tuple[str, ...], name: str | None, file: Path | None, json_wanted: bool) -> None:
    """Make a token, print it, and add its hash to the file.

    \b
    modelyard token new --scope infer --name shop --file tokens
    modelyard token new --scope worker --scope infer --name gpu-1 --file tokens

    The scope infer is for asking models, worker for registering them with a controller, metrics for reading /metrics,
    admin for starting, stopping and changing models; admin includes the others. The token is shown this once and stored
    nowhere. Without --file, the line for a file (or for MODELYARD_TOKENS) is printed to standard error.
    """  # noqa: D301 - click's mark for lines that stay lines
    granted = with_implied(scopes or (INFER,))
    secret = new_secret()
    made = Token(name or f"{join_scopes(granted).replace('+', '-')}-{secrets.token_hex(3)}", granted, digest_of(secret))
    try:
        parse(made.line)
    except ValueError as error:
        raise Misuse(f"--name: {error}") from error
    if file is not None:
        add_to_file(file, made)
    if json_wanted:
        click.echo(as_json({**_plain(made), "token": secret, "file": str(file) if file else None}))
        return
    click.echo(secret)
    if file is not None:
        click.echo(
            f"modelyard: {made.name} ({join_scopes(granted)}) is in {file}; the token is not shown again", err=True
        )
    else:
        click.echo(f"modelyard: no --file, so nothing is stored; a service needs this line:\n{made.line}", err=True)


@token.command("list", short_help="List the tokens in a file.")
@_file
@json_option
def list_tokens(file: Path | None, json_wanted: bool) -> None:
    """List names, scopes and the first digits of the hashes. The tokens themselves are not in the file."""
    tokens = read_file(_required(file))
    if json_wanted:
        click.echo(as_json([_plain(entry) for entry in tokens]))
    elif not tokens:
        click.echo("the file has no tokens; make one: modelyard token new --file FILE")
    else:
        rows = [(entry.name, join_scopes(entry.scopes), entry.digest.hex()[:12]) for entry in tokens]
        print_table(("NAME", "SCOPES", "SHA256"), rows)


@token.command(short_help="Revoke a token.")
@click.argument("name")
@_file
@json_option
def revoke(name: str, file: Path | None, json_wanted: bool) -> None:
    """Remove the token NAME from the file. Services that read the file refuse it after about a second."""
    path = _required(file)
    remove_from_file(path, name)
    click.echo(as_json({"name": name, "revoked": True}) if json_wanted else f"{name} is revoked")


def _required(file: Path | None) -> Path:
    if file is None:
        raise Misuse(f"name the file: --file, or {FILE_VARIABLE}")
    return file


def _plain(token: Token) -> dict[str, object]:
    return {"name": token.name, "scopes": sorted(token.scopes), "sha256": token.digest.hex()}
