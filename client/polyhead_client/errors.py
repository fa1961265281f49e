"""Errors of a call, one class for each reaction that a caller can have.

Errors::

    PolyheadError
    +-- UnavailableError        the server is unreachable, not ready or shutting down: retry later
    +-- DeadlineExceededError   the deadline was too short: allow more time, or send less
    +-- ResourceExhaustedError  a message or the load exceeds what the server accepts: send less at once
    +-- InvalidRequestError     the server, or this client before sending, rejects the request: fix the call
    +-- AccessDeniedError       the server does not accept these credentials: use others
    +-- ServerError             the server is at fault: report it to its operator
    +-- ItemFailedError         one item has an error; raised where its result is read
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, SupportsIndex, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2


class PolyheadError(Exception):
    """A call failed as a whole.

    Attributes:
        code: Name of the gRPC status code, for example ``"UNAVAILABLE"``.
        message: Human-readable description.
        reason: Machine-readable reason, listed in docs/reference/errors.md; empty when the server sent none.
        retry_after_s: Seconds to wait before the next attempt, infinite for never; None when the server sent no delay.
    """

    def __init__(self, code: str, message: str, reason: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.reason = reason
        self.retry_after_s = retry_after_s


class UnavailableError(PolyheadError):
    """The server is unreachable, not ready or shutting down: retry later."""


class DeadlineExceededError(PolyheadError):
    """The deadline was too short: allow more time, or send less."""


class ResourceExhaustedError(PolyheadError):
    """A message or the load exceeds what the server accepts: send less at once."""


class InvalidRequestError(PolyheadError):
    """The server, or this client before sending, rejects the request: fix the call."""


class AccessDeniedError(PolyheadError):
    """The server does not accept these credentials: use others."""


class ServerError(PolyheadError):
    """The server is at fault: report it to its operator."""


class ItemFailedError(PolyheadError):
    """One item has an error; the other items of its call are not affected.

    Attributes:
        item_id: Id of the item.
    """

    def __init__(
        self, item_id: str, code: str, message: str, reason: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(code, f"item {item_id!r}: {message}", reason, retry_after_s)
        self.item_id = item_id


MessageT = TypeVar("MessageT", bound=Message)

# Metadata keys for the details of a status, common to all gRPC libraries, and for gRPC's own retry push-back.
_DETAILS_KEY, _PUSHBACK_KEY = "grpc-status-details-bin", "grpc-retry-pushback-ms"
# Digits of a 64-bit number; Python refuses to parse several thousand.
_MAX_PUSHBACK_DIGITS = 19

# The message that grpc.aio puts in place of the server's status when a write fails because the stream has ended.
LOST_STATUS = "Internal error from Core"
# Part of gRPC's own message about a stream that was reset. Proxies such as Envoy, HAProxy and nginx reset the streams
# of a server that died, as they can no longer send a status once they have forwarded the headers of the response.
_RESET = "RST_STREAM"

# CANCELLED beside UNAVAILABLE: a server that stops sends it for calls that it has not started.
_BY_CODE: dict[grpc.StatusCode, type[PolyheadError]] = {
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.CANCELLED: UnavailableError,
    grpc.StatusCode.ABORTED: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequestError,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: InvalidRequestError,
    grpc.StatusCode.ALREADY_EXISTS: InvalidRequestError,
    grpc.StatusCode.UNIMPLEMENTED: InvalidRequestError,
    grpc.StatusCode.UNAUTHENTICATED: AccessDeniedError,
    grpc.StatusCode.PERMISSION_DENIED: AccessDeniedError,
    grpc.StatusCode.INTERNAL: ServerError,
    grpc.StatusCode.UNKNOWN: ServerError,
    grpc.StatusCode.DATA_LOSS: ServerError,
}


def reason_of(status: status_pb2.Status) -> str:
    """Returns the machine-readable reason in the details of a status; empty without one."""
    info = _detail(status, error_details_pb2.ErrorInfo())
    return info.reason if info else ""


def retry_after_of(status: status_pb2.Status) -> float | None:
    """Returns the retry delay in the details of a status, in seconds; None without one."""
    info = _detail(status, error_details_pb2.RetryInfo())
    return info.retry_delay.seconds + info.retry_delay.nanos * 1e-9 if info else None


def _detail(status: status_pb2.Status, message: MessageT) -> MessageT | None:
    """Fills ``message`` with the first readable detail of its type; None when there is none."""
    for detail in status.details:
        with suppress(DecodeError):
            if detail.Unpack(message):
                return message
    return None


def error_for_code(code: str, message: str, reason: str = "") -> PolyheadError:
    """Builds the error for the name of a status code."""
    kind = _BY_CODE.get(grpc.StatusCode.__members__.get(code, grpc.StatusCode.UNKNOWN), ServerError)
    return kind(code, message, reason)


def require_integer(name: str, value: object) -> None:
    """Rejects an argument that is not a positive integer.

    Raises:
        InvalidRequestError: The message names the argument and the value.
    """
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise InvalidRequestError("INVALID_ARGUMENT", f"{name}: {value!r} is not an integer")
    if operator.index(value) < 1:
        raise InvalidRequestError("INVALID_ARGUMENT", f"{name}: {value} is less than 1")


def invalid_answer(problem: str) -> ServerError:
    """Builds the error for a response that violates the contract."""
    return ServerError("INTERNAL", f"invalid response: {problem}", "INVALID_ANSWER")


@contextmanager
def map_grpc_errors() -> Iterator[None]:
    """Turns errors that gRPC raises inside the block, from a sync or an asyncio call, into this module's errors."""
    try:
        yield
    except grpc.RpcError as error:
        raise _from_rpc_error(error) from error


def _from_rpc_error(error: Any) -> PolyheadError:
    """Builds the error for a failed call; an RpcError has these methods although its type does not declare them."""
    code, message = error.code(), error.details() or "the server sent no message"
    if code is grpc.StatusCode.INTERNAL and message == LOST_STATUS:
        code, message = grpc.StatusCode.UNAVAILABLE, "the stream ended while a message was being sent"
    elif code is grpc.StatusCode.INTERNAL and _RESET in message and not error.trailing_metadata():
        code = grpc.StatusCode.UNAVAILABLE
    # By iteration: dict() asks for keys(), which yields pairs in older versions of grpc.aio, such as 1.78.
    trailing = dict(iter(error.trailing_metadata() or ()))
    status = status_pb2.Status()
    with suppress(DecodeError):  # perhaps a proxy's own format: code and message are usable without the details
        status = status_pb2.Status.FromString(trailing.get(_DETAILS_KEY, b""))
    retry_after_s = _parse_pushback(trailing[_PUSHBACK_KEY]) if _PUSHBACK_KEY in trailing else retry_after_of(status)
    return _BY_CODE[code](code.name, message, reason_of(status), retry_after_s)


def _parse_pushback(milliseconds: str) -> float:
    """Returns seconds; a negative or malformed number means never (gRFC A6)."""
    valid = milliseconds.isdecimal() and len(milliseconds) <= _MAX_PUSHBACK_DIGITS
    return int(milliseconds) / 1000 if valid else math.inf
