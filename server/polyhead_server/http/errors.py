"""Errors in the form that the clients of each dialect read."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from polyhead_server.errors import OverloadedError, ServerError

from .calls import respond
from .exchange import Response

# HTTP status of each canonical code, as google.rpc maps them.
_STATUSES = {
    "INVALID_ARGUMENT": 400,
    "OUT_OF_RANGE": 400,
    "FAILED_PRECONDITION": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "INTERNAL": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
_STATUSES_BY_REASON = {"MESSAGE_TOO_LARGE": 413, "REQUEST_TIMEOUT": 408, "METHOD_NOT_ALLOWED": 405}
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
# text-embeddings-inference answers a missing key without a body, which its clients fail to decode.
_TEI_TYPES = {401: "Unauthorized", 429: "Overloaded", 503: "Unhealthy", 500: "Backend"}
_TEI_STATUSES = {400: 422, 500: 424}

ErrorForm = Callable[[ServerError], Response]


def http_status(error: ServerError) -> int:
    """Returns the HTTP status of an error."""
    return _STATUSES_BY_REASON.get(error.reason) or _STATUSES[error.code]


def retry_headers(error: ServerError) -> dict[str, str]:
    """Returns the headers that tell a client when to retry."""
    if isinstance(error, OverloadedError):
        milliseconds = max(1, round(error.retry_after_s * 1000))
        # Retry-After counts whole seconds; OpenAI's clients prefer the other header.
        return {"retry-after": str(math.ceil(milliseconds / 1000)), "retry-after-ms": str(milliseconds)}
    if error.code == "UNAVAILABLE":
        return {"retry-after": "1"}
    if error.code == "UNAUTHENTICATED":
        return {"www-authenticate": "Bearer"}
    return {}


def error_fields(error: ServerError) -> dict[str, Any]:
    """Returns an error as this API's own endpoints write it."""
    fields: dict[str, Any] = {"code": error.code, "message": str(error), "reason": error.reason}
    if isinstance(error, OverloadedError):
        fields["retry_after_s"] = error.retry_after_s
    return fields


def polyhead_error(error: ServerError) -> Response:
    """Returns ``{"error": {"code", "message", "reason"}}``."""
    return respond({"error": error_fields(error)}, http_status(error), retry_headers(error))


def openai_error(error: ServerError) -> Response:
    """Returns ``{"error": {"message", "type", "param", "code"}}``."""
    status = http_status(error)
    kind = _OPENAI_TYPES.get(status) or ("invalid_request_error" if status < 500 else "server_error")
    content = {"message": str(error), "type": kind, "param": error.metadata.get("field"), "code": error.reason.lower()}
    return respond({"error": content}, status, retry_headers(error))


def tei_error(error: ServerError) -> Response:
    """Returns ``{"error", "error_type"}``."""
    status = http_status(error)
    kind = "Empty" if error.reason == "EMPTY_REQUEST" else _TEI_TYPES.get(status, "Validation")
    status = status if kind == "Empty" else _TEI_STATUSES.get(status, status)
    return respond({"error": str(error), "error_type": kind}, status, retry_headers(error))


def open_inference_error(error: ServerError) -> Response:
    """Returns ``{"error": message}``."""
    return respond({"error": str(error)}, http_status(error), retry_headers(error))
