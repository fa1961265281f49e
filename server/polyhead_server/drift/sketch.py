"""The counts of the recent past, in a ring of buckets of time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Sketch:
    """A ring of vectors, one for each bucket of time. Its memory is allocated once and never grows.

    Buckets are numbered by the time since the epoch of the clock, so that those of several processes coincide.
    """

    def __init__(self, width: int, bucket_s: float, buckets: int) -> None:
        """Allocates the ring.

        Args:
            width: Length of a vector.
            bucket_s: Seconds of a bucket.
            buckets: Number of buckets that are kept, that of the current time included.
        """
        self._bucket_s = bucket_s
        self._counts = np.zeros((buckets, width))
        # -1 for a place of the ring that holds no bucket.
        self._numbers = np.full(buckets, -1, dtype=np.int64)

    @property
    def nbytes(self) -> int:
        """Memory of the ring."""
        return self._counts.nbytes + self._numbers.nbytes

    def add(self, counts: NDArray[np.float64], now_s: float) -> None:
        """Adds a vector to the bucket of the current time; evicts the bucket that had its place a window ago."""
        number = int(now_s // self._bucket_s)
        place = number % len(self._numbers)
        if self._numbers[place] != number:
            self._numbers[place] = number
            self._counts[place] = 0
        self._counts[place] += counts

    def blocks(self, now_s: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Returns numbers (K,) and vectors (K, width) of the buckets of the window, in order of time."""
        oldest = int(now_s // self._bucket_s) - len(self._numbers) + 1
        places = np.flatnonzero(self._numbers >= max(oldest, 0))
        places = places[np.argsort(self._numbers[places])]
        return self._numbers[places], self._counts[places]
