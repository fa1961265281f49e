"""What can go wrong with a call, sorted by what its caller can do about it.

Errors::

    PolyheadError
    +-- UnavailableError        the server is not reachable, not ready, or shutting down: try again later
    +-- DeadlineExceededError   the time given was not enough: give more, or send less
    +-- ResourceExhaustedError            a message or the load is more than the server takes: send less at once
    +-- InvalidRequestError     the server, or this client before it, refuses what was asked: mend the call
    +-- AccessDeniedError       the server does not know or not allow this caller: use other credentials
    +-- ServerError             the server is at fault: tell whoever runs it
    +-- ItemFailedError         one item has an error; raised by ``Answer.unwrap()`` alone
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2


class PolyheadError(Exception):
    """A call failed as a whole.

    Attributes:
        code: The name of the gRPC status code, such as ``"UNAVAILABLE"``.
        message: What happened, for people.
        reason: What happened, for programs: one of those in docs/errors.md, or empty when the server gave none.
        retry_after_s: Seconds after which the server wants to be asked again, infinite for never; None when it did not
            say.
    """

    def __init__(self, code: str, message: str, reason: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.reason = reason
        self.retry_after_s = retry_after_s


class UnavailableError(PolyheadError):
    """The server is not reachable, not ready, or shutting down: try again later."""


class DeadlineExceededError(PolyheadError):
    """The time given was not enough: give more, or send less."""


class ResourceExhaustedError(PolyheadError):
    """A message or the load is more than the server takes: send less at once."""


class InvalidRequestError(PolyheadError):
    """The server, or this client before it, refuses what was asked: mend the call."""


class AccessDeniedError(PolyheadError):
    """The server does not know or not allow this caller: use other credentials."""


class ServerError(PolyheadError):
    """The server is at fault: tell whoever runs it."""


class ItemFailedError(PolyheadError):
    """One item has an error; the rest of its call is not touched.

    Attributes:
        item_id: The id of the item.
    """

    def __init__(
        self, item_id: str, code: str, message: str, reason: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(code, f"item {item_id!r}: {message}", reason, retry_after_s)
        self.item_id = item_id


MessageT = TypeVar("MessageT", bound=Message)

# The name under which every gRPC library sends the details of a status, and that of gRPC's own push-back.
_DETAILS_KEY, _PUSHBACK_KEY = "grpc-status-details-bin", "grpc-retry-pushback-ms"
# Those of a 64-bit number; Python refuses to read some thousands.
_PUSHBACK_DIGITS = 19

# What grpc.aio puts in the place of a status when it comes to write on a stream that has just ended.
_LOST_STATUS = "Internal error from Core"

# CANCELLED stands beside UNAVAILABLE: a server that stops answers it to the calls that it has not looked at yet.
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
    """The machine-readable reason in the details of a status; empty when there is none."""
    info = _detail(status, error_details_pb2.ErrorInfo())
    return info.reason if info else ""


def retry_after_of(status: status_pb2.Status) -> float | None:
    """Seconds after which the server wants to be asked again, in the details of a status; None when it does not say."""
    told = _detail(status, error_details_pb2.RetryInfo())
    return told.retry_delay.seconds + told.retry_delay.nanos * 1e-9 if told else None


def _detail(status: status_pb2.Status, kind: MessageT) -> MessageT | None:
    """``kind``, filled with the first detail of that type; None where there is none that can be read."""
    for detail in status.details:
        with suppress(DecodeError):
            if detail.Unpack(kind):
                return kind
    return None


def error_named(code: str, message: str, reason: str = "") -> PolyheadError:
    """The error for the status code of that name."""
    kind = _BY_CODE.get(grpc.StatusCode.__members__.get(code, grpc.StatusCode.UNKNOWN), ServerError)
    return kind(code, message, reason)


@contextmanager
def map_grpc_errors() -> Iterator[None]:
    """Turns what gRPC raises inside the block, from a sync or an asyncio call, into this module's errors."""
    try:
        yield
    except grpc.RpcError as error:
        raise _translation(error) from error


def _translation(error: Any) -> PolyheadError:
    """The error for what a call raised, which has these methods though its type, RpcError, does not say so."""
    code, message = error.code(), error.details() or "no message came with it"
    if code is grpc.StatusCode.INTERNAL and message == _LOST_STATUS:
        code, message = grpc.StatusCode.UNAVAILABLE, "the stream ended while a message was being sent"
    trailing = dict(error.trailing_metadata() or ())
    status = status_pb2.Status()
    with suppress(DecodeError):  # a proxy's own, perhaps: the code and the message stand without them
        status = status_pb2.Status.FromString(trailing.get(_DETAILS_KEY, b""))
    told = retry_after_of(status) if _PUSHBACK_KEY not in trailing else _pushback(trailing[_PUSHBACK_KEY])
    return _BY_CODE[code](code.name, message, reason_of(status), told)


def _pushback(milliseconds: str) -> float:
    """Seconds; what is negative or no number means never (gRFC A6)."""
    return int(milliseconds) / 1000 if milliseconds.isdecimal() and len(milliseconds) <= _PUSHBACK_DIGITS else math.inf
