"""``modelyard key``: make, list and revoke API keys in the store that services read."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import click

from ..access.keys import LARGEST_LIMIT, Key, Limits, new_key, parse_expiry, shown_time
from ..access.tokens import INFER, SCOPES, check_name, digest_of, join_scopes, new_secret, with_implied
from ..cluster.keys import NO_STORE, key_store_url, open_key_store
from ..cluster.keys.base import KeyStore
from ..cluster.registry.address import masked
from ..errors import ConfigError
from ..files import state_folder
from ..settings.settings import Settings
from ..types import JSONObject
from .application import settings_with
from .failures import Misuse
from .options import given_settings, json_option, setting_options
from .tables import as_json, print_table

_STORE_SETTINGS = ("key_store", "registry", "config", "state_dir", "instance", "port")


def _with_store(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the settings that name the store of a service's keys, and call it with the store and its place."""

    @setting_options(*_STORE_SETTINGS)
    @functools.wraps(command)
    def run(**words: Any) -> None:
        options = {name: words.pop(name) for name in _STORE_SETTINGS}
        settings = settings_with(given_settings(options))
        with _store(settings) as store:
            command(store=store, place=masked(key_store_url(settings) or ""), **words)

    return run


@contextlib.contextmanager
def _store(settings: Settings) -> Iterator[KeyStore]:
    url = key_store_url(settings)
    if url is None:
        raise ConfigError("key_store none: there are no keys" if settings.key_store else NO_STORE)
    if url.startswith("memory:"):
        raise ConfigError("memory: is in one process, whose keys no other can make: set key_store to another store")
    if not (settings.key_store or settings.registry):
        try:
            state_folder(settings.state_path, settings.instance_name)
        except OSError as error:
            raise ConfigError(f"state_dir {settings.state_path}: {error.strerror}") from error
    store = open_key_store(url)
    try:
        yield store
    finally:
        store.close()


@click.group("key")
def key() -> None:
    """Make, list and revoke API keys: for people and applications, with models, an expiry and limits.

    They are in the store of a service's registry, or of --key-store, and hold for all processes that share it; services
    see a change within about two seconds. Give the options, the environment or the configuration file of the service.
    """


def _limit(flag: str, name: str, text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(flag, name, type=click.IntRange(1, LARGEST_LIMIT), metavar="N", help=text)


@key.command(short_help="Make a key, and show it once.")
@click.option("--name", required=True, metavar="NAME", help="name to list and revoke it by")
@click.option(
    "--scope", "scopes", multiple=True, type=click.Choice(SCOPES), help="what it allows; may be repeated  [infer]"
)
@click.option(
    "--model", "models", multiple=True, metavar="NAME", help="model that it may use, as in 'qwen*'; repeated; none: all"
)
@click.option("--expires", metavar="TIME", help="when it expires: 30d, 12h, or a date like 2027-01-31")
@_limit("--requests-per-minute", "requests", "requests a minute, over all processes")
@_limit("--tokens-per-minute", "tokens", "tokens a minute, of prompts and answers")
@_limit("--parallel", "parallel", "requests at once")
@json_option
@_with_store
def new(
    store: KeyStore,
    *,
    place: str,
    name: str,
    scopes: tuple[str, ...],
    models: tuple[str, ...],
    expires: str | None,
    json_wanted: bool,
    **limits: int | None,
) -> None:
    """Make a key, print its secret, and add its hash to the store.

    \b
    modelyard key new --name ci --expires 30d
    modelyard key new --name shop --model small --model 'qwen*' --parallel 8

    As soon as there is a key, a service answers only requests that send one, or a token. The secret is shown this once
    and stored nowhere.
    """  # noqa: D301 - click's mark for lines that stay lines
    secret = new_secret()
    try:
        moment = parse_expiry(expires, time.time()) if expires else None
        granted = with_implied(scopes or (INFER,))
        made = new_key(name, digest_of(secret), granted, models, expires=moment, limits=Limits(**limits))
    except ValueError as error:
        raise Misuse(str(error)) from error
    store.add(made)
    if json_wanted:
        click.echo(as_json({**_plain(made), "key": secret}))
        return
    click.echo(secret)
    click.echo(f"modelyard: {made.name} ({made.id}) is in {place}; the key is not shown again", err=True)


@key.command("list", short_help="List the keys.")
@click.option("--all", "every", is_flag=True, help="revoked keys too")
@json_option
@_with_store
def list_keys(store: KeyStore, *, place: str, every: bool, json_wanted: bool) -> None:
    """List ids, names, scopes, models, expiry and limits. The secrets are not in the store."""
    keys = [entry for entry in store.all() if every or entry.revoked is None]
    if json_wanted:
        click.echo(as_json([_plain(entry) for entry in keys]))
    elif not keys:
        click.echo(f"there are no keys in {place}; make one: modelyard key new --name NAME")
    else:
        print_table(_HEADINGS, [_row(entry) for entry in keys])


@key.command(short_help="Revoke a key.")
@click.argument("name", metavar="ID|NAME")
@click.option("--forget", is_flag=True, help="keep nothing of it; without any key a service is open as before")
@json_option
@_with_store
def revoke(store: KeyStore, *, place: str, name: str, forget: bool, json_wanted: bool) -> None:
    """Revoke the key of an id or a name. Services refuse it after about two seconds.

    A revoked key stays in the list of --all, and a service still requires a key when all are revoked.
    """
    try:
        check_name(name)
    except ValueError as error:
        raise Misuse(f"{name!r}: {error}") from error
    gone = store.revoke(name, forget=forget)
    outcome = "forgotten" if forget else "revoked"
    document = {"id": gone.id, "name": gone.name, outcome: True}
    click.echo(as_json(document) if json_wanted else f"{gone.name} ({gone.id}) is {outcome} in {place}")


_HEADINGS = ("ID", "NAME", "SCOPES", "MODELS", "EXPIRES", "REQUESTS/MIN", "TOKENS/MIN", "PARALLEL", "STATE")


def _row(entry: Key) -> tuple[object, ...]:
    limits = entry.limits
    state = entry.state(time.time())
    return (
        entry.id,
        entry.name,
        join_scopes(entry.scopes),
        ",".join(entry.models) or None,
        shown_time(entry.expires),
        limits.requests,
        limits.tokens,
        limits.parallel,
        None if state == "valid" else state,
    )


def _plain(entry: Key) -> JSONObject:
    return {
        "id": entry.id,
        "name": entry.name,
        "state": entry.state(time.time()),
        "scopes": sorted(entry.scopes),
        "models": list(entry.models),
        "created": shown_time(entry.created),
        "expires": shown_time(entry.expires),
        "revoked": shown_time(entry.revoked),
        "requests_per_minute": entry.limits.requests,
        "tokens_per_minute": entry.limits.tokens,
        "parallel": entry.limits.parallel,
    }
