"""The runtime of ``AsyncClient``: every await suspends a task of the event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import Any, TypeVar

import grpc
import grpc.aio

from polyhead_client.errors import InvalidRequestError, UnavailableError, map_grpc_errors

from .stream_responses import Responses

T = TypeVar("T")


class AsyncioRuntime:
    """See ``runtime.Runtime``. Bound to the event loop in which it is created, as gRPC's channels are."""

    def __init__(self) -> None:
        """Binds to the running event loop.

        Raises:
            InvalidRequestError: None is running.
        """
        self._process = os.getpid()
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError as error:
            problem = "AsyncClient requires a running asyncio event loop: await it in one, or use Client"
            raise InvalidRequestError("FAILED_PRECONDITION", problem, "NO_EVENT_LOOP") from error

    def usable(self) -> bool:
        """Whether this is its event loop; False if the loop has ended, for example that of an earlier asyncio.run.

        Raises:
            InvalidRequestError: Its event loop runs in another thread.
        """
        if self._process != os.getpid() or not self._loop.is_running():
            return False
        if self._loop is not asyncio.get_running_loop():
            problem = "another event loop is using this AsyncClient; create one in each event loop, or use Client"
            raise InvalidRequestError("FAILED_PRECONDITION", problem, "OTHER_EVENT_LOOP")
        return True

    async def offload(self, work: Callable[..., T], *arguments: Any) -> T:
        """Calls it in a thread."""
        return await asyncio.to_thread(work, *arguments)

    def open_channel(
        self, target: str, options: list[tuple[str, Any]], credentials: grpc.ChannelCredentials | None
    ) -> grpc.aio.Channel:
        """Returns a channel that connects on first use."""
        if credentials is None:
            return grpc.aio.insecure_channel(target, options)
        return grpc.aio.secure_channel(target, credentials, options)

    async def close_channels(self, channels: Iterable[grpc.aio.Channel]) -> None:
        """Closes channels."""
        await asyncio.gather(*(channel.close() for channel in channels))

    def condition(self) -> TaskCondition:
        """Returns a new condition variable."""
        return TaskCondition()

    def queue(self) -> TaskQueue:
        """Returns a new queue."""
        return TaskQueue()

    def spawn(self, name: str, work: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> asyncio.Task[None]:
        """Starts a task."""
        return asyncio.create_task(work(*arguments), name=name)

    async def join(self, workers: Iterable[asyncio.Task[None]]) -> None:
        """Waits for cancelled tasks."""
        await asyncio.gather(*workers, return_exceptions=True)

    def texts(self, source: Iterable[T] | AsyncIterable[T]) -> AsyncGenerator[T, None]:
        """Iterates over an async iterable, or over a plain one on the event loop."""
        return _iterate(source)

    def responses(self, call: Any) -> AsyncIterator[Any]:
        """Iterates over the responses of a streaming call."""
        return Responses(call)

    async def request_iterator(self, next_request: Callable[[], Coroutine[Any, Any, T | None]]) -> AsyncIterator[T]:
        """Iterates in gRPC's task."""
        while (request := await next_request()) is not None:
            yield request

    @contextmanager
    def map_errors(self) -> Iterator[None]:
        """Maps the errors of grpc.aio, where a call that ends with CANCELLED looks like a cancelled task.

        A call does so when its channel is closed. Only a task that really is being cancelled raises CancelledError.
        """
        try:
            with map_grpc_errors():
                yield
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise UnavailableError("CANCELLED", "cancelled by the server, or because the client was closed") from error

    async def call(self, method: Any, request: Any, **options: Any) -> Any:
        """Makes a unary call."""
        return await method(request, **options)

    def start_call(self, method: Any, request: Any, **options: Any) -> Any:
        """Starts a unary call."""
        return method(request, **options)

    async def succeeded(self, call: Any) -> bool:
        """Whether a completed call has the status OK."""
        return bool(await call.code() is grpc.StatusCode.OK)

    async def response(self, call: Any) -> Any:
        """Returns the response of a completed call, or raises its error."""
        return await call


class TaskCondition(asyncio.Condition):
    """``asyncio.Condition`` with time limits, as a ``runtime.Condition``."""

    async def wait_once(self, timeout_s: float | None = None) -> None:
        """Waits for a notification."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self.wait()

    async def wait_until(self, predicate: Callable[[], bool], timeout_s: float | None = None) -> None:
        """Waits until ``predicate()`` holds."""
        if timeout_s is None:  # as often as not: a time limit costs more than the wait
            await self.wait_for(predicate)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self.wait_for(predicate)


class TaskQueue:
    """``asyncio.Queue`` as a ``runtime.Queue``."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self.put = self._queue.put_nowait

    async def get(self, timeout_s: float | None = None) -> Any:
        """Removes the first item; None after ``timeout_s`` seconds without one."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                return await self._queue.get()
        return None


async def _iterate(source: Iterable[T] | AsyncIterable[T]) -> AsyncGenerator[T, None]:
    if isinstance(source, AsyncGenerator):
        # Its own clean-up must not wait for the garbage collector when the stream is closed early.
        async with aclosing(source):
            async for element in source:
                yield element
    elif isinstance(source, AsyncIterable):
        async for element in source:
            yield element
    else:
        for element in source:
            yield element
