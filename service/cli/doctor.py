"""``modelyard doctor``: what is wrong with a configuration, this machine and a running service, and what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from ipaddress import ip_address
from itertools import chain
from typing import Any
from urllib.parse import quote

import click

from ..access.token_store import OutgoingToken
from ..client.client import Client
from ..errors import ConfigError, ModelyardError
from ..sessions.address import URL_VARIABLE
from ..settings.settings import ROLES, Settings
from . import config_checks, service_checks
from .application import current_application
from .connected import READ_TIMEOUT
from .examine import Examination, examine
from .findings import Finding, Level, worst
from .machine import Machine
from .options import SettingCommand, given_settings, service_options
from .tables import as_json, print_table

STATUSES = {Level.OK: 0, Level.WARNING: 3, Level.FAILURE: 1}
"""The exit status by the worst finding; 2 is that of a command that was called wrongly."""
TIMEOUT = 2 * READ_TIMEOUT
"""Seconds of silence that the service is given: an answer may wait in line."""


@click.command(cls=SettingCommand)
@click.argument("role", required=False, type=click.Choice(ROLES))
@service_options
@click.option(
    "--url",
    envvar=URL_VARIABLE,
    metavar="URL",
    help="the running service  [default: the address of the configuration]",
)
@click.option("--json", "json_wanted", is_flag=True, help="print one JSON object, and nothing else")
def doctor(
    role: str | None,
    model: tuple[str, ...],
    overrides: tuple[str, ...],
    *,
    url: str | None,
    json_wanted: bool,
    **options: Any,
) -> None:
    """Check a configuration, this machine and a running service; say what each finding means, and what to do.

    Takes the options of modelyard serve, and changes nothing. If a service runs at --url, or at the address of the
    configuration, it is checked too: an answer of 48 tokens is streamed through that address, and the registered
    addresses are called. Exit status 1 after a failure, 3 after a warning.
    """
    given = given_settings(options, model, role)
    report = examine(given, overrides, os.environ, application=current_application())
    findings = list(chain(_of_configuration(report, Machine.current()), _of_service(report, url)))
    level = worst(findings)
    if json_wanted:
        click.echo(as_json({"worst": level, "findings": [asdict(finding) for finding in findings]}))
    else:
        lines = [(it.check, it.level, it.result, it.advice) for it in findings]
        print_table(("CHECK", "LEVEL", "RESULT", "WHAT TO DO"), lines)
    if level is not Level.OK:
        raise click.exceptions.Exit(STATUSES[level])


def _of_configuration(report: Examination, machine: Machine) -> Iterator[Finding]:
    yield from config_checks.check_configuration(report)
    yield from config_checks.check_access(report)
    yield from config_checks.check_libraries(report)
    yield from config_checks.check_folders(report)
    yield from config_checks.check_memory(report, machine)
    yield from config_checks.check_threads(report)
    yield from config_checks.check_tasks(report, machine)
    yield from config_checks.check_files(report, machine)
    yield from config_checks.check_proxies(report, machine)
    yield from config_checks.check_address(report)
    yield from config_checks.check_registry(report)


def _of_service(report: Examination, url: str | None) -> Iterator[Finding]:
    settings = report.settings
    address = url or _address_of(settings)
    try:
        token = OutgoingToken(settings.token, settings.token_file)()
        client = Client(address, token=token or "", read_timeout=TIMEOUT, ca=settings.remote_ca, retries=0)
    except ConfigError as error:
        yield Finding.failure("service", str(error), "correct --url, token or token_file")
        return
    with client:
        try:
            visit = service_checks.Visit.to(client)
        except ModelyardError as error:
            if url is None:
                yield Finding.ok("service", f"{error}: only the configuration was checked")
            else:
                yield Finding.failure("service", str(error), "start it, or correct --url")
            return
        yield from service_checks.check_service(visit)
        yield from service_checks.check_token(visit)
        yield from service_checks.check_versions(visit)
        yield from service_checks.check_registry_of_service(visit)
        yield from service_checks.check_addresses(visit)
        yield from service_checks.check_clocks(visit)
        yield from service_checks.check_stream(visit)


def _address_of(settings: Settings) -> str:
    """Return the address of the service of a configuration, for this machine."""
    application = current_application()
    if application is not None:
        return application.url
    if settings.host.startswith("unix:"):
        return f"http+unix://{quote(settings.host.removeprefix('unix:'), safe='')}{settings.prefix}"
    try:
        is_every_address = ip_address(settings.bind_host).is_unspecified
    except ValueError:  # a name
        is_every_address = False
    host = f"localhost:{settings.port}" if is_every_address else settings.address
    return f"http://{host}{settings.prefix}"
