"""What can go wrong with a call, sorted by what its caller can do about it.

Errors::

    PolyheadError
    +-- UnavailableError        the server is not reachable, not ready, or shutting down: try again later
    +-- DeadlineExceededError   the time given was not enough: give more, or send less
    +-- TooMuchError            a message or the load is more than the server takes: send less at once
    +-- InvalidRequestError     the server, or this client before it, refuses what was asked: mend the call
    +-- AccessDeniedError       the server does not know or not allow this caller: use other credentials
    +-- ServerError             the server is at fault: tell whoever runs it
    +-- ItemFailedError         one item has an error; raised by ``Answer.unwrap()`` alone
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2


class PolyheadError(Exception):
    """A call failed as a whole.

    Attributes:
        code: The name of the gRPC status code, such as ``"UNAVAILABLE"``.
        message: What happened, for people.
        reason: What happened, for programs: one of those in docs/errors.md, or empty when the server gave none.
    """

    def __init__(self, code: str, message: str, reason: str = "") -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.reason = reason


class UnavailableError(PolyheadError):
    """The server is not reachable, not ready, or shutting down: try again later."""


class DeadlineExceededError(PolyheadError):
    """The time given was not enough: give more, or send less."""


class TooMuchError(PolyheadError):
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

    def __init__(self, item_id: str, code: str, message: str, reason: str = "") -> None:
        super().__init__(code, f"item {item_id!r}: {message}", reason)
        self.item_id = item_id


# The name under which every gRPC library sends the details of a status.
_DETAILS_KEY = "grpc-status-details-bin"

# CANCELLED stands beside UNAVAILABLE: a server that stops answers it to the calls that it has not looked at yet.
_BY_CODE: dict[grpc.StatusCode, type[PolyheadError]] = {
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.CANCELLED: UnavailableError,
    grpc.StatusCode.ABORTED: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: TooMuchError,
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
    info = error_details_pb2.ErrorInfo()
    return next((info.reason for detail in status.details if detail.Unpack(info)), "")


@contextmanager
def translated() -> Iterator[None]:
    """Turns what gRPC raises inside the block, from a sync or an asyncio call, into this module's errors."""
    try:
        yield
    except grpc.RpcError as error:
        raise _translation(error) from error


def _translation(error: Any) -> PolyheadError:
    """The error for what a call raised, which has these methods though its type, RpcError, does not say so."""
    code, message = error.code(), error.details() or "no message came with it"
    details = [value for key, value in error.trailing_metadata() or () if key == _DETAILS_KEY]
    reason = reason_of(status_pb2.Status.FromString(details[0])) if details else ""
    return _BY_CODE[code](code.name, message, reason)
