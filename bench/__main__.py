"""The command: ``python -m bench [--only NAME,...] [--quick] [--tuned-peer | --no-peer] [--json FILE] [--list]``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .client import LoadFailed
from .figures import FIGURES, Figure
from .peer import TUNING, Peer, PeerMissing
from .places import RUN
from .plan import FULL, QUICK, Plan
from .processes import ServerFailed
from .report import Row, table
from .versions import versions


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the chosen figures and print the table; return 1 if a figure could not be measured."""
    options = _parser().parse_args(arguments)
    if options.list:
        _print("\n".join(f"{figure.NAME:10} {figure.TITLE}" for figure in FIGURES))
        return 0
    figures = _chosen(options.only)
    # End through the context managers, which stop the servers.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    shutil.rmtree(RUN, ignore_errors=True)
    plan = dataclasses.replace(
        QUICK if options.quick else FULL, peer=None if options.no_peer else _installed(Peer(tuned=options.tuned_peer))
    )
    began = time.monotonic()
    rows, failures = _measure(figures, plan)
    used = versions(plan.peer)
    _print(_report(figures, rows, failures, used, time.monotonic() - began))
    if options.json:
        document = {"versions": used, "failures": failures, "rows": [dataclasses.asdict(row) for row in rows]}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", metavar="NAME,...", default="", help="these figures, not all")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: minutes, and noisier")
    peers = parser.add_mutually_exclusive_group()
    peers.add_argument(
        "--tuned-peer", action="store_true", help=f"give the peer {' and '.join(TUNING)}, beyond its own"
    )
    peers.add_argument("--no-peer", action="store_true", help="measure our side alone; ratios stay open")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows and versions there too")
    parser.add_argument("--list", action="store_true", help="name the figures and stop")
    return parser


def _chosen(only: str) -> list[Figure]:
    wanted = [name for name in only.split(",") if name]
    unknown = set(wanted) - {figure.NAME for figure in FIGURES}
    if unknown:
        raise SystemExit(f"no such figure: {', '.join(sorted(unknown))}; --list names them")
    return [figure for figure in FIGURES if not wanted or figure.NAME in wanted]


def _installed(peer: Peer) -> Peer | None:
    try:
        peer.install()
    except PeerMissing as error:
        _progress(f"{error}; the run continues without the peer")
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
