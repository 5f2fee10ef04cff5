"""Tells apart why a model did not start: too slow, network, a missing library, a bad file, anything else."""

from __future__ import annotations

import socket

import requests

from ..errors import BadModelFile, MissingLibrary, ModelyardError, NetworkFailure, StartFailed, StartTimeout


def told_apart(error: BaseException, model: str) -> ModelyardError:
    """Return ``error`` as one of ours, most specific first; one that is ours already stays as it is."""
    if isinstance(error, ModelyardError):
        return error
    subject = f"model {model!r} did not start"
    if isinstance(error, ImportError):
        return MissingLibrary(f"{subject}: {error}; install the library, or the extra that brings it")
    if isinstance(error, requests.RequestException | ConnectionError | socket.gaierror):
        return NetworkFailure(f"{subject}: the network failed: {error}")
    if isinstance(error, TimeoutError):
        return StartTimeout(f"{subject}: {str(error) or 'a time limit passed'}")
    if isinstance(error, OSError):
        return BadModelFile(f"{subject}: {error}")
    if isinstance(error, MemoryError):
        return StartFailed(f"{subject}: not enough memory")
    return StartFailed(f"{subject}: {type(error).__name__}: {error}")
