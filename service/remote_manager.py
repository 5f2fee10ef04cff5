"""The manager of the models of a whole cluster: finds who has a model, and asks there.

Models of this process, where it has some, are called directly; all others over HTTP.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from .attempts import Attempts, RoutedAnswer
from .cancel import Cancel
from .engines.base import Vectors
from .errors import InvalidRequest, ModelyardError, NotReady, UnknownModel, Unsupported
from .hosts import Hosts
from .manager import LocalWorkerManager
from .registry.base import MANAGER_KEY, Instance, place_of
from .registry_view import MISS_INTERVAL, RegistryView
from .remote_worker import RemoteModelWorker
from .routing import Routes
from .streams import OutputStream
from .tracing import Tracing, spanned
from .transport import Transport
from .types import (
    ApplyOutcome,
    GenerateRequest,
    HostModels,
    JSONObject,
    ModelInstance,
    ModelMetadata,
    ModelOutput,
    WorkerType,
    split_worker_key,
    worker_key,
)
from .worker import State, whole_answer

log = logging.getLogger(__name__)
T = TypeVar("T")

PROBE_TIMEOUT = (1.0, 2.0)
STOP_TIMEOUT = 5.0


class RemoteWorkerManager:
    """Models wherever they run. `start` and `stop` it; it makes no connection before it is asked something."""

    def __init__(
        self,
        view: RegistryView,
        transport: Transport,
        local: LocalWorkerManager | None = None,
        own_url: Callable[[], str] = lambda: "",
    ) -> None:
        """Route over what ``view`` shows; instances at ``own_url`` are those of ``local``."""
        self.view = view
        self.routes = Routes()
        self.tracing = Tracing()
        self._transport = transport
        self._local = local
        self._own_url = own_url
        self._hosts = Hosts(view, transport, local, own_url)
        self._workers: dict[tuple[str, str], RemoteModelWorker] = {}
        self._ended = threading.Event()
        self._failed = threading.Event()
        self._prober: threading.Thread | None = None

    # Life

    def start(self) -> None:
        """Start the thread that asks addresses that failed whether they are back."""
        if self._prober is None:
            self._prober = threading.Thread(target=self._probe, name="modelyard-probe", daemon=True)
            self._prober.start()

    def stop(self) -> None:
        """End that thread. A second call does nothing."""
        self._ended.set()
        self._failed.set()
        if self._prober is not None:
            self._prober.join(STOP_TIMEOUT)

    def _probe(self) -> None:
        while not self._ended.is_set():
            self._failed.clear()
            for url in self.routes.to_probe():
                self.routes.probed(url, self._probe_one(url))
            self._failed.wait(self.routes.next_probe_in())

    def _probe_one(self, url: str) -> str:
        """Return why an address does not answer; empty where it does, with whatever status."""
        try:
            response = self._transport.request("GET", f"{url}/health", timeout=PROBE_TIMEOUT)
        except ModelyardError as error:
            return str(error)
        except Exception as error:
            log.exception("probing %s failed", url)
            return type(error).__name__
        return f"it answers with {response.status_code}" if response.status_code >= 500 else ""

    # Who has a model

    def _known(self, key: str) -> list[Instance]:
        """Return the instances of a key: that of this process, if it is ready, and all others."""
        own_url = self._own_url()
        others = [one for one in self.view.instances(key) if one.url != own_url]
        own = self._own(key)
        return [own, *others] if own is not None else others

    def _own(self, key: str) -> Instance | None:
        worker = None if self._local is None else self._local.find(key)
        if worker is None or worker.state is not State.READY:
            return None
        load = worker.gate.load()
        own = Instance(key, self._own_url(), load=load, healthy=True, weight=worker.params.weight)
        self.routes.answered(own, load)
        return own

    def _after_a_look(self, key: str) -> list[Instance]:
        self.view.look_anew()
        return self._all_of(key)

    def _key(self, model: str, *kinds: WorkerType) -> str:
        """Return the key of a model that is called for one of ``kinds``. Raises UnknownModel, Unsupported, NotReady."""
        keys = [worker_key(model, kind) for kind in kinds]
        found = self._first_known(keys)
        if found is None and (self._local is None or not self._local.has(model, None)):
            self.view.look_anew(MISS_INTERVAL)
            found = self._first_known(keys)
        if found is not None:
            return found
        if self._local is not None and self._local.has(model, None):
            # It starts, has failed, or is of another type: its own manager says so best.
            self._local.worker(model, *kinds).check_ready()
        if not self.view.complete:
            raise NotReady(f"the registry can't be read: {self.view.error or 'it was not asked yet'}", retry_after=2)
        known = sorted(self._keys() - {MANAGER_KEY})
        others = [key.rpartition("@")[2] for key in known if key.rpartition("@")[0] == model]
        if others:
            raise Unsupported(f"model {model!r} is of type {', '.join(others)}: this call wants {' or '.join(kinds)}")
        names = f"; there are {', '.join(known)}" if known else "; none is here at all"
        raise UnknownModel(f"there is no model {model!r} here{names}")

    def _alone(self, key: str) -> LocalWorkerManager | None:
        """Return the manager of this process, where nobody else has the model: there is nothing to choose then."""
        known = self._all_of(key)
        return self._local if len(known) == 1 and self._is_own(known[0]) else None

    def _first_known(self, keys: Sequence[str]) -> str | None:
        return next((key for key in keys if self._known(key)), None)

    def _attempts(self, key: str, wait: bool) -> Attempts:
        return Attempts(
            key, lambda: self._all_of(key), lambda: self._after_a_look(key), self.routes, wait, self._look_into_it
        )

    def _look_into_it(self) -> None:
        self._failed.set()
        self.view.refresh_soon()

    def _worker(self, instance: Instance) -> RemoteModelWorker:
        place = (instance.key, instance.url)
        worker = self._workers.get(place)
        if worker is None:
            worker = self._workers[place] = RemoteModelWorker(instance.key, instance.url, self._transport)
        return worker

    def _is_own(self, instance: Instance) -> bool:
        return self._local is not None and instance.url == self._own_url()

    # Calls

    @spanned
    def generate_stream(
        self, request: GenerateRequest, cancel: Cancel | None = None, *, wait: bool = True
    ) -> OutputStream:
        """Return the stream of an answer; close it. Who is asked, and whether they can, shows at its first burst.

        Raises UnknownModel, Unsupported, NotReady; the stream raises Overloaded, NotReady, WorkerUnreachable where no
        instance takes the request, WorkerLost where one breaks off, and what the engine says.
        """
        cancel = cancel or Cancel()
        key = self._key(request.model, WorkerType.LLM)
        if (alone := self._alone(key)) is not None:
            return alone.generate_stream(request, cancel, wait=wait)
        answer = RoutedAnswer(
            self._attempts(key, wait),
            lambda instance, one, waits: self._open(instance, request, one, wait=waits),
            cancel,
        )
        answer.outer = OutputStream(answer, cancel, lambda: None)
        return answer.outer

    def _open(self, instance: Instance, request: GenerateRequest, cancel: Cancel, *, wait: bool) -> OutputStream:
        if self._is_own(instance) and self._local is not None:
            return self._local.generate_stream(request, cancel, wait=wait)
        return self._worker(instance).generate_stream(request, cancel, wait=wait)

    def generate(self, request: GenerateRequest, cancel: Cancel | None = None, *, wait: bool = True) -> ModelOutput:
        """Return a whole answer; raises like the stream."""
        with self.generate_stream(request, cancel, wait=wait) as stream:
            return whole_answer(stream)

    @spanned
    def embeddings(
        self, model: str, texts: Sequence[str], cancel: Cancel | None = None, *, wait: bool = True
    ) -> Vectors:
        """Return one row of floats a text."""
        cancel = cancel or Cancel()
        key = self._key(model, WorkerType.TEXT2VEC)
        return self._called(
            key,
            lambda local: local.embeddings(model, texts, cancel, wait=wait),
            lambda worker, waits: worker.embeddings(texts, cancel, wait=waits),
            wait,
        )

    @spanned
    def rerank(
        self, model: str, query: str, texts: Sequence[str], cancel: Cancel | None = None, *, wait: bool = True
    ) -> Sequence[float]:
        """Return a score a text, by a reranker, or by the cosine of an embedder of that name."""
        cancel = cancel or Cancel()
        key = self._key(model, WorkerType.RERANKER, WorkerType.TEXT2VEC)
        return self._called(
            key,
            lambda local: local.rerank(model, query, texts, cancel, wait=wait),
            lambda worker, waits: worker.rerank(query, texts, cancel, wait=waits),
            wait,
        )

    @spanned
    def count_token(self, model: str | None, prompt: str) -> int:
        """Return the tokens of ``prompt``; without a model, by the only LLM of the cluster."""
        key = self._key(model or self._only_llm(), *WorkerType)
        name = split_worker_key(key)[0]
        return self._called(
            key, lambda local: local.count_token(name, prompt), lambda worker, _: worker.count_token(prompt), True
        )

    def _only_llm(self) -> str:
        names = sorted({one.model_name.rpartition("@")[0] for one in self.get_all_model_instances(WorkerType.LLM)})
        if len(names) == 1:
            return names[0]
        which = f"one of {', '.join(names)}" if names else "no LLM is here"
        raise InvalidRequest.of_fields([{"field": "model", "message": f"is missing: {which}"}])

    @spanned
    def model_metadata(self, model: str) -> ModelMetadata:
        """Return what a model is."""
        key = self._key(model, *WorkerType)
        return self._called(key, lambda local: local.model_metadata(model), lambda worker, _: worker.metadata(), True)

    def _called(
        self,
        key: str,
        here: Callable[[LocalWorkerManager], T],
        there: Callable[[RemoteModelWorker, bool], T],
        wait: bool,
    ) -> T:
        """Return what the first instance says that does not refuse."""
        if (alone := self._alone(key)) is not None:
            return here(alone)
        attempts = self._attempts(key, wait)
        while True:
            instance, waits = attempts.next()
            worker = self._worker(instance)
            try:
                if self._is_own(instance) and self._local is not None:
                    answer = here(self._local)
                else:
                    answer = there(worker, waits)
            except BaseException as error:
                if not attempts.over(error):
                    raise
            else:
                attempts.over(load=worker.load)
                return answer

    # What is there

    def get_model_instances(self, key: str, *, healthy_only: bool = True) -> list[ModelInstance]:
        """Return the instances of a worker key."""
        return [_seen(one) for one in self._all_of(key) if one.healthy or not healthy_only]

    def get_all_model_instances(
        self, worker_type: WorkerType | None = None, *, healthy_only: bool = True
    ) -> list[ModelInstance]:
        """Return all instances, of one type if given."""
        keys = sorted(self._keys() - {MANAGER_KEY})
        wanted = [key for key in keys if worker_type is None or key.endswith(f"@{worker_type.value}")]
        return [one for key in wanted for one in self.get_model_instances(key, healthy_only=healthy_only)]

    def _keys(self) -> set[str]:
        own = set() if self._local is None else {worker.key for worker in self._local.workers()}
        return own | {one.key for one in self.view.all() if one.url != self._own_url()}

    def _all_of(self, key: str) -> list[Instance]:
        """Return the instances of a key, in whatever state."""
        own = None if self._local is None else self._local.find(key)
        known = self._known(key)
        if own is None or (known and known[0].url == self._own_url()):
            return known
        return [Instance(key, self._own_url(), weight=own.params.weight), *known]

    def select_one_instance(self, key: str) -> ModelInstance:
        """Return an instance that the next request would go to. Raises UnknownModel, NotReady."""
        attempts = self._attempts(key, True)
        instance, _ = attempts.next()
        self.routes.ended(instance)
        return _seen(instance)

    def load_of(self, model: str, worker_type: WorkerType) -> str | None:
        """Return what the instances of a model last said of their load, summed; None where none did."""
        load = self.routes.load_of(self._known(worker_key(model, worker_type)))
        return None if load is None else str(load)

    def parameter_descriptions(self, model: str, worker_type: WorkerType | None) -> list[JSONObject]:
        """Return a model's parameters with their values, as one that has it says. Raises UnknownModel."""
        return self._hosts.parameter_descriptions(model, worker_type)

    def supported_models(self) -> list[HostModels]:
        """Return the models that may run on each host; one that does not answer has none, and says why."""
        return self._hosts.supported_models()

    # What changes

    @spanned
    def model_startup(
        self,
        model: str,
        worker_type: WorkerType | None,
        params: Mapping[str, Any],
        *,
        host: str | None = None,
        port: int | None = None,
    ) -> None:
        """Start one model on a host; which may be left out where there is one, or this process holds models itself."""
        self._hosts.model_startup(model, worker_type, params, host=host, port=port)
        self.view.refresh_soon()

    @spanned
    def model_shutdown(
        self, model: str, worker_type: WorkerType | None, *, host: str | None = None, port: int | None = None
    ) -> None:
        """Stop one model on a host and forget it."""
        self._hosts.model_shutdown(model, worker_type, host=host, port=port)
        self.view.refresh_soon()

    @spanned
    def worker_apply(
        self, model: str, apply_type: str, worker_type: WorkerType | None, params: Mapping[str, Any]
    ) -> ApplyOutcome:
        """Do one of `APPLY_TYPES` to all instances of a name, wherever they are, and merge what came of it."""
        outcome = self._hosts.worker_apply(model, apply_type, worker_type, params)
        self.view.refresh_soon()
        return outcome


def _seen(instance: Instance) -> ModelInstance:
    host, port = place_of(instance.url)
    return ModelInstance(
        instance.key,
        host,
        port,
        weight=instance.weight,
        check_healthy=instance.check_healthy,
        healthy=instance.healthy,
        enabled=instance.enabled,
        prompt_template=instance.prompt_template,
    )
