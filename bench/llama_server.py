"""llama.cpp's own server, which xllamacpp has within it, with SmolLM2 and the settings of our engine.

``python -m bench.llama_server PORT SLOTS``; SIGTERM ends it.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import xllamacpp
from modelyard.engines.llama_cpp import LlamaCppParams
from modelyard.engines.llama_server import Setup, server_params
from modelyard.models.catalog import Catalog

from .ours import SMOLLM2
from .places import ROOT


def main(port: int, slots: int) -> None:
    """Serve until SIGTERM."""
    entry = Catalog.load().get(SMOLLM2)
    assert entry is not None
    weights = Path(os.environ.get("MODELYARD_MODELS_DIRS", str(ROOT / "models"))) / str(entry.model_path)
    params = LlamaCppParams(model_name=SMOLLM2, engine="llama.cpp", limit_model_concurrency=slots)
    setup = Setup(params=params, weights=weights, adapters=[], projector=None, n_ctx=params.n_ctx)
    given = server_params(xllamacpp, setup, Path("unused.sock"), own_template=True)
    given.hostnames, given.port = ["127.0.0.1"], port
    given.n_threads_http = -1
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    server = xllamacpp.Server(given)
    signal.sigwait({signal.SIGTERM})
    del server


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
