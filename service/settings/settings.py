"""The settings of a service: roles, addresses, folders, limits. Each is declared once, like a model's parameters.

`loading` reads them from the command line, the environment and the configuration file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ConfigError
from ..types import JSONObject
from .checks import check_together, checked_tracing
from .folders import expanded, home_folder
from .layers import Origin
from .loopback import is_loopback_host, loopback_address
from .names import Names
from .params import param
from .passthrough import PassThrough

ROLES = ("standalone", "worker", "controller", "gateway")
OWNERS = ("standalone", "worker")
"""The roles whose process has models."""
CONTROLLERS = ("standalone", "controller")
"""The roles that offer the registry over HTTP."""
ROUTERS = ("standalone", "gateway")
"""The roles that also answer with models of other processes."""
ALLOCATOR = {"GLIBC_TUNABLES": "glibc.malloc.tcache_max=128"}
"""Environment of the processes that we start. glibc then caches fewer freed blocks a thread: every stream has a thread,
and each kept 16 KB otherwise."""
INLINE, HOSTED, REMOTE = PLACEMENTS = ("inline", "hosted", "remote")
"""Where the models are: in the process that answers, in a separate process beside it, or at other services."""
DEFAULT_PORT = 8000
UNKNOWN_PORT = 0
"""The port of an application, until its server or its first request names one."""
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
HOW_TO_CLOSE_THE_DOOR = (
    "make tokens (modelyard token new --file FILE) and set --tokens-file FILE, or make an API key (modelyard key new), "
    "listen on 127.0.0.1 behind a proxy with authentication, or set --insecure"
)
"""What to do about a service that everybody may use."""


@dataclass
class Settings:
    """The settings of one service process."""

    role: str = param("standalone", help="what this process is", choices=ROLES)
    placement: str | None = param(
        None,
        help="where the models are: inline (in the one process that answers), hosted (in a separate process, for "
        "any number of processes), remote (at other services, found in the registry); default: inline for one process "
        "of modelyard serve, hosted for several, with gevent and in a Flask application, remote in one with a registry "
        "and without models",
        choices=PLACEMENTS,
    )
    host_timeout: float = param(10.0, help="seconds a request waits for a model host that is starting", min=0, max=600)
    host: str = param(
        "127.0.0.1",
        help="address to listen on, or unix:/PATH; one beyond loopback needs tokens, networks or --insecure",
    )
    port: int = param(DEFAULT_PORT, help="port to listen on", min=1, max=65535)
    prefix: str = param("/api", help="path that the worker's calls stand under")
    advertise: str | None = param(
        None, help="address at which others reach this process, with the prefix; default: found automatically"
    )
    registry: str | None = param(
        None,
        help="where instances are registered: a controller's address (several, comma-separated), or a store: sqlite:, "
        "postgresql:, mysql:, redis:, memory:; default: a file for standalone and controller, none for worker and "
        "gateway",
        tags=["privacy"],
    )
    key_store: str | None = param(
        None,
        help="where API keys are: a store as for registry, or none for no keys; default: the store of the registry, or "
        "without one a file in the folder of this service",
        tags=["privacy"],
    )
    heartbeat_timeout: float = param(
        60.0, help="seconds without a heartbeat until an instance counts as unhealthy", min=0.2, max=86_400
    )
    registry_refresh: float = param(2.0, help="seconds between two reads of the registry", min=0.05, max=3600)
    connect_timeout: float = param(3.0, help="seconds a remote worker gets to accept a connection", min=0.05, max=600)
    read_timeout: float = param(
        60.0, help="seconds of silence until the answer of a remote worker counts as lost", min=0.1, max=86_400
    )
    remote_headers: list[str] = param(
        [],
        help="headers that are sent to remote workers and controllers: NAME=VALUE, comma-separated",
        tags=["privacy"],
    )
    session_affinity: bool = param(
        True, help="send the requests of one session to one instance of the model, which has their prompt in its cache"
    )
    remote_ca: str | None = param(None, help="file or folder of CA certificates for https to other services")
    config: str | None = param(None, help="configuration file (TOML)")
    models_dirs: list[str] = param([], help="folders of weights, comma-separated; modelyard pull writes into the first")
    state_dir: str | None = param(None, help="folder for locks and for the list of models that ran")
    models: list[str] | None = param(
        None, help="names of the models to start, comma-separated; default: those of the configuration"
    )
    memory_budget: int | None = param(
        None,
        help="bytes that the models of this process may take together, as in 12GB: the model that was not used for the "
        "longest time makes room for another; default: no limit",
        min=1_000_000,
        max=2**50,
        tags=["size"],
    )
    memory_turn: float = param(
        10.0,
        help="seconds that a model which is in use keeps its memory while requests for another one wait for it",
        min=0,
        max=3600,
    )
    aliases: dict[str, str] = param({}, help="other names of models: ALIAS=MODEL, comma-separated")
    default_models: dict[str, str] = param(
        {}, help="models of requests that name none, by type (llm, text2vec, reranker): TYPE=MODEL, comma-separated"
    )
    unknown_models: str = param(
        "refuse",
        help="what becomes of requests for text or rankings by a model that does not exist: refuse, or default (the "
        "default model of the type answers)",
        choices=("refuse", "default"),
    )
    fallbacks: dict[str, list[str]] = param(
        {},
        help="models that answer, in their order, where a model has no usable instance, or the prompt is longer than "
        "its context: MODEL=MODEL[+MODEL], comma-separated; not for embeddings",
    )
    fallback_overloaded: bool = param(
        False, help="whether the fallbacks answer too where all instances of a model are overloaded"
    )
    instance: str | None = param(
        None, help="name of the folder of this service in the state folder; default: ROLE-PORT"
    )
    fresh: bool = param(False, help="forget which models ran and what was set over HTTP")
    insecure: bool = param(False, help="without tokens and trusted networks: allow every call from every address")
    tokens: list[str] = param(
        [], help="accepted tokens, each NAME SCOPE[+SCOPE] SHA256, comma-separated", tags=["privacy"]
    )
    tokens_file: str | None = param(
        None, help="file of accepted tokens, one a line (modelyard token); read again when it changes"
    )
    trusted_networks: list[str] = param(
        [], help="scopes of addresses without a token: NETWORK=SCOPE[+SCOPE], comma-separated"
    )
    allowed_networks: list[str] = param(
        [], help="networks whose addresses may be registered with a token, comma-separated; default: all"
    )
    cors_origins: list[str] = param(
        [],
        help="origins of web pages that may call OpenAI's API: SCHEME://HOST[:PORT], comma-separated, or * for all; "
        "default: none",
    )
    token: str | None = param(
        None,
        help="token that this process sends to other services; not on the command line",
        tags=["privacy", "secret"],
    )
    token_file: str | None = param(None, help="file with the token that this process sends; read again when it changes")
    on_load_failure: str = param(
        "stay",
        help="what a failed start of a model does to a process with inline models; others stay",
        choices=("stay", "exit"),
    )
    workers: int = param(1, help="worker processes; with several, the models are in a separate process", min=1, max=256)
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
    drain_timeout: float = param(30.0, help="seconds a stop waits for running answers", min=0, max=3600)
    write_timeout: float = param(
        30.0, help="seconds a client may take to accept a piece before it counts as gone", min=1, max=3600
    )
    receive_timeout: float = param(
        30.0, help="seconds a client may take to send a request, head and body", min=0.5, max=3600
    )
    max_body_bytes: int = param(16 * 1024 * 1024, help="largest request body, in bytes", min=1024, max=1024**3)
    first_output_timeout: float = param(
        5.0, help="seconds until headers are sent without a first piece", min=0.1, max=600
    )
    silence_timeout: float = param(
        10.0, help="seconds of silence in a stream until an empty chunk is sent", min=0.1, max=600
    )
    log_level: str = param("info", help="least severe message that is logged", choices=LOG_LEVELS)
    log_file: str | None = param(None, help="file for the log; default: standard error")
    metrics: str = param(
        "guarded",
        help="who may read /metrics: guarded (tokens and networks with the scope metrics or admin), open (everybody), "
        "off (nobody, which is the default in a Flask application)",
        choices=("guarded", "open", "off"),
    )
    pages: bool = param(
        True,
        help="web pages at /ui of a gateway or standalone service; in a Flask application, where they are off unless "
        "set, at /ui below its prefix",
    )
    pages_secret: str | None = param(
        None,
        help="what signs the cookie of a sign-in, 32 characters at least; services behind one balancer need the same; "
        "default: a file in the folder of this service; not on the command line",
        tags=["privacy", "secret"],
    )
    pages_bodies: bool = param(
        False, help="whether pages show the beginnings of prompts and answers of a model's last requests"
    )
    access_log: bool = param(True, help="log one JSON line a request, without prompts and answers")
    tracing: str | None = param(
        None,
        help="destination of spans: file:PATH (JSON lines), otlp or otlp:URL (a collector), host (the process's own "
        "OpenTelemetry), module:Class (a SpanExporter); default: nowhere",
    )
    tracing_content: bool = param(False, help="whether spans have prompts and answers")
    tracing_sample: float = param(1.0, help="share of the traces begun in this process that is kept", min=0, max=1)

    overrides: tuple[str, ...] = field(default=(), kw_only=True)
    """``MODEL.PARAM=VALUE`` from the command line."""

    model_tables: tuple[JSONObject, ...] = field(default=(), kw_only=True)
    """``[[models]]`` of the configuration file, unchecked: each engine declares its own parameters."""

    passthrough: tuple[PassThrough, ...] = field(default=(), kw_only=True)
    """``[[passthrough]]`` of the configuration file."""

    origins: Mapping[str, Origin] = field(default_factory=dict, kw_only=True, compare=False, repr=False)
    """Where each value comes from that is not the default."""

    def __post_init__(self) -> None:
        self.prefix = self.prefix.rstrip("/")
        self.tracing = checked_tracing(self.tracing)
        if self.placement is None and (self.workers > 1 or self.http_threads == "gevent"):
            self.placement = HOSTED
        if self.placement == REMOTE and self.role in OWNERS:
            self.role = "gateway"
        self.names  # noqa: B018 - raises ConfigError
        check_together(self)

    @property
    def names(self) -> Names:
        """What the names of models in requests mean. Raises ConfigError."""
        return Names(
            self.aliases,
            self.default_models,
            self.fallbacks,
            serves_unknown=self.unknown_models == "default",
            spills=self.fallback_overloaded,
        )

    @property
    def owns_models(self) -> bool:
        """Whether this process has models."""
        return self.role in OWNERS and self.placement != HOSTED

    @property
    def shares_service(self) -> bool:
        """Whether other processes may belong to this service: its workers, or the web processes of a model host."""
        return not self.owns_models or self.host.startswith("unix:")

    def place(self, placement: str) -> None:
        """Set the placement, unless it is set. Raises ConfigError."""
        if self.placement is None:
            self.placement = placement
            self.__post_init__()

    @property
    def is_hosted(self) -> bool:
        """Whether the models of this service are in a separate process, which all of its processes reach."""
        return self.role in OWNERS and self.placement == HOSTED

    @property
    def has_backends(self) -> bool:
        """Whether each process of this service has the models of its own that other servers compute, and no others."""
        return self.role == "gateway"

    @property
    def routes(self) -> bool:
        """Whether this process also answers with models of other processes."""
        return self.role in ROUTERS

    @property
    def requires_keys(self) -> bool:
        """Whether this process requires a key as soon as there is one.

        Workers and controllers that share the store of the registry accept its keys, and require none: their callers
        are other processes of the cluster.
        """
        return self.routes or bool(self.key_store) or not self.registry

    @property
    def models_paths(self) -> tuple[Path, ...]:
        """The models folders, absolute; weights are pulled into the first. Raises ConfigError if there can be none."""
        if self.models_dirs:
            return tuple(expanded(folder) for folder in self.models_dirs)
        return (home_folder("XDG_DATA_HOME", ".local/share", "--models-dirs") / "models",)

    @property
    def state_path(self) -> Path:
        """The state folder, absolute. Raises ConfigError if there can be none."""
        if self.state_dir:
            return expanded(self.state_dir)
        return home_folder("XDG_STATE_HOME", ".local/state", "--state-dir")

    @property
    def instance_name(self) -> str:
        """The name of this service's folder in the state folder."""
        return self.instance or f"{self.role}-{self.port or DEFAULT_PORT}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address. Names count if they are localhost, or in the hosts file."""
        return self.host.startswith("unix:") or is_loopback_host(self.host)

    @property
    def address(self) -> str:
        """Host and port, as in a URL, or ``unix:`` and the path of a socket."""
        host = self.bind_host
        if host.startswith("unix:"):
            return host
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def bind_host(self) -> str:
        """The host to listen on; for a name of the hosts file its address, as gunicorn finds addresses of IPv4 only."""
        return loopback_address(self.host) or self.host.strip("[]")

    def refuse_open_door(self, *, has_keys: bool = False) -> None:
        """Raise ConfigError when other machines could use the service and no setting, nor an API key, allows it."""
        if self.is_loopback or self.insecure or self.tokens or self.tokens_file or self.trusted_networks or has_keys:
            return
        raise ConfigError(
            f"{self.host} can be reached from other machines, and no token is required: {HOW_TO_CLOSE_THE_DOOR}"
        )
