"""Our gateway with another way to choose: any healthy instance at random, whatever it has to do, as DB-GPT chooses.

For gunicorn: ``bench.random_choice:app``. Nothing else is different, so a request waits in the line that it meets.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from modelyard.cluster.registry.base import Instance
from modelyard.cluster.routing import Routes, Taken
from modelyard.server.extension import create_app


def take(routes: Routes, instances: Sequence[Instance], tried: Collection[str] = ()) -> Taken:
    """Return a random one that may be used; as the only one, so that the request stands in its line."""
    fit = [one for one in instances if one.url not in tried and not routes.why_not(one)]
    if not fit:
        return Taken(None, 0)
    taken = routes.random.choice(fit)
    routes.began(taken)
    return Taken(taken, 1)


Routes.take = take  # type: ignore[method-assign]
app = create_app()
