"""Several connections to one target, and which of them a call takes. No I/O: the clients open and close them.

A server's workers share one port, and a connection reaches one of them: whoever has several reaches several, and a
worker that dies takes no more than its own connections' calls along.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from typing import Generic, Self, TypeVar

StubT = TypeVar("StubT")

# Two workers are both reached with a probability of 7 in 8. One that is not needed is never opened.
DEFAULT_CONNECTIONS = 4


class Lease(Generic[StubT]):
    """A connection for the length of one call: until ``give_back``, or the end of a ``with`` block.

    Attributes:
        number: Of the connection.
        stub: To call.
    """

    def __init__(self, connections: Connections[StubT], number: int, stub: StubT) -> None:
        self.number = number
        self.stub = stub
        self._connections = connections

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.give_back()

    def give_back(self) -> None:
        """Says that the call has ended."""
        self._connections.count(self.number, -1)


class Connections(Generic[StubT]):
    """Deals calls to the connection with the fewest running; the first of several, so that few calls open few."""

    def __init__(self, stubs: Sequence[StubT]) -> None:
        self._stubs = stubs
        self._running = [0] * len(stubs)
        self._lock = threading.Lock()

    def lease(self, avoid: Collection[int] = ()) -> Lease[StubT]:
        """A connection for one call, if possible none of those to avoid."""
        with self._lock:
            number = min(range(len(self._stubs)), key=lambda one: (one in avoid, self._running[one]))
            self._running[number] += 1
        return Lease(self, number, self._stubs[number])

    def count(self, number: int, calls: int) -> None:
        """Counts calls that begin on a connection, or end there."""
        with self._lock:
            self._running[number] += calls
