"""Streams of dialects: requests are submitted as they come, and each is answered by one response, in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Generic, TypeVar

from grpc import aio

from polyhead_server.errors import ServerError
from polyhead_server.inference.types import ItemOutcome
from polyhead_server.serving.backend import Backend, Submission, Submitter, deadline_after

# Requests of a stream whose responses have not been written. Their texts are bounded by the stream's window.
_MAX_PENDING = 512

_Request = TypeVar("_Request")
_Plan = TypeVar("_Plan")


class OrderedStream(Generic[_Request, _Plan]):
    """One stream of requests. What it keeps of a request does not grow with the request, but with its answers."""

    def __init__(
        self,
        backend: Backend,
        submit: Callable[[Submitter, _Request], Awaitable[tuple[_Plan, Submission]]],
        respond: Callable[[_Plan, Submission, list[ItemOutcome]], Any],
        failed: Callable[[str, ServerError], Any],
        id_of: Callable[[_Request], str] = lambda _: "",
    ) -> None:
        """Prepares a stream.

        Args:
            backend: Runs the stream, until its model drains.
            submit: Decodes a request and submits its texts; returns what ``respond`` needs of it, without the texts.
            respond: Makes the response to a request from the outcomes of its texts.
            failed: Makes the response to a request that failed, given its id, or raises to end the stream.
            id_of: Returns the id of a request, which must be short.
        """
        self._backend = backend
        self._submit = submit
        self._respond = respond
        self._failed = failed
        self._id_of = id_of
        self._pending: deque[tuple[str, tuple[_Plan, Submission] | ServerError]] = deque()
        self._texts = 0
        self._changed = asyncio.Event()
        self._space = asyncio.Event()

    async def run(self, requests: AsyncIterator[_Request], context: aio.ServicerContext[Any, Any]) -> None:
        """Answers the requests until the client ends the stream.

        Raises:
            ServerError: The server drains, or a request failed and ``failed`` raised.
        """

        async def read(submitter: Submitter) -> None:
            async for request in requests:
                await self._wait_for_space()
                self._pending.append((self._id_of(request), await self._submitted(submitter, request)))
                self._changed.set()

        deadline = deadline_after(context.time_remaining())
        async with self._backend.service.session(read, deadline, self._changed.set) as reader:
            try:
                while await self._wait_for_request(reader):
                    await context.write(await self._next_response())
            finally:
                for _, submission in self._pending:
                    if not isinstance(submission, ServerError):
                        submission[1].cancel()
                self._pending.clear()
            if reader.cancelled():
                raise self._backend.service.end_reason()
            await reader

    async def _submitted(self, submitter: Submitter, request: _Request) -> tuple[_Plan, Submission] | ServerError:
        try:
            plan, submission = await self._submit(submitter, request)
        except ServerError as error:
            # The frames of its traceback, and those of another error, hold the request.
            error.__context__ = error.__cause__ = None
            return error.with_traceback(None)
        self._texts += len(submission.futures)
        return plan, submission

    async def _wait_for_space(self) -> None:
        while len(self._pending) >= _MAX_PENDING or self._texts >= self._backend.settings.stream_window:
            self._space.clear()
            await self._space.wait()

    async def _wait_for_request(self, reader: asyncio.Task[None]) -> bool:
        """Waits for a request that was submitted; returns False when there are no more."""
        while not self._pending:
            if reader.done():
                return False
            self._changed.clear()
            await self._changed.wait()
        return True

    async def _next_response(self) -> Any:
        # It stays in the list until its outcomes are known, so that a cancelled stream withdraws its texts.
        request_id, submitted = self._pending[0]
        if isinstance(submitted, ServerError):
            response = self._failed(request_id, submitted)
        else:
            plan, submission = submitted
            try:
                outcomes = [await future for future in submission.futures]
                submission.metrics.count_outcomes(outcomes)
                response = self._respond(plan, submission, outcomes)
            except ServerError as error:
                response = self._failed(request_id, error)
            self._texts -= len(submission.futures)
        self._pending.popleft()
        self._space.set()
        return response
