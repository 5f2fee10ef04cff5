"""The command: ``python -m bench [NAME ...] [--quick] [--tuned-peer | --no-peer] [--json FILE] [--list]``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TypeVar

from .client import LoadFailed
from .figures import FIGURES, GATEWAYS, Figure
from .gateways import Gateway
from .peer import TUNING, Peer, PeerMissing
from .places import RUN
from .plan import FULL, QUICK, Plan
from .processes import ServerFailed
from .report import Row, table
from .versions import versions

Installed = TypeVar("Installed", Peer, Gateway)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the chosen figures and print the table; return 1 if a figure could not be measured."""
    options = _parser().parse_args(arguments)
    if options.list:
        _print("\n".join(f"{figure.NAME:16} {figure.TITLE}" for figure in FIGURES))
        return 0
    figures = _chosen([*options.names, *filter(None, options.only.split(","))])
    # End through the context managers, which stop the servers.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    shutil.rmtree(RUN, ignore_errors=True)
    plan = QUICK if options.quick else FULL
    with_peer, with_gateways = set(figures) - set(GATEWAYS), set(figures) & set(GATEWAYS)
    plan = dataclasses.replace(
        plan,
        peer=_installed(Peer(tuned=options.tuned_peer)) if with_peer and not options.no_peer else None,
        gateways=tuple(filter(_installed, plan.gateways)) if with_gateways and not options.no_peer else (),
    )
    began = time.monotonic()
    rows, failures = _measure(figures, plan)
    used = versions(plan.peer) | dict(chain.from_iterable(one.versions().items() for one in plan.gateways))
    _print(_report(figures, rows, failures, used, time.monotonic() - began))
    if options.json:
        document = {"versions": used, "failures": failures, "rows": [dataclasses.asdict(row) for row in rows]}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="these figures, and those that begin with NAME-")
    parser.add_argument("--only", metavar="NAME,...", default="", help="the same, separated by commas")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: minutes, and noisier")
    peers = parser.add_mutually_exclusive_group()
    peers.add_argument(
        "--tuned-peer", action="store_true", help=f"give the peer {' and '.join(TUNING)}, beyond its own"
    )
    peers.add_argument("--no-peer", action="store_true", help="measure our side alone; ratios stay open")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows and versions there too")
    parser.add_argument("--list", action="store_true", help="name the figures and stop")
    return parser


def _chosen(wanted: Sequence[str]) -> list[Figure]:
    unknown = set(wanted) - {figure.NAME for figure in FIGURES}
    if unknown:
        raise SystemExit(f"no such figure: {', '.join(sorted(unknown))}; --list names them")
    groups = tuple(f"{name}-" for name in wanted)
    return [figure for figure in FIGURES if not wanted or figure.NAME in wanted or figure.NAME.startswith(groups)]


def _installed(peer: Installed) -> Installed | None:
    try:
        peer.install()
    except PeerMissing as error:
        _progress(f"{error}; the run continues without it")
        return None
    return peer


def _measure(figures: Sequence[Figure], plan: Plan) -> tuple[list[Row], dict[str, str]]:
    rows: list[Row] = []
    failures: dict[str, str] = {}
    for figure in figures:
        _progress(f"{figure.NAME}: {figure.TITLE}")
        try:
            for row in figure.measure(plan):
                rows.append(row)
                _progress(f"    {row.case}: {row.ours} | {row.peer} | {row.measured} | {row.target} | {row.verdict}")
        except (LoadFailed, ServerFailed) as error:
            failures[figure.NAME] = str(error)
            _progress(f"    not measured: {error}")
    return rows, failures


def _report(
    figures: Sequence[Figure], rows: Sequence[Row], failures: dict[str, str], used: dict[str, str], seconds: float
) -> str:
    parts = ["", table(rows), ""]
    missed = {row.figure for row in rows if row.met is False}
    parts += [f"{figure.NAME}: limited by {figure.LIMITS}" for figure in figures if figure.NAME in missed]
    parts += [f"{name}: not measured: {why}" for name, why in failures.items()]
    parts.append("versions: " + ", ".join(f"{name} {version}" for name, version in used.items()))
    parts.append(f"repeat: python -m bench {' '.join(sys.argv[1:])}".rstrip() + f"    ({seconds:.0f} s)")
    return "\n".join(parts)


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")


def _progress(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
