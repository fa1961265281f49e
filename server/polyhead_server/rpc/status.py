"""The one table that says which status and reason an error has on the wire, and the status message itself."""

from __future__ import annotations

from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from polyhead_server import errors

DOMAIN = "polyhead"

# The most special class that fits an error decides.
TABLE: dict[type[errors.ServerError], tuple[int, str]] = {
    errors.InvalidRequestError: (code_pb2.INVALID_ARGUMENT, "INVALID_REQUEST"),
    errors.TextTooLongError: (code_pb2.OUT_OF_RANGE, "TEXT_TOO_LONG"),
    errors.FingerprintMismatchError: (code_pb2.FAILED_PRECONDITION, "FINGERPRINT_MISMATCH"),
    errors.ExpiredError: (code_pb2.DEADLINE_EXCEEDED, "DEADLINE_EXPIRED"),
    errors.OverloadedError: (code_pb2.RESOURCE_EXHAUSTED, "OVERLOADED"),
    errors.NotReadyError: (code_pb2.UNAVAILABLE, "NOT_READY"),
    errors.DrainingError: (code_pb2.UNAVAILABLE, "DRAINING"),
    errors.UnauthenticatedError: (code_pb2.UNAUTHENTICATED, "UNAUTHENTICATED"),
    errors.PermissionDeniedError: (code_pb2.PERMISSION_DENIED, "PERMISSION_DENIED"),
    errors.InternalError: (code_pb2.INTERNAL, "INTERNAL"),
    errors.ReloadError: (code_pb2.FAILED_PRECONDITION, "RELOAD_REFUSED"),
}


def status(error: errors.ServerError) -> status_pb2.Status:
    """The error as a ``google.rpc.Status`` with ErrorInfo, and RetryInfo where trying again later makes sense."""
    info = error_details_pb2.ErrorInfo(reason=reason(error), domain=DOMAIN, metadata=error.metadata)
    details = [info]
    if isinstance(error, errors.OverloadedError):
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return status_pb2.Status(code=_row(error)[0], message=str(error), details=[_pack(detail) for detail in details])


def reason(error: errors.ServerError) -> str:
    """The error's reason, for programs."""
    return str(getattr(error, "reason", _row(error)[1]))


def _row(error: errors.ServerError) -> tuple[int, str]:
    return next(TABLE[kind] for kind in type(error).__mro__ if kind in TABLE)


def _pack(detail: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
