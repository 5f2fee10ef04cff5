"""The checks of `modelyard doctor` on a configuration and on this machine. Nothing is started."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from requests.utils import should_bypass_proxies

from ..cluster.addresses import advertised_url
from ..cluster.keys import keys_exist
from ..cluster.membership import session_options
from ..cluster.registry import open_registry
from ..cluster.registry.address import sqlite_path
from ..cluster.registry.base import MANAGER_KEY
from ..errors import ConfigError, ModelyardError
from ..server.clients import OTHER_FILES
from ..sessions.session import Session
from ..settings.loopback import is_loopback_host
from ..settings.settings import HOW_TO_CLOSE_THE_DOOR, OWNERS
from ..settings.sizes import size
from .examine import Examination, ExaminedModel
from .findings import Finding
from .machine import Machine

LIBRARIES = {
    "llama.cpp": ("llama", ("xllamacpp",)),
    "sentence-transformers": ("sentence-transformers", ("sentence_transformers", "torch")),
    "transformers": ("transformers", ("transformers", "torch")),
}
"""What the models of an engine import when they start: the extra of the package that has it, and the modules."""

PROXIES = ("http_proxy", "https_proxy", "all_proxy")
"""Variables, in small or capital letters, that name a proxy."""
_WITHOUT_MODELS = {"gateway": "the models of its registry", "controller": "a registry, and no models"}
"""What a role has without models of its own."""
SHARE_OF_MEMORY = 0.9
"""The part of the available memory that models may take before it is a warning."""


def check_configuration(report: Examination) -> Iterator[Finding]:
    """Report values that do not fit, and weights that are missing."""
    name = "configuration"
    see = "correct it: modelyard check-config shows every value with its place"
    yield from (Finding.failure(name, fault, see) for fault in report.faults)
    yield from (
        Finding.failure("weights", fault, "fetch them, name their folder (--models-dirs), or leave the model out")
        for fault in report.missing
    )
    for override in report.unused_overrides:
        yield Finding.warning(name, f"{override}: model {override.model!r} is not started", "leave it out")
    if not report.faults:
        role = report.settings.role
        models = ", ".join(model.key or model.name for model in report.models) or _WITHOUT_MODELS.get(role, "no model")
        yield Finding.ok(name, f"{role} with {models}")


def check_access(report: Examination) -> Iterator[Finding]:
    """Report a service that other machines reach, and that asks nobody who they are."""
    settings = report.settings
    try:
        has_keys = settings.requires_keys and keys_exist(settings)
    except ModelyardError as error:
        yield Finding.failure("access", f"the store of the keys can't be opened: {error}", "see key_store")
        return
    try:
        settings.refuse_open_door(has_keys=has_keys)
    except ConfigError:
        result = f"{settings.host} can be reached from other machines, and no token is required"
        yield Finding.failure("access", result, HOW_TO_CLOSE_THE_DOOR)
    else:
        if settings.insecure and not settings.is_loopback:
            advice = "leave insecure out, and make tokens (modelyard token new) or keys (modelyard key new)"
            yield Finding.warning("access", f"{settings.host} is open to everybody who reaches it", advice)
        else:
            needs_secret = has_keys or settings.tokens or settings.tokens_file
            place = "only programs of this machine reach" if settings.is_loopback else "other machines reach"
            pass_ = "a token, a key or a trusted address" if needs_secret or not settings.is_loopback else "no key"
            yield Finding.ok("access", f"{place} {settings.host}; they need {pass_}")


def check_threads(report: Examination) -> Iterator[Finding]:
    """Report too few threads for the slots of the models: requests are refused instead of waiting in line."""
    settings = report.settings
    if settings.role not in OWNERS or not report.models:
        return
    room = settings.threads - settings.reserve
    slots = sum(_int(model, "limit_model_concurrency") for model in report.models)
    result = f"{slots} slots of models, {room} threads for requests (threads less reserve)"
    if slots > room:
        yield Finding.failure("threads", result, f"raise threads to {slots + settings.reserve} at least")
    elif room - slots < slots // 4:
        advice = f"raise threads, to {settings.reserve + 2 * slots} for as many that wait, or lower the slots"
        yield Finding.warning("threads", f"{result}: only {room - slots} requests can wait in line", advice)
    else:
        yield Finding.ok("threads", f"{result}: {room - slots} requests can wait in line")


def check_tasks(report: Examination, machine: Machine) -> Iterator[Finding]:
    """Report a limit of tasks below the threads."""
    needed = report.settings.threads
    if report.settings.http_threads == "gevent":
        return
    if (possible := machine.startable(needed)) < needed:
        advice = "raise TasksMax (systemd), --pids-limit (Docker) or ulimit -u, or lower threads"
        yield Finding.failure("tasks", f"only {possible} of {needed} threads can be started", advice)
    else:
        yield Finding.ok("tasks", f"{needed} threads can be started")


def check_files(report: Examination, machine: Machine) -> Iterator[Finding]:
    """Report a limit of open files below what the threads need."""
    # A thread may have its client's connection open, one to wait for its end, and one to another service.
    needed = 3 * report.settings.threads + OTHER_FILES
    shown = "without a limit" if machine.files < 0 else f"{machine.files} at most"
    if 0 <= machine.files < needed:
        advice = f"raise LimitNOFILE (systemd), --ulimit nofile (Docker) or ulimit -Hn to {needed} at least"
        result = f"open files: {shown}, and {report.settings.threads} threads need {needed}: connections have to wait"
        yield Finding.warning("open files", result, advice)
    else:
        yield Finding.ok("open files", f"{shown}, {needed} are needed")


def check_folders(report: Examination) -> Iterator[Finding]:
    """Report a folder that can't be written, or a file that can't be read."""
    settings = report.settings
    faults = list(report.unusable)
    for name in ("tokens_file", "token_file", "remote_ca"):
        path = getattr(settings, name)
        if path and not os.access(Path(path).expanduser(), os.R_OK):
            faults.append(f"{name} {path} can't be read")
    if settings.log_file and not _is_writable(Path(settings.log_file).expanduser()):
        faults.append(f"log_file {settings.log_file} can't be written")
    owner = "give it to the user of the service (chown), or name another"
    yield from (Finding.failure("folders", fault, owner) for fault in faults)
    absent = [folder for folder in settings.models_dirs if not Path(folder).expanduser().is_dir()]
    for folder in absent:
        yield Finding.warning("folders", f"models_dirs: there is no folder {folder}", "make it, or correct models_dirs")
    if not (faults or absent):
        yield Finding.ok("folders", f"state in {settings.state_path}, weights in {settings.models_paths[0]}")


def check_memory(report: Examination, machine: Machine) -> Iterator[Finding]:
    """Report less memory than the models of this process take, and models that memory_budget has no room for."""
    needs = {model.name: model.memory for model in report.models if model.memory}
    budget = report.settings.memory_budget
    if budget is not None:
        yield from _too_large(report, budget)
    if not needs or machine.memory == math.inf:
        return
    whole = sum(needs.values())
    each = ", ".join(f"{name} {size(need)}" for name, need in needs.items())
    if budget is not None and whole > budget:
        whole = budget
        each += f"; not all at once: memory_budget is {size(budget)}"
    result = f"models take {size(whole)} ({each}); {size(int(machine.memory))} are free"
    if whole > SHARE_OF_MEMORY * machine.memory:
        advice = "if they do not run yet: end other programs, leave a model out, or lower its n_ctx or slots"
        yield Finding.warning("memory", result, advice)
    else:
        yield Finding.ok("memory", result)


def _too_large(report: Examination, budget: int) -> Iterator[Finding]:
    """Report each model that does not fit into ``budget`` beside the pinned ones."""
    pinned = {model.name: model.memory for model in report.models if model.params and model.params["pinned"].value}
    for model in report.models:
        rest = budget - sum(need for name, need in pinned.items() if name != model.name)
        if model.memory > max(rest, 0):
            result = f"model {model.name} takes {size(model.memory)}; memory_budget has {size(max(rest, 0))} for it"
            advice = "raise memory_budget, lower its n_ctx or slots, or set its memory"
            yield Finding.failure("memory", result, advice)


def check_libraries(report: Examination) -> Iterator[Finding]:
    """Report an engine, or the server, whose library is not installed."""
    wanted = [("server", "gunicorn", "modelyard serve")]
    for model in report.models:
        extra, modules = LIBRARIES.get(model.engine or "", ("", ()))
        wanted += [(extra, module, f"model {model.name}") for module in modules]
    missing = [(extra, module, user) for extra, module, user in wanted if importlib.util.find_spec(module) is None]
    for extra, module, user in missing:
        yield Finding.failure("libraries", f"{user} needs {module}", f"pip install 'modelyard[{extra}]'")
    if not missing:
        yield Finding.ok("libraries", ", ".join(dict.fromkeys(module for _, module, _ in wanted)))


def check_proxies(report: Examination, machine: Machine) -> Iterator[Finding]:
    """Report proxy variables that catch calls to services of the cluster."""
    environ = machine.environ
    names = ", ".join(name for name in sorted(environ) if name.lower() in PROXIES and environ[name])
    if not names:
        yield Finding.ok("proxies", "no proxy variable is set")
        return
    excepted = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    urls = [url for url in _urls(report) if not should_bypass_proxies(url, excepted)]
    caught = sorted({urlsplit(url).hostname or "" for url in urls})
    if caught:
        result = f"{names} would catch calls to {', '.join(caught)}: not those of modelyard, but of curl and of clients"
        yield Finding.warning("proxies", result, f"NO_PROXY={','.join([*filter(None, [excepted]), *caught])}")
    else:
        yield Finding.ok("proxies", f"{names}, not for the addresses of this configuration")


def check_address(report: Examination) -> Iterator[Finding]:
    """Report an address that is registered where other machines read it, and that they can't reach."""
    settings = report.settings
    registry_host = urlsplit((settings.registry or "").partition(",")[0]).hostname
    if not settings.registry or settings.role not in OWNERS:
        return
    try:
        url = advertised_url(settings)
    except ConfigError as error:
        yield Finding.failure("address", str(error), "correct advertise")
        return
    host = urlsplit(url).hostname or ""
    is_local = url.startswith("http+unix:") or is_loopback_host(host)
    if is_local and registry_host and not is_loopback_host(registry_host):
        result = f"it would be registered at {registry_host} as {url}, which every machine takes for its own"
        yield Finding.failure("address", result, "listen on 0.0.0.0, or set advertise to this machine's address")
    else:
        who = "routers of this machine" if is_local else "routers"
        result = f"it is registered as {url}, where {who} reach it" if url else "known with the first request"
        yield Finding.ok("address", result)


def check_registry(report: Examination) -> Iterator[Finding]:
    """Report a registry that does not answer, or refuses the token."""
    settings = report.settings
    if not settings.registry or settings.registry.startswith("memory:"):
        return
    try:
        if settings.registry.startswith("sqlite:") and not sqlite_path(settings.registry).exists():
            yield Finding.ok("registry", "its file is made when the service starts")
            return
        with (
            closing(Session(**session_options(settings))) as session,
            closing(open_registry(settings.registry, settings.heartbeat_timeout, session=session)) as registry,
        ):
            rows = registry.instances()
    except ModelyardError as error:
        advice = "start it, correct registry, or give token or token_file with the scope worker"
        yield Finding.failure("registry", str(error), advice)
    else:
        healthy = [row.healthy for row in rows if row.key != MANAGER_KEY]
        yield Finding.ok("registry", f"answers; instances of models: {len(healthy)}, healthy: {sum(healthy)}")


def _int(model: ExaminedModel, name: str) -> int:
    return int(model.params[name].value) if name in model.params else 0


def _is_writable(path: Path) -> bool:
    return os.access(path, os.W_OK) if path.exists() else os.access(path.parent, os.W_OK | os.X_OK)


def _urls(report: Examination) -> list[str]:
    """Return the addresses of HTTP that this configuration names, but for those of this machine."""
    settings = report.settings
    urls = [*(settings.registry or "").split(","), settings.advertise or ""]
    urls += [str(model.params["base_url"].value) for model in report.models if "base_url" in model.params]
    remote = [url for url in urls if url.startswith(("http://", "https://"))]
    return [url for url in remote if not is_loopback_host(urlsplit(url).hostname or "")]
