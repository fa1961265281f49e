"""The runtime of ``Client``: every await blocks the calling thread."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import grpc

from polyhead_client.errors import map_grpc_errors

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine over ``ThreadRuntime`` to its end, in the calling thread."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    work.close()
    raise RuntimeError("a coroutine of the blocking client suspended")


class ThreadRuntime:
    """See ``runtime.Runtime``."""

    def __init__(self) -> None:
        self._process = os.getpid()

    def usable(self) -> bool:
        """Whether this is the process that created it."""
        return self._process == os.getpid()

    async def offload(self, work: Callable[..., T], *arguments: Any) -> T:
        """Calls it in the calling thread."""
        return work(*arguments)

    def open_channel(
        self, target: str, options: list[tuple[str, Any]], credentials: grpc.ChannelCredentials | None
    ) -> grpc.Channel:
        """Returns a channel that connects on first use."""
        if credentials is None:
            return grpc.insecure_channel(target, options)
        return grpc.secure_channel(target, credentials, options)

    async def close_channels(self, channels: Iterable[grpc.Channel]) -> None:
        """Closes channels."""
        for channel in channels:
            channel.close()

    def condition(self) -> BlockingCondition:
        """Returns a new condition variable."""
        return BlockingCondition()

    def queue(self) -> BlockingQueue:
        """Returns a new queue."""
        return BlockingQueue()

    def spawn(self, name: str, work: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> WorkerThread:
        """Starts a daemon thread: it ends by itself, but may be blocked in the caller's input until then."""
        thread = WorkerThread(name=name, target=lambda: run(work(*arguments)), daemon=True)
        thread.start()
        return thread

    async def join(self, workers: Iterable[Any]) -> None:
        """Does nothing."""

    def texts(self, source: Iterable[T]) -> BlockingIterator[T]:
        """Iterates over a plain iterable."""
        return BlockingIterator(source)

    def responses(self, call: Any) -> BlockingIterator[Any]:
        """Iterates over the responses of a streaming call."""
        return BlockingIterator(call)

    def request_iterator(self, next_request: Callable[[], Coroutine[Any, Any, T | None]]) -> Iterator[T]:
        """Iterates in gRPC's thread."""
        while (request := run(next_request())) is not None:
            yield request

    def map_errors(self) -> AbstractContextManager[None]:
        """Maps the errors of the sync stack."""
        return map_grpc_errors()

    async def call(self, method: Any, request: Any, **options: Any) -> Any:
        """Makes a unary call."""
        return method(request, **options)

    def start_call(self, method: Any, request: Any, **options: Any) -> Any:
        """Starts a unary call."""
        return method.future(request, **options)

    async def succeeded(self, call: Any) -> bool:
        """Whether a completed call has the status OK."""
        return bool(call.code() is grpc.StatusCode.OK)

    async def response(self, call: Any) -> Any:
        """Returns the response of a completed call, or raises its error."""
        return call.result()


class WorkerThread(threading.Thread):
    """A thread that ignores cancellation."""

    def cancel(self) -> None:
        """Does nothing: the thread ends when its stream is closed."""


class BlockingCondition:
    """``threading.Condition`` as a ``runtime.Condition``."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self.notify_all = self._condition.notify_all

    async def __aenter__(self) -> None:
        self._condition.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._condition.release()

    async def wait_once(self, timeout_s: float | None = None) -> None:
        """Waits for a notification."""
        self._condition.wait(timeout_s)

    async def wait_until(self, predicate: Callable[[], bool], timeout_s: float | None = None) -> None:
        """Waits until ``predicate()`` holds."""
        self._condition.wait_for(predicate, timeout_s)


class BlockingQueue:
    """``queue.SimpleQueue`` as a ``runtime.Queue``."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.put = self._queue.put

    async def get(self, timeout_s: float | None = None) -> Any:
        """Removes the first item; None after ``timeout_s`` seconds without one."""
        try:
            return self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None


class BlockingIterator(AsyncIterator[T]):
    """A plain iterable, of which each step blocks."""

    def __init__(self, source: Iterable[T]) -> None:
        self._next = iter(source).__next__

    async def __anext__(self) -> T:
        try:
            return self._next()
        except StopIteration:
            raise StopAsyncIteration from None
        except StopAsyncIteration as error:  # as an error of the caller's input, it must not look like its end
            raise RuntimeError("the iterable raised StopAsyncIteration") from error

    async def aclose(self) -> None:
        """Does nothing: a thread may be blocked in the iterable, which then cannot be closed."""
