"""Protocol between the supervisor and its workers: JSON-RPC 2.0, one message per line.

::

    supervisor -> worker, on its standard input     notification  configure(WorkerConfig), the first line
                                                    request       reload(ReloadParams) -> ReloadResult
                                                    request       drain(NoParams) -> NoResult
                                                    request       promote(PromoteParams) -> ReloadResult
                                                    request       stats(NoParams) -> WorkerStats
                                                    requests of a shadow and of a canary, see ``candidate``
                                                    request       drift(NoParams) -> DriftCounts
    worker -> supervisor, on its standard output    notification  serving(ModelIdentity)

Each method is a constant of this module that names the types of its parameters and its result. A message that is not
valid is answered with a JSON-RPC error and does not end a process. Errors and notifications are never answered.
"""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from polyhead_server.candidate.parameters import CanaryCounts, CanaryParams, CandidateBundle, SamplingParams
from polyhead_server.errors import StartupError
from polyhead_server.json_dataclasses import Values, from_json, to_json
from polyhead_server.process_reports import DriftCounts, ModelIdentity, ReloadResult, WorkerStats
from polyhead_server.settings import Settings

# The labels of a large model make long lines.
MAX_LINE_BYTES = 64 * 2**20

# Codes of JSON-RPC 2.0.
PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
# The operation was carried out and failed; the first code of the range that JSON-RPC reserves for servers.
OPERATION_FAILED = -32000

P = TypeVar("P")
R = TypeVar("R")


class RpcError(Exception):
    """An error as JSON-RPC transmits it.

    Attributes:
        code: One of the codes above.
        message: Why the request failed.
        request_id: Id of the request; None if it is unknown.
    """

    def __init__(self, code: int, message: str, request_id: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.request_id = request_id


@dataclass(frozen=True)
class Request:
    """A received request, or a notification if it has no id."""

    method: str
    params: Values
    id: int | None = None


@dataclass(frozen=True)
class Response:
    """A received response: a result, or an error. An error has no id if the request could not be read."""

    id: int | None
    result: Values | None = None
    error: RpcError | None = None


@dataclass(frozen=True)
class Method(Generic[P, R]):
    """A remote method: its name and the dataclasses of its parameters and its result."""

    name: str
    params: type[P]
    result: type[R]

    def params_of(self, request: Request) -> P:
        """Returns the parameters of a request for this method.

        Raises:
            RpcError: They are not the parameters of this method.
        """
        try:
            return cast(P, from_json(self.params, request.params))
        except (KeyError, TypeError, ValueError, OverflowError, StartupError) as error:
            raise RpcError(INVALID_PARAMS, f"invalid parameters of {self.name}: {error}", request.id) from error

    def result_of(self, response: Response) -> R:
        """Returns the result in a response to this method.

        Raises:
            RpcError: The response is an error, or not a result of this method.
        """
        if response.error:
            raise response.error
        try:
            return cast(R, from_json(self.result, response.result))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise RpcError(INVALID_REQUEST, f"invalid result of {self.name}: {error}", response.id) from error


@dataclass(frozen=True)
class NoParams:
    """Parameters of a method that takes none."""


@dataclass(frozen=True)
class NoResult:
    """Result of a method that returns nothing, and of a notification."""


@dataclass(frozen=True)
class ReloadParams:
    """Parameters of ``reload``.

    Attributes:
        force: Accept a model that is incompatible with the serving one.
    """

    force: bool


@dataclass(frozen=True)
class PromoteParams:
    """Parameters of ``promote``.

    Attributes:
        candidate: The bundle.
        force: Accept a model that is incompatible with the serving one.
    """

    candidate: CandidateBundle
    force: bool


class Role(enum.StrEnum):
    """The part that a process plays: a whole server, or one of the parts of ``--fronts``."""

    WORKER = "worker"
    FRONT = "front"
    ENGINE = "engine"


@dataclass(frozen=True)
class WorkerConfig:
    """Configuration of a worker process.

    Attributes:
        settings: Settings of the server.
        cores: The cores to which the worker is pinned; empty if the workers share a CPU quota instead of a machine.
        identity: Identity of the serving model, which the worker's model must be compatible with; None if no worker
            serves yet.
        drained: Whether an operator has drained the server.
        metrics_folder: Directory of the files in which all workers count; empty without --metrics-listen.
        role: The part that the process plays.
        engine_socket: Socket of the engine process; empty without --fronts.
        bundle: The bundle that the server has promoted to; None for that of the settings.
    """

    settings: Settings
    cores: tuple[int, ...] = ()
    identity: ModelIdentity | None = None
    drained: bool = False
    metrics_folder: str = ""
    role: Role = Role.WORKER
    engine_socket: str = ""
    bundle: Path | None = None


CONFIGURE = Method("configure", WorkerConfig, NoResult)
SERVING = Method("serving", ModelIdentity, NoResult)
RELOAD = Method("reload", ReloadParams, ReloadResult)
PROMOTE = Method("promote", PromoteParams, ReloadResult)
DRAIN = Method("drain", NoParams, NoResult)
STATS = Method("stats", NoParams, WorkerStats)
SAMPLE = Method("sample", SamplingParams, NoResult)
SET_CANARY = Method("set_canary", CanaryParams, NoResult)
DRAIN_CANARY = Method("drain_canary", NoParams, NoResult)
CANARY_COUNTS = Method("canary_counts", NoParams, CanaryCounts)
DRIFT = Method("drift", NoParams, DriftCounts)


def encode_request(method: Method[P, Any], params: P, request_id: int) -> bytes:
    """Encodes a request as a line."""
    return _line(method=method.name, params=to_json(params), id=request_id)


def encode_notification(method: Method[P, Any], params: P) -> bytes:
    """Encodes a notification, which is not answered, as a line."""
    return _line(method=method.name, params=to_json(params))


def encode_result(result: Any, request_id: int | None) -> bytes:
    """Encodes the result of a request, a dataclass, as a line."""
    return _line(result=to_json(result), id=request_id)


def encode_error(error: RpcError) -> bytes:
    """Encodes an error as a line."""
    return _line(error={"code": error.code, "message": error.message}, id=error.request_id)


def decode(line: bytes) -> Request | Response:
    """Decodes a line.

    Raises:
        RpcError: It is not a JSON-RPC 2.0 message.
    """
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RpcError(PARSE_ERROR, f"not a line of JSON: {error}") from error
    request_id = values.get("id") if isinstance(values, dict) else None
    if request_id is not None and type(request_id) is not int:
        raise RpcError(INVALID_REQUEST, "an id must be a whole number")
    match values:
        case {"jsonrpc": "2.0", "method": str(method), **others}:
            params = others.get("params", {})
            if not isinstance(params, dict):
                raise RpcError(INVALID_PARAMS, f"parameters of {method} must be an object", request_id)
            return Request(method, params, request_id)
        case {"jsonrpc": "2.0", "error": {"code": int(code), "message": str(message)}, "id": _}:
            return Response(request_id, error=RpcError(code, message, request_id))
        case {"jsonrpc": "2.0", "result": dict(result), "id": int()}:
            return Response(request_id, result=result)
        case _:
            raise RpcError(INVALID_REQUEST, "not a JSON-RPC 2.0 message", request_id)


def _line(**values: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **values}, default=str).encode() + b"\n"
