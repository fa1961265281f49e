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

import grpc


class PolyheadError(Exception):
    """A call failed as a whole.

    Attributes:
        code: The name of the gRPC status code, such as ``"UNAVAILABLE"``.
        message: What happened, for people.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


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
        reason: The machine-readable reason, such as ``"TEXT_TOO_LONG"``; empty when the server gave none.
    """

    def __init__(self, item_id: str, code: str, reason: str, message: str) -> None:
        super().__init__(code, f"item {item_id!r}: {message}")
        self.item_id = item_id
        self.reason = reason


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


def error_of(code: grpc.StatusCode, message: str) -> PolyheadError:
    """The error of this tree for a gRPC status."""
    return _BY_CODE[code](code.name, message or "no message came with it")


@contextmanager
def translated() -> Iterator[None]:
    """Turns what gRPC raises inside the block, from a sync or an asyncio call, into this module's errors."""
    try:
        yield
    except grpc.RpcError as error:
        # Both kinds of call raise something that also is a grpc.Call; the type RpcError itself says nothing about it.
        code, details = getattr(error, "code", None), getattr(error, "details", None)
        if code is None or details is None:
            raise ServerError("UNKNOWN", str(error)) from error
        raise error_of(code(), details()) from error
