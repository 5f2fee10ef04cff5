"""Our gateway with the choice of DB-GPT: any healthy instance at random, whatever its load.

For gunicorn: ``bench.random_choice:app``. Nothing else is different, so a request waits in the line of that instance.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from modelyard.cluster.registry.base import Instance
from modelyard.cluster.routing import Routes, Taken
from modelyard.server.extension import create_app


def take(routes: Routes, instances: Sequence[Instance], tried: Collection[str] = (), session: str = "") -> Taken:
    """Return a random usable instance; as the only one, so that the request waits in its line."""
    usable = [row for row in instances if row.url not in tried and not routes.why_not(row)]
    if not usable:
        return Taken(None, 0)
    taken = routes.random.choice(usable)
    routes.began(taken)
    return Taken(taken, 1)


Routes.take = take  # type: ignore[method-assign]
app = create_app()
