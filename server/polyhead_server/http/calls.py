"""One HTTP call: its body, headers and deadline, all bounded."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from polyhead_server.errors import InvalidRequestError, MessageTooLargeError, RequestTimeoutError
from polyhead_server.serving.backend import Backend

# Seconds within which a client must send its whole body, and each part of a stream's.
BODY_TIMEOUT_S = 30.0
_JSON = "application/json"
_MAX_SLOW_JSON_BYTES = 2**20
# The deadline that the client sets, in seconds: this API's own header, and the one that OpenAI's clients send.
_TIMEOUT_HEADERS = ("x-request-timeout-s", "x-stainless-read-timeout")


class Call:
    """A request and the server behind it.

    Attributes:
        backend: Answers the texts.
        request: The HTTP request.
        arrived_ns: ``time.monotonic_ns()`` of its arrival.
        texts: Number of texts in it, for the log.
    """

    def __init__(self, backend: Backend, request: Request) -> None:
        self.backend = backend
        self.request = request
        self.arrived_ns = time.monotonic_ns()
        self.texts = 0

    @property
    def headers(self) -> Mapping[str, str]:
        """The request's headers, by their lower-case names."""
        return self.request.headers

    async def body(self) -> bytes:
        """Reads the whole body.

        Raises:
            ServerError: It is too large or too slow.
            ClientDisconnect: The client has gone.
        """
        limit = self.backend.settings.max_message_bytes
        declared = self.headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > limit:
            raise MessageTooLargeError(f"the body has more than {limit} bytes")
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                async for part in self.request.stream():
                    size += len(part)
                    if size > limit:
                        raise MessageTooLargeError(f"the body has more than {limit} bytes")
                    parts.append(part)
        except TimeoutError:
            raise RequestTimeoutError(BODY_TIMEOUT_S) from None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def parts(self) -> AsyncIterator[bytes]:
        """Yields the body as it comes.

        Raises:
            RequestTimeoutError: The next part takes too long.
        """
        stream = self.request.stream()
        while True:
            try:
                async with asyncio.timeout(BODY_TIMEOUT_S):
                    part = await anext(stream, None)
            except TimeoutError:
                raise RequestTimeoutError(BODY_TIMEOUT_S) from None
            if part is None:
                return
            if part:
                yield part

    async def json(self) -> dict[str, Any]:
        """Reads the body as a JSON object.

        Raises:
            InvalidRequestError: It is not one.
        """
        return json_object(await self.body())

    def timeout_s(self) -> float | None:
        """Returns the seconds that the client gives the call; None without a limit.

        Raises:
            InvalidRequestError: The header is not a number of seconds above 0.
        """
        for name in _TIMEOUT_HEADERS:
            value = self.headers.get(name)
            if value is None:
                continue
            try:
                seconds = float(value)
            except ValueError:
                seconds = -1
            if 0 < seconds < float("inf"):
                return seconds
            if name == _TIMEOUT_HEADERS[0]:
                raise InvalidRequestError("INVALID_PARAMETER", f"header {name} must be a number of seconds above 0")
        return None


def json_object(body: bytes) -> dict[str, Any]:
    """Parses a JSON object.

    Raises:
        InvalidRequestError: The bytes are not one; names the position.
    """
    try:
        document = loads(body)
    except ValueError as error:
        raise InvalidRequestError("MALFORMED_MESSAGE", f"the body is not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise InvalidRequestError("MALFORMED_MESSAGE", "the body is not a JSON object")
    return document


def loads(data: bytes) -> Any:
    """Parses JSON.

    Half of a surrogate pair in an escape is kept, so that its text alone gets an error and not the whole document.

    Raises:
        ValueError: It is not valid JSON; names the position.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        # The standard library's parser takes several times as long, and recurses.
        if "surrogate" not in str(error) or len(data) > _MAX_SLOW_JSON_BYTES:
            raise
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def respond(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Returns a JSON response; numpy arrays become lists with the shortest decimals of their numbers."""
    data = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(data, status, headers=dict(headers or {}), media_type=_JSON)


def require_fields(document: Mapping[str, Any], known: Iterable[str]) -> None:
    """Rejects a field that this endpoint does not know, because ignoring it could change the meaning of the request.

    Raises:
        InvalidRequestError: Names the field.
    """
    for name in document:
        if name not in known:
            problem = f"field {name[:64]!a} is not known; the fields are {', '.join(known)}"
            raise InvalidRequestError("UNKNOWN_PARAMETER", problem)


def boolean(document: Mapping[str, Any], name: str, default: bool) -> bool:
    """Returns a boolean field; null and a missing field mean the default.

    Raises:
        InvalidRequestError: It is anything else.
    """
    value = document.get(name)
    if value is None or isinstance(value, bool):
        return default if value is None else value
    raise InvalidRequestError("INVALID_PARAMETER", f"{name} must be true or false")


def integer(document: Mapping[str, Any], name: str, maximum: int) -> int:
    """Returns an integer field from 1 to the maximum; 0 for null and a missing field.

    Raises:
        InvalidRequestError: It is anything else.
    """
    value = document.get(name)
    if value is None:
        return 0
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= maximum:
        return value
    raise InvalidRequestError("INVALID_PARAMETER", f"{name} must be an integer from 1 to {maximum}")


__all__ = ["Call", "ClientDisconnect", "boolean", "integer", "json_object", "require_fields", "respond"]
