"""The runtime protocol: everything that differs between the client for threads and the client for asyncio.

The client's logic (``_base``, ``streaming``) is written once, as coroutines over a ``Runtime``. ``AsyncioRuntime``
suspends them on an event loop. ``ThreadRuntime`` blocks the calling thread inside each await, so that its coroutines
never suspend, and ``threads.run`` gets the result of one from its first step.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Protocol, TypeVar

import grpc

T = TypeVar("T")


class Condition(Protocol):
    """A condition variable. ``async with`` holds its lock, which every other method requires."""

    async def __aenter__(self) -> Any: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...

    async def wait_once(self, timeout_s: float | None = None) -> None:
        """Waits for a notification, ``timeout_s`` seconds at most."""

    async def wait_until(self, predicate: Callable[[], bool], timeout_s: float | None = None) -> None:
        """Waits until ``predicate()`` holds, ``timeout_s`` seconds at most."""

    def notify_all(self) -> None:
        """Wakes everything that waits."""


class Queue(Protocol):
    """An unbounded queue."""

    def put(self, item: Any) -> None:
        """Appends an item; any thread may call this."""

    async def get(self, timeout_s: float | None = None) -> Any:
        """Removes the first item, waiting for one ``timeout_s`` seconds at most; None after that."""


class Worker(Protocol):
    """A thread or task."""

    def cancel(self) -> object:
        """Requests the end of a task; does nothing to a thread, which ends when its stream is closed."""


class ClosableIterator(Protocol):
    """An async iterator with ``aclose``, such as an async generator."""

    def __aiter__(self) -> AsyncIterator[Any]: ...

    async def __anext__(self) -> Any: ...

    async def aclose(self) -> None:
        """Ends the iteration early."""


class Runtime(Protocol):
    """Blocking, concurrency and gRPC calls in one of the two styles."""

    def usable(self) -> bool:
        """Whether connections of this runtime can be used here: in this process, and in this event loop.

        Raises:
            InvalidRequestError: They are in use by another event loop.
        """

    async def offload(self, work: Callable[..., T], *arguments: Any) -> T:
        """Returns ``work(*arguments)``, which may block."""

    def open_channel(
        self, target: str, options: list[tuple[str, Any]], credentials: grpc.ChannelCredentials | None
    ) -> Any:
        """Returns a channel that connects on first use, without TLS where ``credentials`` is None."""

    async def close_channels(self, channels: Iterable[Any]) -> None:
        """Closes channels; calls that are running end with CANCELLED."""

    def condition(self) -> Condition:
        """Returns a new condition variable."""

    def queue(self) -> Queue:
        """Returns a new queue."""

    def spawn(self, name: str, work: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> Worker:
        """Starts ``work(*arguments)`` in a thread or task of that name."""

    async def join(self, workers: Iterable[Any]) -> None:
        """Waits for cancelled tasks; does not wait for threads, which may be blocked in the caller's input."""

    def texts(self, source: Any) -> ClosableIterator:
        """Iterates over the caller's input."""

    def responses(self, call: Any) -> AsyncIterator[Any]:
        """Iterates over the responses of a streaming call."""

    def request_iterator(self, next_request: Callable[[], Coroutine[Any, Any, Any | None]]) -> Any:
        """Returns the iterator that gRPC reads requests from, until ``next_request`` returns None."""

    def map_errors(self) -> AbstractContextManager[None]:
        """Turns errors that gRPC raises inside the block into this package's errors."""

    async def call(self, method: Any, request: Any, **options: Any) -> Any:
        """Makes a unary call and returns its response."""

    def start_call(self, method: Any, request: Any, **options: Any) -> Any:
        """Starts a unary call; the returned object has ``add_done_callback`` and ``cancel``."""

    async def succeeded(self, call: Any) -> bool:
        """Whether a completed call has the status OK."""

    async def response(self, call: Any) -> Any:
        """Returns the response of a completed call, or raises its error."""
