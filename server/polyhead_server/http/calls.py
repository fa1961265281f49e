"""One HTTP call: its body, headers and deadline, all bounded."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import orjson

from polyhead_server.errors import InvalidRequestError, MessageTooLargeError, OverloadedError, RequestTimeoutError
from polyhead_server.serving.backend import Backend
from polyhead_server.serving.models import MODEL_KEY, Models

from .decompression import decompressed
from .exchange import Exchange, Response

# Seconds within which a client must send its whole body, and each part of a stream's.
BODY_TIMEOUT_S = 30.0
# A body up to this size does not count against the limit for the bodies of all calls, so that large ones cannot keep it
# out.
_SMALL_BODY_BYTES = 64 * 2**10
_MODEL_HEADER = MODEL_KEY.encode()
_JSON = {"content-type": "application/json"}
_MAX_SLOW_JSON_BYTES = 2**20
# The deadline that the client sets, in seconds: this API's own header, and the one that OpenAI's clients send.
_TIMEOUT_HEADERS = (b"x-request-timeout-s", b"x-stainless-read-timeout")


class Call:
    """A request and the server behind it.

    Attributes:
        models: The models of the server.
        backend: The model that answers the texts.
        exchange: The request, and where the response goes.
        arrived_ns: ``time.monotonic_ns()`` of its arrival.
        texts: Number of texts in it, for the log.
    """

    __slots__ = ("_counted_bytes", "_kept_bytes", "arrived_ns", "backend", "exchange", "models", "texts")

    def __init__(self, models: Models, exchange: Exchange) -> None:
        self.models = models
        self.backend = models.default
        self.exchange = exchange
        self.arrived_ns = time.monotonic_ns()
        self.texts = 0
        self._kept_bytes = self._counted_bytes = 0

    def select(self, name: str | None) -> Backend:
        """Answers with the model of this name; without a name, with the one of the header or else the first.

        Raises:
            ModelNotFoundError: There is no such model.
            NotReadyError: It is still loading.
        """
        self.backend = self.models.selected(name or self.header(_MODEL_HEADER))
        return self.backend

    def keep(self, size: int) -> None:
        """Counts bytes of the body that are kept until ``release``.

        Raises:
            OverloadedError: The bodies of all calls are too large together.
        """
        self._kept_bytes += size
        more = max(0, self._kept_bytes - _SMALL_BODY_BYTES) - self._counted_bytes
        limit = self.backend.settings.max_held_bytes
        if more and self.models.body_bytes + more > limit:
            raise OverloadedError.bodies(limit)
        self._count(more)

    def hold(self, size: int) -> None:
        """Counts the bytes of the response in place of those of the body, until ``release``.

        Raises:
            OverloadedError: The bodies and responses of all calls are too large together.
        """
        self.release()
        more = max(0, size - _SMALL_BODY_BYTES)
        limit = self.backend.settings.max_held_bytes
        # A response that is larger than the limit is sent on its own.
        if more and self.models.body_bytes and self.models.body_bytes + more > limit:
            raise OverloadedError.unread(limit)
        self._count(more)

    def _count(self, more: int) -> None:
        self._counted_bytes += more
        self.models.body_bytes += more

    def release(self) -> None:
        """Ends the counting of the bytes that were kept."""
        self.models.body_bytes -= self._counted_bytes
        self._kept_bytes = self._counted_bytes = 0

    def header(self, name: bytes) -> str | None:
        """Returns a header of the request by its name in lower case; None if it is missing."""
        value = self.exchange.headers.get(name)
        return None if value is None else value.decode("latin-1")

    async def body(self) -> bytes:
        """Reads the whole body.

        Raises:
            ServerError: It is too large or too slow.
            OverloadedError: The bodies of all calls are too large together.
            ClientDisconnectError: The client has gone.
        """
        limit = self.backend.settings.max_message_bytes
        declared = self.header(b"content-length") or ""
        if declared.isdecimal() and int(declared[:20]) > limit:
            raise MessageTooLargeError(f"the body has more than {limit} bytes")
        body = None if b"content-encoding" in self.exchange.headers else self.exchange.arrived_body()
        if body is None:
            return await self._awaited_body(limit)
        if len(body) > limit:
            raise MessageTooLargeError(f"the body has more than {limit} bytes")
        self.keep(len(body))
        return body

    async def _awaited_body(self, limit: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                async for part in self._stream():
                    size += len(part)
                    if size > limit:
                        raise MessageTooLargeError(f"the body has more than {limit} bytes")
                    self.keep(len(part))
                    parts.append(part)
        except TimeoutError:
            raise RequestTimeoutError(BODY_TIMEOUT_S) from None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def parts(self) -> AsyncIterator[bytes]:
        """Yields the body as it comes.

        Raises:
            RequestTimeoutError: The next part takes too long.
        """
        stream = self._stream()
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

    def _stream(self) -> AsyncIterator[bytes]:
        return decompressed(self.exchange.parts(), self.header(b"content-encoding") or "")

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
            value = self.header(name)
            if value is None:
                continue
            try:
                seconds = float(value)
            except ValueError:
                seconds = -1
            if 0 < seconds < float("inf"):
                return seconds
            if name == _TIMEOUT_HEADERS[0]:
                raise InvalidRequestError(
                    "INVALID_PARAMETER", f"header {name.decode()} must be a number of seconds above 0"
                )
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


def respond(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Returns a JSON response; numpy arrays become lists with the shortest decimals of their numbers."""
    data = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(data, status, _JSON | headers if headers else dict(_JSON))


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


def string(document: Mapping[str, Any], name: str) -> str:
    """Returns a text field; an empty one for null and a missing field.

    Raises:
        InvalidRequestError: It is anything else.
    """
    value = document.get(name)
    if value is None or isinstance(value, str):
        return value or ""
    raise InvalidRequestError("INVALID_PARAMETER", f"{name} must be a string")


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
