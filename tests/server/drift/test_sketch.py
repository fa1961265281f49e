"""The ring of buckets: what it adds up, evicts and occupies."""

from __future__ import annotations

import numpy as np
from polyhead_server.drift.sketch import Sketch


def test_bucket_adds_up_and_is_evicted_after_the_window() -> None:
    sketch = Sketch(2, bucket_s=10, buckets=3)
    for now, value in ((5.0, 1.0), (9.0, 1.0), (12.0, 4.0), (25.0, 8.0)):
        sketch.add(np.array([value, 0.0]), now)
    numbers, counts = sketch.blocks(29.0)
    assert numbers.tolist() == [0, 1, 2]
    assert counts[:, 0].tolist() == [2, 4, 8]
    assert sketch.blocks(30.0)[0].tolist() == [1, 2]
    # The bucket of 30 s takes the place of that of 0 s.
    sketch.add(np.array([16.0, 0.0]), 31.0)
    numbers, counts = sketch.blocks(31.0)
    assert (numbers.tolist(), counts[:, 0].tolist()) == ([1, 2, 3], [4, 8, 16])
    # Nothing is left after a quiet window.
    assert len(sketch.blocks(1000.0)[0]) == 0


def test_blocks_are_in_the_order_of_time() -> None:
    sketch = Sketch(1, bucket_s=1, buckets=4)
    for now in (5.0, 6.0, 7.0, 8.0):
        sketch.add(np.array([now]), now)
    numbers, counts = sketch.blocks(8.5)
    assert numbers.tolist() == [5, 6, 7, 8] == counts[:, 0].tolist()


def test_memory_is_that_of_the_ring_however_much_is_counted() -> None:
    sketch = Sketch(400, bucket_s=3600, buckets=24)
    before = sketch.nbytes
    assert before == 24 * (400 + 1) * 8
    for hour in range(500):
        sketch.add(np.ones(400), 3600.0 * hour)
    assert sketch.nbytes == before
    assert len(sketch.blocks(3600.0 * 499)[0]) == 24
