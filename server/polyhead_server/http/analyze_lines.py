"""``POST /v1/analyze`` with JSON lines: each line of the body is answered by a line, while the body still comes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import NamedTuple

import orjson

from polyhead_server.errors import MessageTooLargeError, ServerError
from polyhead_server.inference.types import InvalidItem, Item, Message, RequestOptions
from polyhead_server.serving.backend import Submission, Submitter, deadline_after
from polyhead_server.serving.texts import item_from_string

from .analyze_answer import record
from .analyze_request import invalid_item, read_item
from .calls import Call, loads
from .errors import error_fields
from .exchange import Exchange

NDJSON = "application/x-ndjson"
# A stream submits the lines that have arrived together, at most this many at a time.
_MAX_LINES = 64


class _Pending(NamedTuple):
    """The lines of one submission: their ids, the model, and their futures."""

    ids: list[str]
    submission: Submission


class LineStream:
    """A response that answers each line of the request's body by one line, in order, while the body still comes.

    Attributes:
        status: HTTP status.
        headers: Headers of the response.
    """

    status = 200

    def __init__(self, call: Call, options: RequestOptions) -> None:
        """Prepares the stream.

        Args:
            call: The call.
            options: What to answer for each line.

        Raises:
            InvalidRequestError: The header with the deadline is invalid.
        """
        self.headers = {"content-type": NDJSON}
        self._call = call
        self._options = options
        self._deadline = deadline_after(call.timeout_s())
        self._pending: deque[_Pending] = deque()
        self._changed = asyncio.Event()
        self._space = asyncio.Event()

    async def send(self, exchange: Exchange) -> None:
        """Runs the stream.

        Raises:
            ServerError: The stream is refused; nothing has been sent.
        """
        service = self._call.backend.service
        async with service.session(self._read, self._deadline, self._changed.set, has_age=False) as reader:
            await exchange.start_stream(self.headers)
            try:
                while await self._wait(reader):
                    await exchange.send_part(await self._next_lines(), more=True)
            finally:
                for pending in self._pending:
                    pending.submission.cancel()
            error = self._reader_error(reader)
            last = orjson.dumps({"error": error_fields(error)}) + b"\n" if error else b""
            await exchange.send_part(last, more=False)

    async def _read(self, submitter: Submitter) -> None:
        backend = self._call.backend
        limit = backend.max_characters()
        number = 0
        async for lines in _line_groups(self._call):
            for begin in range(0, len(lines), _MAX_LINES):
                items: list[Item | InvalidItem] = []
                for line in lines[begin : begin + _MAX_LINES]:
                    number += 1
                    if line.strip():
                        items.append(_line_item(line, number, limit))
                if not items:
                    continue
                while sum(len(pending.ids) for pending in self._pending) >= backend.settings.stream_window:
                    self._space.clear()
                    await self._space.wait()
                submission = await backend.submit(submitter, Message(tuple(items), self._options), None)
                self._call.texts += len(items)
                self._pending.append(_Pending([item.item_id for item in items], submission))
                self._changed.set()

    async def _wait(self, reader: asyncio.Task[None]) -> bool:
        while not self._pending:
            if reader.done():
                return False
            self._changed.clear()
            await self._changed.wait()
        return True

    def _reader_error(self, reader: asyncio.Task[None]) -> ServerError | None:
        if reader.cancelled():
            return self._call.backend.service.end_reason()
        error = reader.exception()
        if error is None or isinstance(error, ServerError):
            return error
        raise error

    async def _next_lines(self) -> bytes:
        ids, submission = self._pending[0]
        outcomes = [await future for future in submission.futures]
        self._pending.popleft()
        self._space.set()
        self._call.backend.service.metrics.count_outcomes(outcomes)
        model = submission.model
        return b"".join(
            orjson.dumps(record(model, item_id, outcome, self._options), option=orjson.OPT_SERIALIZE_NUMPY) + b"\n"
            for item_id, outcome in zip(ids, outcomes, strict=True)
        )


def _line_item(line: bytes, number: int, limit: int) -> Item | InvalidItem:
    try:
        entry = loads(line)
    except ValueError as error:
        return invalid_item("", f"line {number} is not valid JSON: {error}")
    if isinstance(entry, str):
        return item_from_string(str(number - 1), entry, limit)
    if isinstance(entry, dict) and "id" not in entry:
        entry["id"] = str(number - 1)
    return read_item(entry, limit)


async def _line_groups(call: Call) -> AsyncIterator[list[bytes]]:
    """Yields the complete lines of each part of a body.

    Raises:
        MessageTooLargeError: A line is too long.
        OverloadedError: The incomplete lines and bodies of all calls are too large together.
    """
    limit = call.backend.settings.max_message_bytes
    rest: list[bytes] = []
    size = 0
    async for part in call.parts():
        *lines, last = part.split(b"\n")
        if lines:
            lines[0] = b"".join([*rest, lines[0]])
            rest, size = [], 0
            call.release()
            yield lines
        rest.append(last)
        size += len(last)
        if size > limit:
            raise MessageTooLargeError(f"a line has more than {limit} bytes")
        call.keep(len(last))
    if size:
        yield [b"".join(rest)]
