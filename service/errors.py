"""The errors of modelyard, and what each means to a client.

    ModelyardError
    ├── InvalidRequest            422  the request is not valid; ``errors`` names the fields
    │   ├── PromptTooLong              the prompt leaves no room in the model's context
    │   └── InputTooLong               a text to embed is longer than the model accepts
    ├── RequestTooLarge           413  the body is over the limit
    ├── Unauthorized              401  no token, or an unknown one
    ├── Forbidden                 403  the token, or the address, lacks a scope
    ├── UnknownModel              404  there is no model of that name
    ├── Unsupported               400  the model exists, but not for this kind of call
    ├── Conflict                  409  it runs already, or this process has no room for it
    ├── Unavailable               503  try again after ``retry_after`` seconds, or at once at another instance
    │   ├── Overloaded                 all slots are busy and the line is full or too slow
    │   ├── NotReady                   the model is starting, stopped or failed
    │   ├── EngineLost                 the process of an isolated engine has ended; no piece has come
    │   ├── Draining                   this process is about to end
    │   ├── WorkerUnreachable          a remote worker did not answer, or not validly; no piece has come
    │   │   ├── NotConnected           there was no connection: the worker has not seen the request
    │   │   └── WorkerSilent           it was silent for too long, and may still be computing
    │   ├── RegistryUnavailable        neither a controller nor a store answers
    │   └── RateLimited           429  a limit of the API key, or of an address, is reached
    ├── WorkerLost                502  a remote worker broke off in the middle of its answer
    ├── Cancelled                 499  the client has gone
    ├── EngineError               500  the engine broke while it answered
    ├── StartFailed               500  a model could not be started
    │   ├── StartTimeout               it took longer than ``start_timeout``
    │   ├── NetworkFailure             something it needs over the network did not answer
    │   ├── MissingLibrary             its engine's library is not installed
    │   └── BadModelFile               its weights are missing, unreadable, or of another format
    ├── PullFailed                     weights could not be fetched
    │   ├── ChecksumMismatch           the downloaded file is not the expected one
    │   └── DiskFull                   the disk has no room for them
    └── ConfigError                    the configuration is not valid

Only ``Unavailable`` is always safe to repeat: nothing was computed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import copy
from typing import ClassVar, TypedDict, TypeVar

E = TypeVar("E", bound="ModelyardError")


class FieldError(TypedDict):
    """One field at fault: its path in the request, and what is wrong with it."""

    field: str
    message: str


class ModelyardError(Exception):
    """The base of all errors of modelyard; its text is written for people."""

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "The request failed"

    def __init__(
        self, message: str = "", errors: Sequence[FieldError] = (), *, backend_code: str | None = None
    ) -> None:
        super().__init__(message)
        self.errors = list(errors)
        """The fields at fault; empty where no field is."""
        self.backend_code = backend_code
        """The code of the server behind the engine ``openai``: clients of OpenAI's API get it in place of ours."""

    def with_words(self: E, words: str) -> E:
        """Return the same error with more words at the end of its text."""
        error = copy(self)
        error.args = (f"{self}; {words}",)
        return error


class InvalidRequest(ModelyardError):
    """The request is not valid. To repeat it unchanged never helps."""

    code = "invalid_request"
    status = 422
    title = "The request is not valid"

    @classmethod
    def of_fields(cls, errors: Sequence[FieldError]) -> InvalidRequest:
        """Return one error whose text names every field in ``errors``."""
        return cls("; ".join(f"{e['field']}: {e['message']}" for e in errors), errors)

    @classmethod
    def of_field(cls, field: str, message: str) -> InvalidRequest:
        """Return the error for one field."""
        return cls.of_fields([{"field": field, "message": message}])


class PromptTooLong(InvalidRequest):
    """The prompt does not fit into the model's context."""

    code = "prompt_too_long"
    title = "The prompt is longer than the model's context"


class InputTooLong(InvalidRequest):
    """One of the texts is longer than the model accepts."""

    code = "input_too_long"
    title = "A text is longer than the model accepts"


class RequestTooLarge(ModelyardError):
    """The body is larger than this service reads."""

    code = "request_too_large"
    status = 413
    title = "The body is too large"


class Unauthorized(ModelyardError):
    """The request has no token, or an unknown one; the text names the scope that is needed."""

    code = "unauthorized"
    status = 401
    title = "A token is needed"


class Forbidden(ModelyardError):
    """The token is known, but not for this; the text names the scope or the limit."""

    code = "forbidden"
    status = 403
    title = "That is not allowed"


class UnknownModel(ModelyardError):
    """There is no model of that name (and type)."""

    code = "unknown_model"
    status = 404
    title = "There is no such model"

    @classmethod
    def among(cls, keys: Collection[str], model: str, worker_type: str | None = None) -> UnknownModel:
        """Return the error for a model, of one type if given, that is not among the worker ``keys``."""
        of_type = f" of type {worker_type}" if worker_type else ""
        present = f"; there are {', '.join(sorted(keys))}" if keys else "; none is here at all"
        return cls(f"there is no model {model!r}{of_type} here{present}")


class Unsupported(ModelyardError):
    """The model does not support this kind of call."""

    code = "unsupported"
    status = 400
    title = "The model can't do that"


class Conflict(ModelyardError):
    """The request conflicts with the models that run."""

    code = "conflict"
    status = 409
    title = "The request conflicts with the models that run"


class Unavailable(ModelyardError):
    """Nothing was computed; trying again after ``retry_after`` seconds is safe."""

    code = "unavailable"
    status = 503
    title = "Not available now"

    def __init__(self, message: str, retry_after: int = 1, load: str | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.load = load
        """The state of the model's gate: the value of ``Modelyard-Load``."""


class Overloaded(Unavailable):
    """All slots are busy, and the line is full or did not move in time."""

    code = "overloaded"
    title = "Too many requests at once"


class NotReady(Unavailable):
    """The model is starting, stopping, stopped, or its start failed."""

    code = "not_ready"
    title = "The model is not ready"


class EngineLost(Unavailable):
    """The process of an isolated engine ended before the first piece of an answer; the text says how."""

    code = "engine_lost"
    title = "The process of the model has ended"


class Draining(Unavailable):
    """The process takes no new work."""

    code = "draining"
    title = "This process is about to end"


class WorkerUnreachable(Unavailable):
    """A remote worker refused or broke the connection, was silent, or sent an invalid answer; no piece has come."""

    code = "worker_unreachable"
    title = "A worker does not answer"


class NotConnected(WorkerUnreachable):
    """There was no connection to a remote worker: it has not seen the request."""


class WorkerSilent(WorkerUnreachable):
    """A remote worker sent nothing for longer than ``read_timeout``: it may still be computing."""


class RegistryUnavailable(Unavailable):
    """The store, or every controller, does not answer."""

    code = "registry_unavailable"
    title = "The registry does not answer"


class RateLimited(Unavailable):
    """A limit of the API key, or of an address, is reached; the text names it."""

    code = "rate_limited"
    status = 429
    title = "A limit of the key is reached"

    def __init__(
        self, message: str, retry_after: int = 1, load: str | None = None, *, is_hopeless: bool = False
    ) -> None:
        super().__init__(message, retry_after, load)
        self.is_hopeless = is_hopeless
        """Whether the request is larger than the limit, so that a repetition never helps."""


class WorkerLost(ModelyardError):
    """A remote worker broke off its answer, which is incomplete. The request is never repeated automatically."""

    code = "worker_lost"
    status = 502
    title = "A worker broke off its answer"


class Cancelled(ModelyardError):
    """The client has gone."""

    code = "cancelled"
    status = 499
    title = "The client has gone"


class EngineError(ModelyardError):
    """The engine broke while it answered. Part of the answer may have been sent."""

    code = "engine_error"
    title = "The engine failed"


class StartFailed(ModelyardError):
    """A model could not be started; the text says why."""

    code = "start_failed"
    title = "The model did not start"


class StartTimeout(StartFailed):
    """The start took longer than ``start_timeout``."""

    code = "start_timeout"


class NetworkFailure(StartFailed):
    """A server that the model needs did not answer."""

    code = "network_failure"


class MissingLibrary(StartFailed):
    """The engine's library is not installed; the text names the extra that installs it."""

    code = "missing_library"


class BadModelFile(StartFailed):
    """The weights are missing, unreadable, truncated, or of another format."""

    code = "bad_model_file"


class PullFailed(ModelyardError):
    """Weights could not be fetched; no incomplete file is left."""

    code = "pull_failed"


class ChecksumMismatch(PullFailed):
    """The downloaded file does not have the checksum of the catalogue."""

    code = "checksum_mismatch"


class DiskFull(PullFailed):
    """The disk has no room for the weights; the text has the size that is needed."""

    code = "disk_full"


class ConfigError(ModelyardError):
    """The configuration is not valid; the text names the place and the value."""

    code = "config_error"


def not_callable(keys: Collection[str], model: str, types: Collection[str]) -> Unsupported | UnknownModel:
    """Return the error for a call of a model as one of ``types``, none of which is among the worker ``keys``.

    It is `Unsupported` if the model has another type, and `UnknownModel` if it is not among the keys.
    """
    present = [key.rpartition("@")[2] for key in keys if key.rpartition("@")[0] == model]
    if not present:
        return UnknownModel.among(keys, model)
    return Unsupported(f"model {model!r} is of type {', '.join(present)}: this call needs {' or '.join(types)}")
