"""Why a model did not start is told apart, so that a person knows what to do."""

from __future__ import annotations

import socket

import pytest
import requests
from modelyard.errors import BadModelFile, ConfigError, MissingLibrary, NetworkFailure, StartFailed, StartTimeout
from modelyard.worker.worker import start_error


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (TimeoutError(), StartTimeout, "a time limit passed"),
        (TimeoutError("the backend sleeps"), StartTimeout, "the backend sleeps"),
        (ConnectionRefusedError(111, "refused"), NetworkFailure, "the network failed"),
        (requests.ConnectionError("no route"), NetworkFailure, "no route"),
        (requests.Timeout("slow"), NetworkFailure, "slow"),
        (ImportError("No module named 'torch'"), MissingLibrary, "'torch'; install the library"),
        (ModuleNotFoundError("No module named 'torch'"), MissingLibrary, "'torch'; install the library"),
        (FileNotFoundError(2, "No such file", "x.gguf"), BadModelFile, "x.gguf"),
        (PermissionError(13, "denied", "x.gguf"), BadModelFile, "denied"),
        (OSError("cut short"), BadModelFile, "cut short"),
        (MemoryError(), StartFailed, "not enough memory"),
        (RuntimeError("odd"), StartFailed, "RuntimeError: odd"),
        (KeyError("x"), StartFailed, "KeyError: 'x'"),
        (SystemExit(3), StartFailed, "SystemExit: 3"),
    ],
    ids=lambda value: value.__class__.__name__ if isinstance(value, BaseException) else None,
)
def test_each_kind_of_failure_is_told_with_the_model_and_the_cause(error, kind, says):
    found = start_error(error, "m")
    assert type(found) is kind
    assert str(found).startswith("model 'm' did not start: ")
    assert says in str(found)


def test_a_name_that_can_not_be_resolved_is_not_taken_for_a_bad_file():
    assert type(start_error(socket.gaierror(-2, "Name or service not known"), "m")) is NetworkFailure


@pytest.mark.parametrize("kind", [BadModelFile, StartTimeout, ConfigError])
def test_an_error_of_ours_stays_as_it_is(kind):
    error = kind("told already")
    assert start_error(error, "m") is error
