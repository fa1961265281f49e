"""The cores that several models of one process share: at most so many batches run at once, whichever model's.

Each model has its own queue and its own compute threads, as many as a model that is alone. A thread with work waits for
a slot before it takes a batch. So a model alone at work uses every core, and several never compete for one.
"""

from __future__ import annotations

import threading
from collections import deque


class ComputeSlots:
    """Slots, given out in the order in which they are requested. Any thread may call the methods.

    A slot that is released goes to the thread that has waited longest. With a plain semaphore the thread that releases
    it would take it again, and a model with a long queue would keep the others out.
    """

    def __init__(self, count: int) -> None:
        """Starts with all slots free.

        Args:
            count: Number of batches that may run at once.
        """
        self._lock = threading.Lock()
        self._count = count
        self._free = count
        self._waiting: deque[threading.Event] = deque()

    def acquire(self) -> None:
        """Takes a slot; waits for one if none is free."""
        with self._lock:
            if self._free:
                self._free -= 1
                return
            turn = threading.Event()
            self._waiting.append(turn)
        turn.wait()

    def release(self) -> None:
        """Gives a slot back, to the thread that has waited longest."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._free += 1

    @property
    def free(self) -> int:
        """Number of slots that nobody holds."""
        with self._lock:
            return self._free

    @property
    def in_use(self) -> int:
        """Number of slots that are held."""
        return self._count - self.free
