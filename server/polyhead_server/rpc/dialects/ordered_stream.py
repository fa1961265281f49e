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

# Requests of a stream whose responses have not been written. The texts in them have limits of their own.
_MAX_PENDING = 512

_Request = TypeVar("_Request")
_Plan = TypeVar("_Plan")


class OrderedStream(Generic[_Request, _Plan]):
    """One stream of requests."""

    def __init__(
        self,
        backend: Backend,
        submit: Callable[[Submitter, _Request], Awaitable[tuple[_Plan, Submission]]],
        respond: Callable[[_Plan, Submission, list[ItemOutcome]], Any],
        failed: Callable[[_Request, ServerError], Any],
    ) -> None:
        """Prepares a stream.

        Args:
            backend: Runs the stream, until its model drains.
            submit: Decodes a request and submits its texts; returns what ``respond`` needs of it.
            respond: Makes the response to a request from the outcomes of its texts.
            failed: Makes the response to a request that failed, or raises to end the stream.
        """
        self._backend = backend
        self._submit = submit
        self._respond = respond
        self._failed = failed
        self._pending: deque[tuple[_Request, tuple[_Plan, Submission] | ServerError]] = deque()
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
                try:
                    self._pending.append((request, await self._submit(submitter, request)))
                except ServerError as error:
                    self._pending.append((request, error))
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
            if reader.cancelled():
                raise self._backend.service.end_reason()
            await reader

    async def _wait_for_space(self) -> None:
        while len(self._pending) >= _MAX_PENDING:
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
        request, submitted = self._pending[0]
        try:
            if isinstance(submitted, ServerError):
                raise submitted
            plan, submission = submitted
            outcomes = [await future for future in submission.futures]
            submission.metrics.count_outcomes(outcomes)
            response = self._respond(plan, submission, outcomes)
        except ServerError as error:
            response = self._failed(request, error)
        self._pending.popleft()
        self._space.set()
        return response
