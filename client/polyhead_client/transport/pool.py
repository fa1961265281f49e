"""A pool of connections to one target: which connection a call uses. No I/O: the client opens and closes them.

The workers of a server share one port, and each connection reaches one of them. A client with several connections
reaches several workers, and a worker that dies breaks only the calls on its own connections.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from typing import Generic, Self, TypeVar

StubT = TypeVar("StubT")

# With four connections both of two workers are reached with a probability of 7 in 8. Unused connections never open.
DEFAULT_CONNECTIONS = 4


class Lease(Generic[StubT]):
    """The use of a connection by one call, until ``release`` or the end of a ``with`` block.

    Attributes:
        index: Index of the connection in the pool.
        stub: gRPC stub of the connection.
    """

    def __init__(self, pool: ConnectionPool[StubT], index: int, stub: StubT) -> None:
        self.index = index
        self.stub = stub
        self._pool = pool

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Records that the call has ended."""
        self._pool.release(self.index)


class ConnectionPool(Generic[StubT]):
    """Assigns each call to the connection with the fewest running calls.

    Ties go to the first connection, so that few calls open few connections.
    """

    def __init__(self, stubs: Sequence[StubT]) -> None:
        self._stubs = stubs
        self._running = [0] * len(stubs)  # calls per connection
        self._lock = threading.Lock()

    def acquire(self, avoid: Collection[int] = ()) -> Lease[StubT]:
        """Returns a connection for one call; one of ``avoid`` only if there is no other."""
        with self._lock:
            index = min(range(len(self._stubs)), key=lambda one: (one in avoid, self._running[one]))
            self._running[index] += 1
        return Lease(self, index, self._stubs[index])

    def release(self, index: int) -> None:
        """Records that a call on a connection has ended."""
        with self._lock:
            self._running[index] -= 1
