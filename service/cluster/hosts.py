"""What is done to whole hosts of a cluster: models started and stopped there, parameters, catalogues.

A host is a worker service; it has registered its manager as `MANAGER_KEY`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from ..errors import Forbidden, InvalidRequest, ModelyardError, NotReady, Unauthorized, UnknownModel
from ..sessions.transport import Transport
from ..types import ApplyOutcome, HostModels, JSONObject, WorkerType, split_worker_key
from ..worker.manager import LocalWorkerManager
from ..worker.outcomes import in_parallel, merged
from ..worker.protocol import EVERY_MODEL
from .registry.base import MANAGER_KEY, Instance, place_of
from .remote_model import RemoteHost
from .view import RegistryView

log = logging.getLogger(__name__)
T = TypeVar("T")


@contextmanager
def _refusals_of(url: str) -> Iterator[None]:
    """Say whom a host refuses: this process, by its own token; the client's was good enough here."""
    try:
        yield
    except (Unauthorized, Forbidden) as error:
        raise Forbidden(f"{url} refuses this router, not its client: {error}") from error


class Hosts:
    """The worker services that a registry shows, and this process, if it holds models."""

    def __init__(
        self,
        view: RegistryView,
        transport: Transport,
        local: LocalWorkerManager | None,
        own_url: Callable[[], str],
    ) -> None:
        """Find hosts in ``view``; the one at ``own_url`` is ``local``."""
        self._view = view
        self._transport = transport
        self._local = local
        self._own_url = own_url

    def model_startup(
        self,
        model: str,
        worker_type: WorkerType | None,
        params: Mapping[str, Any],
        *,
        host: str | None,
        port: int | None,
    ) -> None:
        """Start a model on a host."""
        if self._local is None or host or port:
            self._view.refresh_now()
        urls = self._managers()
        if not urls:
            raise NotReady(f"no host is there that could start model {model!r}: no worker service is registered")
        url = self._chosen(urls, host, port)
        if url == self._own_url() and self._local is not None:
            self._local.model_startup(model, worker_type, params)
        else:
            with _refusals_of(url):
                self._at(url).startup(model, worker_type or self._type_of(model, params), params)

    def model_shutdown(self, model: str, worker_type: WorkerType | None, *, host: str | None, port: int | None) -> None:
        """Stop a model on a host and forget it there."""
        self._view.refresh_now()
        urls = self._having(model, worker_type)
        if not urls:
            raise self._unknown(model, worker_type)
        url = self._chosen(urls, host, port)
        if url == self._own_url() and self._local is not None:
            self._local.model_shutdown(model, worker_type)
        else:
            with _refusals_of(url):
                self._at(url).shutdown(model, worker_type or self._type_of(model, {}))

    def worker_apply(
        self, model: str, apply_type: str, worker_type: WorkerType | None, params: Mapping[str, Any]
    ) -> ApplyOutcome:
        """Do something to all instances of a name, on all hosts at once; a host that does not know it is left out."""
        self._view.refresh_now()
        urls = self._managers() if model == EVERY_MODEL else self._having(model, worker_type)
        unknown: list[UnknownModel] = []
        invalid: list[InvalidRequest] = []

        def apply(url: str) -> str:
            try:
                outcome = self._apply_at(url, model, apply_type, worker_type, params)
            except UnknownModel as error:
                unknown.append(error)
                raise
            except InvalidRequest as error:
                invalid.append(error)
                raise
            if not outcome.success:
                raise _Failed(outcome.message)
            return outcome.message

        outcomes = in_parallel(urls, apply, lambda url: url)
        if invalid:
            raise invalid[0]
        if len(unknown) == len(urls):
            raise unknown[0] if unknown else self._unknown(model, worker_type)
        said = [(url, outcome) for url, outcome in zip(urls, outcomes, strict=True)]
        several = len(said) > 1
        return merged(
            [
                ApplyOutcome(f"{url}: {o.message}" if several else o.message, o.success, o.timecost)
                for url, o in said
                if o.message not in {str(error) for error in unknown}
            ]
        )

    def _apply_at(
        self, url: str, model: str, apply_type: str, worker_type: WorkerType | None, params: Mapping[str, Any]
    ) -> ApplyOutcome:
        if url == self._own_url() and self._local is not None:
            return self._local.worker_apply(model, apply_type, worker_type, params)
        return self._at(url).apply(model, apply_type, worker_type, params)

    def parameter_descriptions(self, model: str, worker_type: WorkerType | None) -> list[JSONObject]:
        """Return the parameters of a model: of one that runs, or as some host's catalogue has it."""
        self._view.refresh_now()
        failures: list[ModelyardError] = []
        having = self._having(model, worker_type)
        for url in dict.fromkeys([*having, *self._managers()]):
            try:
                if url == self._own_url() and self._local is not None:
                    return self._local.parameter_descriptions(model, worker_type)
                return self._at(url).parameter_descriptions(model, worker_type)
            except UnknownModel as error:
                failures.append(error)
            except ModelyardError as error:
                # A host of DB-GPT fails without a word where it does not know the model.
                failures.insert(0 if url in having else len(failures), error)
        raise failures[0] if failures else self._unknown(model, worker_type)

    def supported_models(self) -> list[HostModels]:
        """Return the models that may run on each host; one that does not answer has none, and says why."""
        self._view.refresh_now()
        urls = self._managers()
        found: dict[str, list[HostModels]] = {}

        def ask(url: str) -> str:
            if url == self._own_url() and self._local is not None:
                found[url] = self._local.supported_models()
            else:
                found[url] = [HostModels(*one) for one in self._at(url).supported_models()]
            return ""

        outcomes = in_parallel(urls, ask, lambda url: url)
        for url, outcome in zip(urls, outcomes, strict=True):
            if not outcome.success:
                log.warning("%s does not say which models it supports: %s", url, outcome.message)
                found[url] = [HostModels(*place_of(url), [], f"{url}: {outcome.message}")]
        return [one for url in urls for one in found[url]]

    # Who is there

    def _at(self, url: str) -> RemoteHost:
        return RemoteHost(url, self._transport)

    def _managers(self) -> list[str]:
        """Return the addresses of the hosts that are healthy, this process first."""
        own = [self._own_url()] if self._local is not None else []
        return list(dict.fromkeys([*own, *(one.url for one in self._view.instances(MANAGER_KEY) if one.healthy)]))

    def _having(self, model: str, worker_type: WorkerType | None) -> list[str]:
        """Return the addresses of the hosts that have a model: also where it is stopped, if the host is there."""
        there = set(self._managers())
        own = [self._own_url()] if self._local is not None and self._local.models.has(model, worker_type) else []
        rows = [one for one in self._view.all() if _is_named(one, model, worker_type)]
        return list(dict.fromkeys([*own, *(one.url for one in rows if one.healthy or one.url in there)]))

    def _type_of(self, model: str, params: Mapping[str, Any]) -> WorkerType | None:
        """Return the type of a model of which none was said, as hosts of DB-GPT want one; None where it is not clear.

        It stands among the parameters, or is that of all instances which are registered under this name.
        """
        said = params.get("worker_type")
        rows = [one for one in self._view.all() if _is_named(one, model, None)]
        kinds = [said] if said else list({split_worker_key(one.key)[1] for one in rows})
        return WorkerType(kinds[0]) if len(kinds) == 1 and kinds[0] in tuple(WorkerType) else None

    def _chosen(self, urls: Sequence[str], host: str | None, port: int | None) -> str:
        """Return the one of ``urls`` that host and port mean. Raises InvalidRequest."""
        own = self._own_url()
        if self._local is None and _fits(own, host, port):
            # Who takes a gateway for a worker names the gateway: it has no models, so which host is left open.
            host, port = None, None
        if self._local is not None and list(urls) == [own]:
            # By whatever name it was reached: there is no other that could be meant.
            return own
        fitting = [url for url in urls if _fits(url, host, port)]
        if len(fitting) == 1:
            return fitting[0]
        if not host and not port and self._local is not None and own in urls:
            return own
        names = ", ".join("{}:{}".format(*place_of(url)) for url in urls)
        if host or port:
            wrong = f"{host or '*'}:{port or '*'} is {'several' if fitting else 'none'} of the hosts in question"
        else:
            wrong = "is missing: there are several hosts in question"
        raise InvalidRequest.of_fields([{"field": "host", "message": f"{wrong}; say host and port, one of {names}"}])

    def _unknown(self, model: str, worker_type: WorkerType | None) -> UnknownModel:
        own = set() if self._local is None else {worker.key for worker in self._local.models.workers()}
        return UnknownModel.among((own | {one.key for one in self._view.all()}) - {MANAGER_KEY}, model, worker_type)


class _Failed(ModelyardError):
    """An outcome that says no, on its way through `in_parallel`."""


def _is_named(instance: Instance, model: str, worker_type: WorkerType | None) -> bool:
    try:
        name, kind = split_worker_key(instance.key)
    except ValueError:
        return False
    return name == model and worker_type in (None, kind)


def _fits(url: str, host: str | None, port: int | None) -> bool:
    at, on = place_of(url)
    return (not host or host == at) and (not port or int(port) == on)
