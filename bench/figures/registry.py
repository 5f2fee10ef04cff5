"""The registry over its stores: lookups of one key of a thousand, heartbeats a second, and the cost by size."""

from __future__ import annotations

from collections.abc import Iterator

from .. import stores
from ..beating import Done, Task, run
from ..plan import Plan
from ..report import Row, at_most, count, milliseconds
from ..stores import Store

NAME = "registry"
TITLE = "the registry: lookups and heartbeats with 1,000 instances, and the cost from 10 to 10,000"
LIMITS = "the store's own round trip"

ROWS = 1000
BOUND = 5.0
"""Milliseconds that a lookup may take."""
PROCESSES = 2
TOGETHER = 50
SIZES = (10, 100, 1000, 10_000)
GROWTH = (("lookup of one key", "lookup"), ("list of all", "list"), ("one beat", "beat"))


def measure(plan: Plan) -> Iterator[Row]:
    """Yield rows for each store; a store that is not installed has one row with the reason."""
    for name in stores.NAMES:
        try:
            with stores.opened(name) as store:
                yield from _thousand(store, plan.seconds)
            with stores.opened(name) as store:
                yield from _growth(store, plan.seconds / 2)
        except stores.StoreMissing as error:
            yield Row(NAME, name, f"left out: {error}")


def _thousand(store: Store, seconds: float) -> Iterator[Row]:
    share = ROWS // PROCESSES
    parts = [(number * share, (number + 1) * share) for number in range(PROCESSES)]
    run(*(Task(url=store.url, rows=part, do="fill") for part in parts))
    times = run(Task(url=store.url, total=ROWS, do="lookup", seconds=seconds))[0].times
    row = Row(NAME, f"{store.name}: lookup, p99", f"{milliseconds(times.p99)}, p50 {milliseconds(times.p50)}")
    yield at_most(row, times.p99 * 1000, BOUND, "ms")
    speeds = []
    for together in (1, TOGETHER):
        done = run(*(Task(url=store.url, rows=part, do="beat", together=together, seconds=seconds) for part in parts))
        speeds.append(f"{count(sum(part.calls * together / part.seconds for part in done))}/s{_worst(done)}")
    yield Row(NAME, f"{store.name}: beats of {PROCESSES} processes, one a call; {TOGETHER} a call", "; ".join(speeds))


def _worst(done: list[Done]) -> str:
    return f" (p99 of a call {milliseconds(max(part.times.p99 for part in done))})"


def _growth(store: Store, seconds: float) -> Iterator[Row]:
    times: dict[str, list[str]] = {case: [] for case, _ in GROWTH}
    filled = 0
    for size in SIZES:
        run(Task(url=store.url, rows=(filled, size), do="fill"))
        filled = size
        for case, do in GROWTH:
            # A task that beats registers its instance first.
            task = Task(url=store.url, rows=(0, 1) if do == "beat" else (0, 0), total=size, do=do, seconds=seconds)
            times[case].append(f"{run(task)[0].times.p50 * 1000:.3g}")
    for case, values in times.items():
        sizes = " / ".join(f"{size:,}" for size in SIZES)
        yield Row(NAME, f"{store.name}: {case}, p50 with {sizes}", f"{' / '.join(values)} ms")
