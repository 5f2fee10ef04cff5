"""The checks of `modelyard doctor` on a running service, and on the instances that it knows. Nothing is changed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from itertools import pairwise

from ..client.client import Client
from ..cluster.registry.base import MANAGER_KEY
from ..errors import ConfigError, Forbidden, ModelyardError, Unauthorized, WorkerLost, WorkerUnreachable
from ..sessions.address import parse_address
from ..sessions.session import Session
from ..telemetry import metrics
from ..types import JSONObject
from ..version import __version__
from .findings import Finding
from .readings import Reading, read

PROBE_TIMEOUT = 3.0
"""Seconds in which an address has to answer."""
CLOCK_LIMIT = 5.0
"""Seconds by which clocks may differ; the header Date has whole seconds."""
STREAM_TOKENS = 48
"""Tokens of the answer by which buffering is looked for."""
MEASURABLE = 0.3
"""Seconds that this answer has to take: what comes faster tells nothing."""
HELD = 0.8
"""The part of an answer's time after which its pieces come late, if all came after it."""
LUMP = 0.001
"""Seconds within which pieces come together."""
IN_LUMPS = 0.9
"""The part of the pieces that come together with the one before where a buffer is passed on when it is full."""


@dataclass(frozen=True)
class Visit:
    """A running service, as this machine sees it."""

    client: Client
    reading: Reading
    probes: Mapping[str, Probe]
    """The answers of the addresses that are registered there."""

    @classmethod
    def to(cls, client: Client) -> Visit:
        """Read the service, and call each address that is registered there. Raises the errors of `Client.status`."""
        reading = read(client)
        urls = {str(row["url"]) for row in reading.instances or () if row["healthy"]}
        with closing(Session(PROBE_TIMEOUT, PROBE_TIMEOUT)) as session:
            probes = {url: _probe(session, url) for url in sorted({client.url, *urls})}
        return cls(client, reading, probes)


@dataclass(frozen=True)
class Probe:
    """What one address says to everybody: no token is sent to it."""

    error: str | None
    clock: float | None = None
    """Seconds by which its clock is ahead of this machine's; None where it has not said its time."""
    version: str | None = None
    """Its version of modelyard; None where it is not modelyard."""


def _probe(session: Session, url: str) -> Probe:
    before = time.time()
    try:
        with session.request("GET", f"{url}/health", reuse=False) as response:
            status, date = response.status_code, response.headers.get("Date")
        after = time.time()
        if status != HTTPStatus.OK:
            return Probe(f"it answers with status {status}")
        return Probe(None, _ahead(date, before, after), _version_of(session, url))
    except (WorkerUnreachable, ValueError) as error:
        return Probe(str(error))


def _ahead(date: str | None, before: float, after: float) -> float | None:
    """Return by how many seconds a clock is ahead that has made ``date`` between two times of this machine's clock."""
    try:
        second = parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return None
    # A Date is cut to whole seconds.
    return second - after if second > after else min(0.0, second + 1 - before)


def _version_of(session: Session, url: str) -> str | None:
    for base in parse_address(url).parents():  # the document is at the root, or below the prefix of an application
        with session.request("GET", f"{base}/openapi.json", reuse=False) as response:
            if response.status_code == HTTPStatus.OK:
                info = response.json().get("info", {})
                return str(info["version"]) if info.get("title") == "modelyard" else None
    return None


def check_service(visit: Visit) -> Iterator[Finding]:
    """Report a service that is not ready, models that failed, and changes that it does not remember."""
    status, url = visit.reading.status, visit.client.url
    if status["ready"]:
        yield Finding.ok("service", f"{url} is ready; models: {len(status['models'])}")
    else:
        advice = "wait while models start; else see its log, and modelyard models list"
        yield Finding.warning("service", f"{url} is not ready ({status.get('state')}): {status.get('reason')}", advice)
    for model in status["models"]:
        if model["state"] == "failed":
            advice = "see the log of the service; modelyard models start starts it again, and a gateway tries by itself"
            yield Finding.failure("service", f"model {model['model']}: {model.get('reason')}", advice)
    if status.get("unsaved"):
        result = f"changes are not remembered: {status['unsaved']}"
        yield Finding.warning("service", result, "let its user write the state folder")


def check_token(visit: Visit) -> Iterator[Finding]:
    """Report calls that the token, or this address, may not make."""
    refused = []
    for call, ask in (("models", visit.client.supported_models), ("instances", visit.client.instances)):
        try:
            ask()
        except (Unauthorized, Forbidden) as error:
            refused.append(f"{call}: {error}")
        except ModelyardError:
            continue  # it has no such call, or another check has it
    if refused:
        advice = "give a token or key: MODELYARD_TOKEN, or --token-file FILE (modelyard token new, modelyard key new)"
        yield Finding.failure("token", "; ".join(refused), advice)
    elif isinstance(visit.reading.error, ConfigError):
        yield Finding.ok("token", "models and instances can be read; metrics are off")
    elif visit.reading.error is not None:
        advice = "for modelyard top and Prometheus, give a token with the scope metrics"
        yield Finding.warning("token", f"metrics: {visit.reading.error}", advice)
    else:
        yield Finding.ok("token", "models, instances and metrics can be read")


def check_versions(visit: Visit) -> Iterator[Finding]:
    """Report other versions of modelyard, at the service and at its instances."""
    versions = {url: probe.version for url, probe in visit.probes.items() if probe.version is not None}
    others = {url: version for url, version in versions.items() if version != __version__}
    if others:
        each = ", ".join(f"{version} at {url}" for url, version in others.items())
        advice = "bring all to one version: the controller first, then workers, then gateways"
        yield Finding.warning("versions", f"{__version__} here, {each}", advice)
    elif versions:
        yield Finding.ok("versions", f"{__version__} here and at {len(versions)} of {len(visit.probes)} addresses")


def check_clocks(visit: Visit) -> Iterator[Finding]:
    """Report clocks that differ from this machine's: keys end by them, and logs are put in order by them."""
    clocks = {url: probe.clock for url, probe in visit.probes.items() if probe.clock is not None}
    wrong = {url: ahead for url, ahead in clocks.items() if abs(ahead) > CLOCK_LIMIT}
    for url, ahead in wrong.items():
        way = "ahead of" if ahead > 0 else "behind"
        yield Finding.warning("clocks", f"{url} is {abs(ahead):.0f} s {way} this machine", "let both follow NTP")
    if clocks and not wrong:
        yield Finding.ok("clocks", f"the same as here at {len(clocks)} of {len(visit.probes)} addresses")


def check_registry_of_service(visit: Visit) -> Iterator[Finding]:
    """Report a registry that the service does not reach, and instances that have gone silent."""
    cluster = visit.reading.status.get("cluster")
    if cluster is None:
        return
    if cluster.get("error"):
        advice = "start the registry, or correct registry and the token of the service"
        yield Finding.failure("its registry", str(cluster["error"]), advice)
    rows = visit.reading.instances or ()
    silent = [row for row in rows if not row["healthy"] and row.get("enabled", True)]
    for row in silent:
        advice = "start it, or forget it: it is removed after a day"
        yield Finding.warning("its registry", f"{row['key']} at {row['url']}: {_last_seen(row)}", advice)
    if not cluster.get("error") and not silent:
        number = sum(row["key"] != MANAGER_KEY for row in rows)
        result = "reached" if visit.reading.instances is None else f"reached; instances of models: {number}"
        yield Finding.ok("its registry", result)


def _last_seen(row: JSONObject) -> str:
    if not row.get("last_heartbeat"):
        return "no heartbeat"
    seconds = (datetime.now(UTC) - datetime.fromisoformat(str(row["last_heartbeat"]))).total_seconds()
    return f"deregistered, or no heartbeat for {seconds:.0f} s"


def check_addresses(visit: Visit) -> Iterator[Finding]:
    """Report registered addresses that do not answer here, and instances that the service itself does not reach."""
    registered = {url: probe for url, probe in visit.probes.items() if url != visit.client.url}
    errors = {url: probe.error for url, probe in registered.items() if probe.error is not None}
    keys = Counter(str(row["url"]) for row in visit.reading.instances or ())
    for url, error in errors.items():
        result = f"{url} (rows in the registry: {keys[url]}) does not answer here: {error}"
        advice = "set advertise there to an address that other machines reach, or open its port"
        yield Finding.failure("addresses", result, advice)
    failing = visit.reading.sums.get(f"{metrics.INSTANCES.name} failing", {})
    for (model, kind), number in failing.items():
        advice = "see the log of the service; it tries them again by itself"
        result = f"instances of {model}@{kind} that the service does not reach: {number:.0f}"
        yield Finding.failure("addresses", result, advice)
    if registered and not errors and not any(failing.values()):
        yield Finding.ok("addresses", f"registered addresses that answer here: {len(registered)}")


@dataclass(frozen=True)
class Arrival:
    """When the pieces of a streamed answer came, in seconds after the request."""

    pieces: list[float]
    """Of each piece; those that came in one go have nearly the same."""
    end: float
    first_at_engine: float | None = None
    """When the first piece was there in the engine; None where the engine does not measure it."""

    @property
    def is_held(self) -> bool:
        """Whether something has kept the pieces together, until the end or until a buffer was full."""
        first = self.first_at_engine or 0.0
        if self.end - first < MEASURABLE or len(self.pieces) < 2:
            return False
        joined = sum(later - earlier < LUMP for earlier, later in pairwise(self.pieces))
        is_late = self.pieces[0] - first > HELD * (self.end - first)
        return is_late or joined > IN_LUMPS * len(self.pieces)


def check_stream(visit: Visit) -> Iterator[Finding]:
    """Report a proxy that buffers: a real answer is streamed through the address, and its pieces are timed."""
    ready = [model["model"] for model in visit.reading.status["models"] if model["state"] == "ready"]
    names = sorted(key.removesuffix("@llm") for key in ready if key.endswith("@llm"))
    if not names:
        return
    try:
        arrival = measure(visit.client, names[0])
    except (Unauthorized, Forbidden) as error:
        yield Finding.failure("stream", str(error), "give a token or key with the scope infer")
        return
    except (WorkerLost, WorkerUnreachable) as error:
        advice = "see the logs of the proxy and of the service; in nginx, proxy_read_timeout cuts silent answers off"
        yield Finding.failure("stream", f"an answer of {names[0]} broke off: {error}", advice)
        return
    except ModelyardError as error:
        advice = "see the log of the service, or of the server that computes the model"
        yield Finding.failure("stream", f"{names[0]} does not answer: {error}", advice)
        return
    yield _judged(arrival, names[0])


def _judged(arrival: Arrival, model: str) -> Finding:
    if not arrival.pieces:
        return Finding.ok("stream", f"{model} has nothing to say: nothing can be timed")
    times = f"the first after {arrival.pieces[0]:.2f} s, the last after {arrival.end:.2f} s"
    result = f"{len(arrival.pieces)} pieces of {model}, {times}"
    advice = "in nginx, set proxy_http_version 1.1 and remove proxy_ignore_headers X-Accel-Buffering; see deploy/nginx"
    if arrival.is_held and arrival.first_at_engine is None:
        return Finding.warning("stream", f"{result}: something buffers, or the model is slow to begin", advice)
    if arrival.is_held:
        made = f"the engine had it after {arrival.first_at_engine:.2f} s"
        return Finding.failure("stream", f"{result}: something on the way buffers, as {made}", advice)
    if arrival.end < MEASURABLE:
        return Finding.ok("stream", f"{result}: too fast to see whether something buffers")
    return Finding.ok("stream", f"{result}: nothing buffers")


def measure(client: Client, model: str) -> Arrival:
    """Stream a short answer of ``model``, and time its pieces. Raises the errors of `Client.stream`."""
    began = time.monotonic()
    pieces = []
    with client.stream("Count from one to twenty.", model=model, max_new_tokens=STREAM_TOKENS, metrics=True) as stream:
        for _ in stream:
            pieces.append(time.monotonic() - began)
        times = stream.output.metrics or {}
    end = time.monotonic() - began
    first, last = times.get("first_token_time_ms"), times.get("end_time_ms")
    if not first or not last:
        return Arrival(pieces, end)
    # By the engine's own clock, which need not be that of this machine: its end is the end here.
    return Arrival(pieces, end, max(0.0, end - (last - first) / 1000))
