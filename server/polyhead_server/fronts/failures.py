"""Errors of the engine process, as the fronts get them."""

from __future__ import annotations

from polyhead_server.errors import ExpiredError, InternalError, ModelReplacedError, OverloadedError, ServerError

from .records import Failure, RecordError


def error_of(failure: int, *, text: str, retry_after_s: float = 0.0) -> ServerError:
    """Returns the error of a ``REFUSED`` or ``FAILED`` record.

    Args:
        failure: A ``Failure``.
        text: Message of an overload, or incident of an internal error.
        retry_after_s: Of an overload.

    Raises:
        RecordError: There is no such failure.
    """
    match failure:
        case Failure.EXPIRED:
            return ExpiredError()
        case Failure.OVERLOADED:
            return OverloadedError(text, retry_after_s)
        case Failure.STALE:
            return ModelReplacedError()
        case Failure.INTERNAL:
            return InternalError(text)
    raise RecordError(f"failure {failure}")
