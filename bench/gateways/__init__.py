"""The gateways that are measured beside ours, each one process in front of one mock backend (`backend`).

LiteLLM and Portkey are what ours is compared with. The routers in Rust and nginx read little or nothing of a request:
they are ceilings.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from modelyard.settings.settings import ALLOCATOR

from ..peer.environment import Environment, NodeEnvironment
from ..places import run_folder
from ..processes import Server, free_port
from .backend import MODEL

CHAT_PATH = "/v1/chat/completions"
_REQUIREMENTS = Path(__file__).with_name("requirements")
_NO_KEY = "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY"


class Gateway(ABC):
    """One gateway. All its methods may raise PeerMissing or ServerFailed."""

    name: ClassVar[str]
    ready: ClassVar[str]
    """A path that is answered with 200 once it is ready."""
    path: ClassVar[str] = CHAT_PATH
    environment: ClassVar[Environment | NodeEnvironment | None] = None
    """What it is installed in; None for a program of the machine."""
    package: ClassVar[str] = ""
    """The package whose version is reported."""

    def install(self) -> None:
        """Make its environment unless that was done before."""
        if self.environment is not None:
            self.environment.install()

    def versions(self) -> Mapping[str, str]:
        """Return the version of its package."""
        return {} if self.environment is None else self.environment.versions([self.package])

    def headers(self, backend: int) -> Mapping[str, str]:
        """Return what its clients send in addition, with the backend on the port ``backend``."""
        return {}

    def environ(self) -> Mapping[str, str]:
        """Return the variables that it is started with."""
        return {}

    @abstractmethod
    def command(self, port: int, backend: int, folder: Path) -> Sequence[str]:
        """Return the command that serves on ``port``; its files are in ``folder``."""

    @contextlib.contextmanager
    def serving(self, backend: int) -> Iterator[Server]:
        """Run it in front of the backend on the port ``backend``; ready when entered."""
        folder, port = run_folder(f"gateway-{self.name}-{free_port()}"), free_port()
        command = self.command(port, backend, folder)
        with Server(self.name, command, port, self.environ(), folder / "log.txt") as server:
            server.wait_ready(self.ready, timeout=120)
            yield server


class Ours(Gateway):
    """The gateway of this checkout, with the engine openai, in ``workers`` processes of gevent."""

    name = "modelyard"
    ready = "/readyz"

    def __init__(self, workers: int = 1) -> None:
        """Serve from ``workers`` processes."""
        self._workers = workers

    def command(self, port: int, backend: int, folder: Path) -> Sequence[str]:
        """Return the command line that an operator would use."""
        config = folder / "modelyard.toml"
        config.write_text(_table(backend))
        options = ["--port", str(port), "--config", str(config), "--workers", str(self._workers), "--no-access-log"]
        options += ["--state-dir", str(folder / "state"), "--models-dirs", str(folder), "--http-threads", "gevent"]
        options += ["--threads", "1200", "--log-level", "warning"]
        return [sys.executable, "-m", "modelyard", "serve", "gateway", *options]

    def environ(self) -> Mapping[str, str]:
        """Return the variables that ``modelyard serve`` sets."""
        return ALLOCATOR


def _table(backend: int) -> str:
    fields: dict[str, object] = {"name": MODEL, "engine": "openai", "base_url": f"http://127.0.0.1:{backend}/v1"}
    fields |= {"limit_model_concurrency": 1100}
    return "[[models]]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in fields.items())


class LiteLLM(Gateway):
    """LiteLLM's proxy, one worker, no database."""

    name = "LiteLLM"
    ready = "/health/liveliness"
    environment = _LITELLM = Environment("bench-litellm", _REQUIREMENTS / "litellm.txt")
    package = "litellm"

    def command(self, port: int, backend: int, folder: Path) -> Sequence[str]:
        """Return its command, with a configuration of the mock's model."""
        address = f"http://127.0.0.1:{backend}/v1"
        model = {"model": f"openai/{MODEL}", "api_base": address, "api_key": "none"}
        config = folder / "litellm.yaml"
        config.write_text(
            json.dumps({"model_list": [{"model_name": MODEL, "litellm_params": model}]})
        )  # YAML has all of JSON
        program = str(self._LITELLM.folder / "bin" / "litellm")
        return [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]

    def environ(self) -> Mapping[str, str]:
        """Let it fetch nothing and log errors alone."""
        return {
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
            "LITELLM_MODE": "PRODUCTION",
            _NO_KEY: "true",
        }


class Portkey(Gateway):
    """Portkey's gateway, on node."""

    name = "Portkey"
    ready = "/"
    environment = _PORTKEY = NodeEnvironment("bench-portkey", _REQUIREMENTS / "portkey.json")
    package = "@portkey-ai/gateway"

    def headers(self, backend: int) -> Mapping[str, str]:
        """Name the backend, as each request to it does."""
        address = f"http://127.0.0.1:{backend}/v1"
        return {"x-portkey-provider": "openai", "x-portkey-custom-host": address, "Authorization": "Bearer none"}

    def command(self, port: int, backend: int, folder: Path) -> Sequence[str]:
        """Return its command, without its console."""
        script = self._PORTKEY.modules / "@portkey-ai" / "gateway" / "build" / "start-server.js"
        return ["node", str(script), "--headless", f"--port={port}"]


class RustRouter(Gateway):
    """A router in Rust: it reads the model of a request, and passes on the bytes."""

    ready = "/health"
    environment: ClassVar[Environment]
    arguments: ClassVar[Sequence[str]]

    def command(self, port: int, backend: int, folder: Path) -> Sequence[str]:
        """Return its command, with the backend as its only worker."""
        python = self.environment.python
        place = ["--host", "127.0.0.1", "--port", str(port), "--worker-urls", f"http://127.0.0.1:{backend}"]
        place += ["--prometheus-port", str(free_port())]
        return [python, "-m", *self.arguments, *place, "--policy", "round_robin"]


class VllmRouter(RustRouter):
    """vLLM's router."""

    name = "vllm-router"
    package = "vllm-router"
    environment = Environment("bench-vllm-router", _REQUIREMENTS / "vllm-router.txt")
    arguments = ("vllm_router.launch_router",)


class Smg(RustRouter):
    """Shepherd Model Gateway."""

    name = "smg"
    package = "smg"
    environment = Environment("bench-smg", _REQUIREMENTS / "smg.txt")
    arguments = ("smg.cli", "launch")


class Nginx(Gateway):
    """nginx with one worker, and connections to the backend that are kept."""

    name = "nginx"
    ready = "/v1/models"

    def command(self, port: int, backend: int, folder: Path) -> Sequence[str]:
        """Return its command, with a configuration that passes everything on as it comes."""
        config = folder / "nginx.conf"
        config.write_text(
            f"""daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
            {"user root;" if os.geteuid() == 0 else ""}
            events {{ worker_connections 4096; }}
            http {{
                access_log off;
                client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
                uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi; client_body_buffer_size 256k;
                upstream backend {{ server 127.0.0.1:{backend}; keepalive 64; keepalive_requests 1000000; }}
                server {{
                    listen 127.0.0.1:{port};
                    keepalive_requests 1000000;
                    location / {{
                        proxy_pass http://backend;
                        proxy_http_version 1.1;
                        proxy_set_header Connection "";
                        proxy_buffering off;
                    }}
                }}
            }}
            """
        )
        return ["nginx", "-p", str(folder), "-c", str(config)]


PEERS: tuple[Gateway, ...] = (LiteLLM(), Portkey(), VllmRouter(), Smg(), Nginx())


@contextlib.contextmanager
def mock_backend() -> Iterator[Server]:
    """Run the mock in the body of a ``with``."""
    port = free_port()
    command = [sys.executable, "-m", "bench.gateways.backend", str(port)]
    with Server("the mock backend", command, port, {}, run_folder("mock") / f"log-{port}.txt") as server:
        server.wait_ready("/v1/models")
        yield server
