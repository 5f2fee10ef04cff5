"""The share of the rate that a key with limits costs, against a token: the shortest chat, by the store of the keys."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

from modelyard.access.keys import Limits, new_key
from modelyard.access.tokens import INFER, Token, digest_of, new_secret
from modelyard.cluster.keys import open_key_store

from .. import ours, stores
from ..client import LoadFailed, run
from ..jobs import Job, Outcome
from ..models import FAST
from ..plan import Plan
from ..processes import Server
from ..report import Row, at_least, count, of_clients
from ..rounds import all_in_turns

NAME = "keys"
TITLE = "a key with limits beside a token: chats of 8 pieces, in one process"
LIMITS = "six headers more in each answer are most of it; a store is called some ten times a second"

CLIENTS = 8
SHARE = 0.9
LIMITS_OF_KEY = Limits(requests=10_000_000, tokens=1_000_000_000, parallel=64)
CHAT = {"model": FAST.name, "messages": [{"role": "user", "content": "How are you?"}], "max_tokens": 8}


def measure(plan: Plan) -> Iterator[Row]:
    """Yield a row for the rate and one for the CPU, with each store."""
    for name in (stores.SQLITE, "Redis"):
        try:
            with stores.opened(name) as store:
                yield from _rows(plan, store)
        except stores.StoreMissing as error:
            yield Row(NAME, name, "", measured=str(error))


def _rows(plan: Plan, store: stores.Store) -> Iterator[Row]:
    secrets = {"token": new_secret(), "key": new_secret()}
    scopes = frozenset({INFER})
    keys = open_key_store(store.url)
    keys.add(new_key("bench", digest_of(secrets["key"]), scopes, limits=LIMITS_OF_KEY))
    keys.close()
    token = Token("bench", scopes, digest_of(secrets["token"])).line
    with ours.serving([FAST], key_store=store.url, tokens=token) as server:
        sides = {name: _loaded(server, secret, plan.seconds) for name, secret in secrets.items()}
        rounds = all_in_turns(plan.rounds, sides)
    rates = {name: [outcome.per_second for outcome, _ in results] for name, results in rounds.items()}
    costs = {name: [1 / seconds for _, seconds in results] for name, results in rounds.items()}
    for case, values, unit in (("rate", rates, "/s"), ("answers for a second of CPU", costs, "")):
        key, plain = (f"{count(statistics.median(values[name]))}{unit}" for name in ("key", "token"))
        ratio = statistics.median(one / other for one, other in zip(values["key"], values["token"], strict=True))
        row = Row(NAME, f"{store.name}, {case}, {of_clients(CLIENTS)}", key, f"{plain} (token)")
        yield at_least(row, ratio, SHARE)


def _loaded(server: Server, secret: str, seconds: float) -> Callable[[], tuple[Outcome, float]]:
    """Return a function that runs the load with a secret, and returns the CPU of an answer too. Raises LoadFailed."""
    job = Job(
        port=server.port,
        path="/v1/chat/completions",
        body=CHAT,
        headers={"Authorization": f"Bearer {secret}"},
        connections=CLIENTS,
        seconds=seconds,
    )

    def measure() -> tuple[Outcome, float]:
        before = server.cpu()
        outcome = run(job)
        if outcome.failed or outcome.refused or not outcome.ok:
            raise LoadFailed(f"{job.path}: {outcome.ok} answers, {outcome.failed} failed, {outcome.refused} refused")
        return outcome, (server.cpu() - before) / outcome.ok

    return measure
