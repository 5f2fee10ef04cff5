"""What a service is told: roles, addresses, folders, limits. Declared once, like a model's parameters.

Each is ``--name`` on the command line, ``MODELYARD_NAME`` in the environment, ``name`` under
``[service]`` in the configuration file; the first of these that says something wins.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import ConfigError
from ..types import JSONObject
from . import params
from .params import param

ROLES = ("standalone", "worker", "controller", "gateway")
OWNERS = ("standalone", "worker")
"""The roles whose process holds models."""
CONTROLLERS = ("standalone", "controller")
"""The roles that offer the registry over HTTP."""
ROUTERS = ("standalone", "gateway")
"""The roles that answer with models of other processes as well."""
ALLOCATOR = {"GLIBC_TUNABLES": "glibc.malloc.tcache_max=128"}
"""For processes that we start. Of freed memory, each thread keeps small pieces only: without it every stream, which has
a thread, kept 16 KB."""
INLINE, HOSTED, REMOTE = PLACEMENTS = ("inline", "hosted", "remote")
"""Where the models are: in the process that answers, in a process of their own beside it, or elsewhere."""
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
SET_VARIABLE = "MODELYARD_SET"
HANDED_VARIABLE = "MODELYARD_HANDED_OVER"
"""Where a model host finds the settings of the processes that it works for, whole."""
ENVIRONMENT_PREFIX = "MODELYARD"


@dataclass
class Settings:
    """The settings of one service process."""

    role: str = param("standalone", help="what this process is", choices=ROLES)
    placement: str | None = param(
        None,
        help="where the models are: inline (in the one process that answers), hosted (in a process of their own, for "
        "any number of processes), remote (with other services: the registry tells which); default: inline for one "
        "process of ours, hosted for several and in a Flask application, remote in one with a registry and no models",
        choices=PLACEMENTS,
    )
    host_timeout: float = param(
        10.0, help="seconds that a request waits for a model host that is being started", min=0, max=600
    )
    host: str = param(
        "127.0.0.1", help="address to listen on; other than loopback needs tokens, networks or --insecure"
    )
    port: int = param(8000, help="port to listen on", min=1, max=65535)
    prefix: str = param("/api", help="path that the worker's calls stand under")
    advertise: str | None = param(
        None, help="address that others reach this process at, with the prefix; default: found by itself"
    )
    registry: str | None = param(
        None,
        help="where instances are registered: a controller's address (several, comma-separated), or a store: sqlite:, "
        "postgresql:, mysql:, redis:, memory:; default: a file for standalone and controller, none for a worker",
        tags=["privacy"],
    )
    heartbeat_timeout: float = param(
        60.0, help="seconds without a heartbeat until an instance counts as unhealthy", min=0.2, max=86_400
    )
    registry_refresh: float = param(2.0, help="seconds between two looks at the registry", min=0.05, max=3600)
    connect_timeout: float = param(3.0, help="seconds a remote worker gets to accept a connection", min=0.05, max=600)
    read_timeout: float = param(
        60.0, help="seconds of silence until a remote worker's answer is given up", min=0.1, max=86_400
    )
    remote_headers: list[str] = param(
        [],
        help="headers that are sent to remote workers and controllers, NAME=VALUE, comma-separated",
        tags=["privacy"],
    )
    remote_ca: str | None = param(None, help="file or folder of certificates that remote https is checked against")
    config: str | None = param(None, help="configuration file (TOML)")
    models_dirs: list[str] = param(
        [], help="folders where weights may lie, comma-separated; the first takes what is pulled"
    )
    state_dir: str | None = param(None, help="folder for locks and for what was running")
    models: list[str] | None = param(
        None, help="names of the models to start, comma-separated; default: those of the configuration"
    )
    instance: str | None = param(None, help="name of this service's folder in the state folder; default: ROLE-PORT")
    fresh: bool = param(False, help="forget what was running and what was set over HTTP")
    insecure: bool = param(
        False, help="where there are neither tokens nor trusted networks: everybody may do everything, from anywhere"
    )
    tokens: list[str] = param(
        [], help="tokens that may come, each NAME SCOPE[+SCOPE] SHA256, comma-separated", tags=["privacy"]
    )
    tokens_file: str | None = param(
        None, help="file with such tokens, one a line; read anew when it has changed (modelyard token)"
    )
    trusted_networks: list[str] = param(
        [], help="what addresses may do without a token: NETWORK=SCOPE[+SCOPE], comma-separated"
    )
    allowed_networks: list[str] = param(
        [], help="networks that a registration with a token may name, comma-separated; default: every address"
    )
    token: str | None = param(
        None, help="token that this process sends to others; not on the command line", tags=["privacy", "secret"]
    )
    token_file: str | None = param(
        None, help="file with the token that this process sends; read anew when it has changed"
    )
    on_load_failure: str = param(
        "stay", help="what a failed start does to a process with models inline; others stay", choices=("stay", "exit")
    )
    workers: int = param(
        1, help="worker processes; with several, models are hosted in one of their own", min=1, max=256
    )
    http_threads: str = param(
        "gthread",
        help="the worker class of gunicorn: gthread (a thread for each request) or gevent (a greenlet for each "
        "connection; not with models inline)",
        choices=("gthread", "gevent"),
        retired={
            "leader": "'leader' was removed, as it used private parts of gunicorn and lost threads: use gthread, which "
            "is the default"
        },
    )
    threads: int = param(256, help="threads that answer requests", min=8, max=10_000)
    reserve: int = param(8, help="threads kept free for health, metrics and administration", min=1, max=1000)
    drain_timeout: float = param(30.0, help="seconds that running answers get at a stop", min=0, max=3600)
    write_timeout: float = param(
        30.0, help="seconds a client may take to accept a piece before it counts as gone", min=1, max=3600
    )
    max_body_bytes: int = param(16 * 1024 * 1024, help="largest request body, in bytes", min=1024, max=1024**3)
    first_output_timeout: float = param(5.0, help="seconds until headers leave without a first piece", min=0.1, max=600)
    silence_timeout: float = param(
        10.0, help="seconds of silence in a stream until an empty chunk breaks it", min=0.1, max=600
    )
    log_level: str = param("info", help="least severe message that is logged", choices=LOG_LEVELS)
    log_file: str | None = param(None, help="file for the log; default: standard error")
    access_log: bool = param(True, help="log one JSON line a request, without prompts and answers")
    tracing: str | None = param(
        None,
        help="where spans go: file:PATH (JSON lines), otlp or otlp:URL (a collector), host (the process's own "
        "OpenTelemetry), module:Class (a SpanExporter); default: nowhere",
    )
    tracing_content: bool = param(False, help="whether prompts and answers are put into spans")
    tracing_sample: float = param(1.0, help="share of the traces begun here that is kept", min=0, max=1)

    overrides: tuple[str, ...] = field(default=(), kw_only=True)
    """``MODEL.PARAM=VALUE`` from the command line."""

    model_tables: tuple[JSONObject, ...] = field(default=(), kw_only=True)
    """``[[models]]`` of the configuration file, unchecked: each engine declares its own parameters."""

    def __post_init__(self) -> None:
        if self.reserve >= self.threads:
            raise ConfigError(f"reserve ({self.reserve}) must be less than threads ({self.threads})")
        if self.prefix and not self.prefix.startswith("/"):
            raise ConfigError(f"prefix {self.prefix!r} must start with a slash, or be empty")
        self.prefix = self.prefix.rstrip("/")
        self.tracing = _checked_tracing(self.tracing)
        if self.placement is None and self.workers > 1:
            self.placement = HOSTED
        if self.placement == REMOTE and self.role in OWNERS:
            self.role = "gateway"
        if self.workers > 1 and self.owns_models:
            raise ConfigError(
                f"workers ({self.workers}): with placement inline a process owns its models, and each would load all "
                "of them: leave the placement out, or run one process"
            )
        if self.http_threads == "gevent" and self.owns_models:
            raise ConfigError(
                "http_threads gevent: an engine would block its loop; say --placement hosted, or use gthread"
            )
        if self.role == "gateway" and not self.registry:
            raise ConfigError("a gateway needs --registry: the address of a controller, or of a store")
        if self.registry and self.registry.startswith("memory:"):
            if self.workers > 1:
                raise ConfigError("registry memory: is one process's own: with several workers, use another store")
            if self.is_hosted and self.routes:
                raise ConfigError("registry memory: is one process's own: where models are hosted, use another store")

    @property
    def owns_models(self) -> bool:
        """Whether this process holds models."""
        return self.role in OWNERS and self.placement != HOSTED

    def place(self, placement: str) -> None:
        """Put the models there, unless it was said where. Raises ConfigError."""
        if self.placement is None:
            self.placement = placement
            self.__post_init__()

    @property
    def is_hosted(self) -> bool:
        """Whether the models of this service are in a process of their own, which all of its processes reach."""
        return self.role in OWNERS and self.placement == HOSTED

    @property
    def routes(self) -> bool:
        """Whether this process answers with models of other processes as well."""
        return self.role in ROUTERS

    @property
    def models_paths(self) -> tuple[Path, ...]:
        """The models folders, absolute; the first takes what is pulled."""
        if self.models_dirs:
            return tuple(Path(folder).expanduser().absolute() for folder in self.models_dirs)
        return (_home("XDG_DATA_HOME", ".local/share") / "models",)

    @property
    def state_path(self) -> Path:
        """The state folder, absolute."""
        if self.state_dir:
            return Path(self.state_dir).expanduser().absolute()
        return _home("XDG_STATE_HOME", ".local/state")

    @property
    def instance_name(self) -> str:
        """The name of this service's folder in the state folder."""
        return self.instance or f"{self.role}-{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address. A name other than localhost may mean anything."""
        if self.host == "localhost" or self.host.startswith("unix:"):
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False

    @property
    def address(self) -> str:
        """Host and port as they stand in a URL."""
        return f"[{self.host.strip('[]')}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def refuse_open_door(self) -> None:
        """Raise ConfigError when other machines could use the service and nobody said that they may."""
        if self.is_loopback or self.insecure or self.tokens or self.tokens_file or self.trusted_networks:
            return
        raise ConfigError(
            f"{self.host} can be reached from other machines, and nobody has to log in: make tokens (modelyard token "
            "new --file FILE) and give it --tokens-file FILE, listen on 127.0.0.1 behind a proxy that asks who comes, "
            "or say --insecure"
        )

    def overrides_of(self, model: str) -> dict[str, str]:
        """Return ``{param: text}`` that the command line sets for ``model``."""
        found = {}
        for item in self.overrides:
            name, parameter, value = split_override(item)
            if name == model:
                found[parameter] = value
        return found


def _home(variable: str, fallback: str) -> Path:
    base = os.environ.get(variable)
    return (Path(base) if base else Path.home() / fallback) / "modelyard"


def _checked_tracing(said: str | None) -> str | None:
    """Return where spans go, None for ``off``. Raises ConfigError for what is no such place."""
    if said in (None, "off", "host", "otlp"):
        return None if said == "off" else said
    kind, _, where = (said or "").partition(":")
    if kind == "file" and where:
        return said
    if kind == "otlp":
        parts = urlsplit(where)
        if "@" in parts.netloc:
            raise ConfigError("tracing: an address without name and password: give OTEL_EXPORTER_OTLP_HEADERS those")
        if parts.scheme in ("http", "https") and parts.netloc:
            return said
    elif kind != "file" and re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", said or ""):
        return said
    raise ConfigError(f"tracing {said!r}: expected file:PATH, otlp, otlp:http://HOST:PORT, host, module:Class, or off")


def split_override(item: str) -> tuple[str, str, str]:
    """Return model, parameter and value of ``MODEL.PARAM=VALUE``. Model names may hold dots."""
    target, equals, value = item.partition("=")
    model, dot, parameter = target.rpartition(".")
    if not equals or not dot or not model or not parameter:
        raise ConfigError(f"--set {item}: expected MODEL.PARAM=VALUE, as in --set smollm2-135m.n_ctx=4096")
    return model, parameter, value


def load(
    options: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Settings:
    """Return the settings from ``options`` (typed), the environment, the configuration file, and ``defaults``.

    Raises ConfigError that names the place and the fault.
    """
    environ = os.environ if environ is None else environ
    if HANDED_VARIABLE in environ:
        return taken_over(environ[HANDED_VARIABLE])
    given = params.from_plain(Settings, dict(options or {}), "options")
    spoken = params.from_environ(Settings, ENVIRONMENT_PREFIX, environ)
    path = given.get("config") or spoken.get("config")
    table = read_config(Path(path)) if path else {}
    filed = params.from_plain(Settings, table.get("service", {}), f"{path} [service]")
    settings = params.build(Settings, given, spoken, filed, defaults or {})
    settings.model_tables = tuple(table.get("models", ()))
    settings.overrides = overrides_in(environ)
    return settings


def handed_over(settings: Settings) -> str:
    """Return all of ``settings`` as text, for a process that is to have the same."""
    own = {name: getattr(settings, name) for name in params.params_of(Settings)}
    return json.dumps({"own": own, "models": settings.model_tables, "overrides": settings.overrides}, default=str)


def taken_over(text: str) -> Settings:
    """Return the settings that `handed_over` made a text of."""
    said = json.loads(text)
    settings = Settings(**said["own"])
    settings.model_tables, settings.overrides = tuple(said["models"]), tuple(said["overrides"])
    return settings


def overrides_in(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return what `modelyard serve` handed on of its ``--set``. Raises ConfigError."""
    try:
        items = json.loads(environ.get(SET_VARIABLE, "[]"))
    except ValueError:
        items = None
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise ConfigError(f"environment, {SET_VARIABLE}: must be a JSON list of MODEL.PARAM=VALUE strings")
    for item in items:
        split_override(item)
    return tuple(items)


def read_config(path: Path) -> JSONObject:
    """Return the tables of a configuration file: ``service`` (a table) and ``models`` (a list)."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    unknown = sorted(set(table) - {"service", "models"})
    if unknown:
        raise ConfigError(f"{path}: unknown table {unknown[0]!r}: expected [service] and [[models]]")
    models = table.get("models", [])
    if not isinstance(table.get("service", {}), dict) or not isinstance(models, list):
        raise ConfigError(f"{path}: expected [service] (once) and [[models]] (once a model)")
    for number, model in enumerate(models, 1):
        if not isinstance(model, dict) or not isinstance(model.get("name"), str) or not model["name"]:
            raise ConfigError(f'{path}: [[models]] number {number} has no name: add name = "..."')
    return table
