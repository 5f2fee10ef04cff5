"""Modelyard, the Flask extension: adds the blueprints to an application, and changes nothing else.

    app = Flask(__name__)
    Modelyard(app, url_prefix="/ml/api", models=["smollm2-135m"])

No error handler, JSON provider or limit of the application is touched. Nothing starts before the
first request, or an explicit `Runtime.start`.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from flask import Blueprint, Flask, current_app, redirect, request

from ..blueprints.controller import controller_blueprint, instances_blueprint
from ..blueprints.health import health_blueprint
from ..blueprints.metrics import metrics_blueprint
from ..blueprints.openai.blueprint import openai_blueprint, paths_of_application
from ..blueprints.openai.passthrough import passthrough_blueprint
from ..blueprints.openapi.document import openapi_blueprint
from ..blueprints.openapi.page import docs_blueprint
from ..blueprints.pages.blueprint import pages_blueprint
from ..blueprints.request.problems import install_in_app
from ..blueprints.worker import worker_blueprint
from ..cluster.addresses import listening_address
from ..errors import ConfigError, Overloaded
from ..settings import loading, params
from ..settings.layers import LayerName, nearest
from ..settings.settings import CONTROLLERS, HOSTED, REMOTE, ROUTERS, UNKNOWN_PORT, Settings
from ..worker.protocol import StartCallback
from .runtime import Runtime

log = logging.getLogger(__name__)

KEY = "modelyard"


class Modelyard:
    """The extension.

    ``options`` are settings by name (`Settings`), stronger than the ``MODELYARD_...`` of ``app.config``.
    """

    def __init__(self, app: Flask | None = None, **options: Any) -> None:
        """Keep ``options``, for `init_app`; with ``app``, call it at once. ``options`` may be all of its arguments."""
        self._options = options
        if app is not None:
            self.init_app(app)

    def init_app(
        self,
        app: Flask,
        *,
        url_prefix: str | None = None,
        worker: bool | None = None,
        openai: bool | None = None,
        docs: bool | None = None,
        probes_prefix: str | None = None,
        subdomain: str | None = None,
        after_start: StartCallback | None = None,
        **options: Any,
    ) -> Runtime:
        """Add the blueprints to ``app`` and return the runtime, which ``app.extensions["modelyard"]`` holds.

        With ``worker`` false the worker API is left out; with ``openai`` OpenAI's API is under ``/v1`` of the prefix,
        with ``docs`` a page of all calls is at ``/docs`` of it, and with ``pages`` the web pages are at ``/ui``.
        ``/healthz``, ``/readyz`` and, where the setting ``metrics`` allows it, ``/metrics`` are under ``probes_prefix``
        (default: the API's prefix). ``subdomain`` is that of all calls, where the application matches subdomains. In
        each process ``after_start`` is called with the manager after the models were started or have failed. Raises
        ConfigError.
        """
        named: dict[str, Any] = {"url_prefix": url_prefix, "worker": worker, "openai": openai, "docs": docs}
        named |= {"probes_prefix": probes_prefix, "subdomain": subdomain, "after_start": after_start}
        given = {**_config_of(app), **self._options, **options, **{k: v for k, v in named.items() if v is not None}}
        blueprints = {name: given.pop(name, None) for name in ("probes_prefix", "subdomain")}
        blueprints["worker"] = given.pop("worker", True)
        with_openai = given.pop("openai", False)
        blueprints["docs"] = given.pop("docs", False)
        callback = given.pop("after_start", None)
        given["prefix"] = given.pop("url_prefix", given.get("prefix", "/api"))
        given.setdefault("instance", f"{app.import_name}-{zlib.crc32(app.root_path.encode()):08x}")
        # An application is a worker by default: it offers no registry to others unless its role says so.
        defaults = {"role": "worker", "port": UNKNOWN_PORT, "metrics": "off", "pages": False}
        loaded = loading.load(given, defaults=defaults, layer=LayerName.APPLICATION)
        if loaded.models is None and not loaded.model_tables:
            loaded.models = []
        loaded.place(REMOTE if loaded.registry and loaded.models == [] else HOSTED)
        openai_paths = [f"{loaded.prefix}/v1"] if with_openai else []
        pages_path = f"{loaded.prefix}/ui" if loaded.pages else None
        runtime = Runtime(loaded, after_start=callback)
        return attach(app, runtime, openai_paths=openai_paths, pages_path=pages_path, **blueprints)


def create_app(settings: Settings | None = None, address: Callable[[], str] | None = None) -> Flask:
    """Return the WSGI application of the role that ``settings`` (default: environment and file) name.

    ``address`` is that of `Runtime`. Builds objects only: models start with the first request, or with the server's
    hook. Raises ConfigError.
    """
    app = Flask("modelyard", static_folder=None, template_folder=None)
    # Without our hooks gunicorn listens on a port that the environment does not tell.
    settings = settings or loading.load(defaults={"port": UNKNOWN_PORT})
    is_router = settings.role in ROUTERS
    settings.pages = settings.pages and is_router
    runtime = Runtime(settings, address=address)
    install_in_app(app)
    openai_paths = paths_of_application(runtime.settings.prefix) if is_router else []
    pages_path = "/ui" if settings.pages else None
    attach(app, runtime, docs=True, probes_prefix="", openai_paths=openai_paths, pages_path=pages_path)
    if pages_path is not None:
        app.add_url_rule("/", "modelyard_pages_home", lambda: redirect(f"{request.script_root}{pages_path}/"))
    return app


def attach(
    app: Flask,
    runtime: Runtime,
    *,
    worker: bool = True,
    docs: bool = False,
    probes_prefix: str | None = None,
    subdomain: str | None = None,
    openai_paths: Sequence[str] = (),
    pages_path: str | None = None,
) -> Runtime:
    """Register the blueprints of a runtime with ``app``, and keep the runtime there.

    OpenAI's API is under each of ``openai_paths``, and the web pages are below ``pages_path``; with ``docs`` the page
    of all calls is beside the probes.
    """
    prefix = runtime.settings.prefix
    probes_prefix = prefix if probes_prefix is None else probes_prefix
    register = functools.partial(app.register_blueprint, subdomain=subdomain)
    app.extensions[KEY] = runtime
    health = health_blueprint(runtime, prefix, probes_prefix)
    _start_with_first_request(health, runtime)
    register(health)
    register(openapi_blueprint(prefix, probes_prefix))
    if docs:
        register(docs_blueprint(prefix, probes_prefix))
    if runtime.settings.metrics != "off":
        register(metrics_blueprint(runtime, probes_prefix))
    if worker and runtime.settings.role != "controller":
        register(worker_blueprint(runtime, prefix))
    if openai_paths:
        register(openai_blueprint(runtime, openai_paths))
        if runtime.settings.passthrough:
            register(passthrough_blueprint(runtime, openai_paths))
    if pages_path is not None:
        register(pages_blueprint(runtime, pages_path, f"{probes_prefix}/docs" if docs else None))
    if (cluster := runtime.cluster) is not None:
        settings, keys, metrics = runtime.settings, runtime.keys, runtime.metrics
        if settings.role in CONTROLLERS:
            register(controller_blueprint(lambda: cluster.registry, settings, prefix, keys=keys, metrics=metrics))
        elif cluster.view is not None:
            register(instances_blueprint(cluster.view.listed, settings, prefix, keys=keys, metrics=metrics))
    return runtime


def _start_with_first_request(blueprint: Blueprint, runtime: Runtime) -> None:
    started_in = 0

    @blueprint.before_app_request
    def start() -> None:
        nonlocal started_in
        if started_in != os.getpid():
            settings = runtime.settings
            is_unknown = settings.port == UNKNOWN_PORT and not settings.host.startswith("unix:")
            if is_unknown and (address := listening_address(request.environ)) is not None:
                runtime.listen_on(address[0] or settings.host, address[1])
            try:
                runtime.start()
            except Overloaded as error:  # a request of the application's own need not fail: the next one tries again
                log.warning("the models can't be started now: %s", error)
                return
            started_in = os.getpid()
            atexit.register(runtime.stop)


def current_modelyard() -> Runtime:
    """Return the runtime of the current application. Raises RuntimeError if the application has no Modelyard."""
    try:
        runtime: Runtime = current_app.extensions[KEY]
    except KeyError:
        raise RuntimeError("modelyard is not in this application: Modelyard(app) first") from None
    return runtime


def _config_of(app: Flask) -> dict[str, Any]:
    """Return the settings in the application's config, where they are named ``MODELYARD_NAME``.

    Raises ConfigError for a name that is not of a setting.
    """
    prefix = f"{loading.ENVIRONMENT_PREFIX}_"
    names = {f"{prefix}{name.upper()}": name for name in params.params_of(Settings)}
    given = [key for key in app.config if key.startswith(prefix)]
    if unknown := [key for key in given if key not in names]:
        hints = [f"app.config[{key!r}]: no such setting{nearest(key, names, prefix)}" for key in unknown]
        raise ConfigError("; ".join(hints))
    return {names[key]: app.config[key] for key in given}
