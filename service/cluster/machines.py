"""Start, stop and change models on the machines of a cluster, and read their parameters and catalogues.

A machine is a worker service, which has registered its manager as `MANAGER_KEY`. This process is a machine too, if it
holds models.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ..errors import (
    EngineError,
    Forbidden,
    InvalidRequest,
    ModelyardError,
    NotReady,
    Unauthorized,
    UnknownModel,
    Unsupported,
)
from ..sessions.session import Session
from ..types import ApplyOutcome, HostModels, JSONObject, WorkerType, split_worker_key, worker_key
from ..worker.local_models import LocalModels
from ..worker.manager import LocalWorkerManager
from ..worker.outcomes import in_parallel, merged, outcome_of
from ..worker.protocol import EVERY_MODEL
from .registry.base import MANAGER_KEY, Instance, place_of
from .remote_machine import RemoteMachine
from .view import RegistryView

log = logging.getLogger(__name__)


@contextmanager
def _refusals_of(url: str) -> Iterator[None]:
    """Raise Forbidden where a machine refuses the token of this process: the client is not at fault."""
    try:
        yield
    except (Unauthorized, Forbidden) as error:
        raise Forbidden(f"{url} refuses this router, not its client: {error}") from error


class Machines:
    """The worker services that a registry shows, and this process, if it holds models."""

    def __init__(
        self,
        view: RegistryView,
        session: Session,
        local: LocalWorkerManager | None,
        own_url: Callable[[], str],
        *,
        check_complete: Callable[[], None],
        unchanged: LocalModels | None = None,
    ) -> None:
        """Find machines in ``view``. The machine at ``own_url`` is ``local``; None if this process holds no models.

        ``check_complete`` raises NotReady while this service may hold models that are not declared yet. ``unchanged``
        are models of this process that are those of its configuration: a gateway has them in each of its processes.
        """
        self._view = view
        self._session = session
        self._local = local
        self._own_url = own_url
        self._check_complete = check_complete
        self._unchanged = unchanged

    def machine_at(self, url: str) -> LocalWorkerManager | RemoteMachine:
        """Return the machine at an address: the manager of this process, or one that is called over HTTP."""
        if self._local is not None and url == self._own_url():
            return self._local
        return RemoteMachine(url, self._session)

    # Changes

    def model_startup(
        self,
        model: str,
        worker_type: WorkerType | None,
        params: Mapping[str, Any],
        *,
        host: str | None,
        port: int | None,
    ) -> str:
        """Start a model on the machine at ``host`` and ``port``; without them, on this process or the only machine."""
        if not self._own() or host or port:
            self._view.refresh_now()
        urls = self._healthy()
        if not urls:
            self._check_changes(model, worker_type)
            raise NotReady(f"no host can start model {model!r}: no worker service is registered")
        url = self._chosen(urls, host, port)
        with _refusals_of(url):
            return self.machine_at(url).model_startup(model, self._type_at(url, model, worker_type, params), params)

    def model_shutdown(self, model: str, worker_type: WorkerType | None, *, host: str | None, port: int | None) -> str:
        """Stop a model on one machine and forget it there."""
        self._view.refresh_now()
        urls = self._having(model, worker_type)
        if not urls:
            raise self._unknown(model, worker_type)
        url = self._chosen(urls, host, port)
        with _refusals_of(url):
            return self.machine_at(url).model_shutdown(model, self._type_at(url, model, worker_type, {}))

    def worker_apply(
        self, model: str, apply_type: str, worker_type: WorkerType | None, params: Mapping[str, Any]
    ) -> ApplyOutcome:
        """Apply ``apply_type`` to all instances of a name, on all machines at once.

        A machine without such a model is left out. Raises UnknownModel if no machine has one, and InvalidRequest.
        """
        self._view.refresh_now()
        urls = self._healthy() if model == EVERY_MODEL else self._having(model, worker_type)
        began = time.monotonic()
        results = in_parallel(urls, lambda url: self._applied_at(url, model, apply_type, worker_type, params), str)
        seconds = round(time.monotonic() - began, 3)
        for result in results:
            if isinstance(result, InvalidRequest):
                raise result
        answers = [(url, r) for url, r in zip(urls, results, strict=True) if not isinstance(r, UnknownModel)]
        if not answers:
            unknown = (result for result in results if isinstance(result, UnknownModel))
            raise next(unknown, self._unknown(model, worker_type))
        outcomes = []
        for url, result in answers:
            outcome = outcome_of(result, seconds)
            message = f"{url}: {outcome.message}" if len(urls) > 1 else outcome.message
            outcomes.append(ApplyOutcome(message, outcome.success, outcome.timecost))
        return merged(outcomes)

    def _applied_at(
        self, url: str, model: str, apply_type: str, worker_type: WorkerType | None, params: Mapping[str, Any]
    ) -> ApplyOutcome:
        """Apply ``apply_type`` on one machine, once for each type of the model that is registered there.

        A machine of DB-GPT takes a missing type for an LLM, and fails for `EVERY_MODEL`: then its models are named.
        """
        machine = self.machine_at(url)
        if url in self._own():
            return machine.worker_apply(model, apply_type, worker_type, params)
        if model != EVERY_MODEL:
            targets = self._models_at(url, model, worker_type)
        else:
            try:
                return machine.worker_apply(model, apply_type, worker_type, params)
            except EngineError:
                if not (targets := self._models_at(url, None, worker_type)):
                    raise
        if len(targets) < 2:
            return machine.worker_apply(model, apply_type, targets[0][1] if targets else worker_type, params)
        results = in_parallel(
            targets,
            lambda target: machine.worker_apply(target[0], apply_type, target[1], params),
            lambda target: worker_key(*target),
        )
        for result in results:
            if isinstance(result, InvalidRequest):
                raise result
        return merged([outcome_of(result) for result in results])

    # Which models there are

    def parameter_descriptions(self, model: str, worker_type: WorkerType | None) -> list[JSONObject]:
        """Return the parameters of a model, from a machine that runs it, or else from the catalogue of a machine."""
        self._view.refresh_now()
        failures: list[ModelyardError] = []
        having = self._having(model, worker_type)
        for url in dict.fromkeys([*having, *self._healthy()]):
            try:
                return self.machine_at(url).parameter_descriptions(model, self._type_at(url, model, worker_type, {}))
            except UnknownModel as error:
                failures.append(error)
            except ModelyardError as error:
                # A machine of DB-GPT fails without a reason if it does not have the model.
                failures.insert(0 if url in having else len(failures), error)
        raise failures[0] if failures else self._unknown(model, worker_type)

    def supported_models(self) -> list[HostModels]:
        """Return the models that may run on each machine; one that does not answer has none, and an error."""
        self._view.refresh_now()
        urls = self._healthy()
        hosts: list[HostModels] = []
        for url, result in zip(
            urls, in_parallel(urls, lambda url: self.machine_at(url).supported_models(), str), strict=True
        ):
            if isinstance(result, ModelyardError):
                log.warning("%s does not say which models it supports: %s", url, result)
                hosts.append(HostModels(*place_of(url), [], f"{url}: {result}"))
            else:
                hosts += [HostModels(*models) for models in result]
        return hosts

    # Which machines there are

    def _own(self) -> list[str]:
        """Return the address of this process, if it holds models."""
        return [] if self._local is None else [self._own_url()]

    def _healthy(self) -> list[str]:
        """Return the addresses of the machines that are healthy, this process first."""
        rows = self._view.instances(MANAGER_KEY)
        return list(dict.fromkeys([*self._own(), *(row.url for row in rows if row.healthy)]))

    def _having(self, model: str, worker_type: WorkerType | None) -> list[str]:
        """Return the addresses of the machines that have a model, running or stopped."""
        healthy = set(self._healthy())
        local = self._own() if self._local is not None and self._local.models.has(model, worker_type) else []
        rows = [row for row in self._view.all() if _is_named(row, model, worker_type)]
        return list(dict.fromkeys([*local, *(row.url for row in rows if row.healthy or row.url in healthy)]))

    def _type_at(
        self, url: str, model: str, worker_type: WorkerType | None, params: Mapping[str, Any]
    ) -> WorkerType | None:
        """Return the type to send to a machine, which machines of DB-GPT require. None if it is not clear.

        It is ``worker_type``, or that of ``params``, or the only type that is registered under this name, at this
        machine or else at any. This process does not need one.
        """
        if worker_type is not None or url in self._own():
            return worker_type
        if given := params.get("worker_type"):
            return WorkerType(given) if given in tuple(WorkerType) else None
        types = {kind for _, kind in self._models_at(url, model, None)} or {
            split_worker_key(row.key)[1] for row in self._view.all() if _is_named(row, model, None)
        }
        return types.pop() if len(types) == 1 else None

    def _models_at(self, url: str, model: str | None, worker_type: WorkerType | None) -> list[tuple[str, WorkerType]]:
        """Return the names and types of the models that are registered at a machine; ``None`` stands for any."""
        rows = (row for row in self._view.all() if row.url == url and _is_named(row, model, worker_type))
        return sorted({split_worker_key(row.key) for row in rows})

    def _chosen(self, urls: Sequence[str], host: str | None, port: int | None) -> str:
        """Return the address in ``urls`` that has this host and port. Raises InvalidRequest."""
        own = self._own()
        if not own and _fits(self._own_url(), host, port):
            # The caller takes this gateway for a worker. It has no models, so the caller names no machine.
            host, port = None, None
        if own and list(urls) == own:
            # This process is the only candidate, whatever name the caller has for it.
            return own[0]
        fitting = [url for url in urls if _fits(url, host, port)]
        if len(fitting) == 1:
            return fitting[0]
        if not host and not port and own and own[0] in urls:
            return own[0]
        names = ", ".join("{}:{}".format(*place_of(url)) for url in urls)
        if host or port:
            wrong = f"{host or '*'}:{port or '*'} fits {'several' if fitting else 'none'} of the hosts"
        else:
            wrong = "is missing: several hosts are possible"
        raise InvalidRequest.of_field("host", f"{wrong}; give host and port, one of {names}")

    def _check_changes(self, model: str, worker_type: WorkerType | None) -> None:
        if self._unchanged is not None and self._unchanged.has(model, worker_type):
            raise Unsupported(
                f"model {model!r} is in the configuration of this gateway, for each of its processes: change it there, "
                "and start the gateway again"
            )

    def _unknown(self, model: str, worker_type: WorkerType | None) -> UnknownModel:
        """Return the error for a model that no machine has.

        Raises NotReady while this service may still get it, and Unsupported for one that does not change.
        """
        self._check_complete()
        self._check_changes(model, worker_type)
        local = set() if self._local is None else set(self._local.models.keys())
        return UnknownModel.among((local | {row.key for row in self._view.all()}) - {MANAGER_KEY}, model, worker_type)


def _is_named(instance: Instance, model: str | None, worker_type: WorkerType | None) -> bool:
    try:
        name, registered_type = split_worker_key(instance.key)
    except ValueError:
        return False
    return model in (None, name) and worker_type in (None, registered_type)


def _fits(url: str, host: str | None, port: int | None) -> bool:
    own_host, own_port = place_of(url)
    return (not host or host == own_host) and (not port or int(port) == own_port)
