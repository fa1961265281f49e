"""Errors as ``google.rpc.Status`` messages: the one place that turns an error's code into a number on the wire."""

from __future__ import annotations

from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from polyhead_server.errors import OverloadedError, ServerError

# ErrorInfo.domain of every status that the server sends.
DOMAIN = "polyhead"
# Name to number of every canonical status code; the names are those of ``grpc.StatusCode``.
CODES = dict(code_pb2.Code.items())


def status(error: ServerError) -> status_pb2.Status:
    """Converts an error to a status with ErrorInfo, and with RetryInfo if the client should retry later."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    details = [_pack(info)]
    if isinstance(error, OverloadedError):
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        details.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status_pb2.Status(code=CODES[error.code], message=str(error), details=details)


def _pack(detail: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
