"""A cache of the model's outputs by token ids: least recently used first out, bounded in bytes."""

from __future__ import annotations

import itertools
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from .types import ModelOutput

# Bytes of an element of an OrderedDict beside its key and its value: the node of the list with what the allocator adds,
# and the slots of two hash tables, which are between a third and two thirds full.
ELEMENT_BYTES = 180

ObserveLookups = Callable[[int, int], None]


class AnswerCache:
    """Outputs of one model by the token ids that it read. Event loop only, not thread-safe.

    An output depends on nothing but the token ids and the model: not on the tasks, dimensions and encodings that calls
    ask for, which apply later, and not on batch-mates. So an element answers every call with these token ids. A model
    has a cache of its own, so that a reload begins with an empty one.

    Attributes:
        used_bytes: Memory of all elements with their keys.
    """

    def __init__(self, max_bytes: int, observe_lookups: ObserveLookups | None = None) -> None:
        """Creates an empty cache.

        Args:
            max_bytes: Limit of ``used_bytes``.
            observe_lookups: Receives the numbers of hits and misses of each ``get_many``.
        """
        self.used_bytes = 0
        self._max_bytes = max_bytes
        self._observe_lookups = observe_lookups
        # Each output as one array, which takes a quarter of the memory of an object and several arrays.
        self._values: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()
        # Begin of each part in such an array; all outputs of a model have the same shapes.
        self._splits: list[int] = []
        self._heads = 0

    @property
    def count(self) -> int:
        """Number of elements."""
        return len(self._values)

    def get_many(self, keys: Sequence[bytes]) -> list[ModelOutput | None]:
        """Returns the output for each key, None for an unknown one; counts hits and misses."""
        found = [self._get(key) for key in keys]
        if self._observe_lookups and keys:
            misses = sum(output is None for output in found)
            self._observe_lookups(len(found) - misses, misses)
        return found

    def put(self, key: bytes, output: ModelOutput) -> None:
        """Adds an output, and removes the least recently used ones beyond the limit."""
        parts = (output.embedding, *output.logits, *output.probabilities)
        # A copy: the parts are rows of the arrays of a whole batch.
        value = np.concatenate(parts)
        if not self._splits:
            ends = np.cumsum([len(part) for part in parts])
            self._splits = [0, *ends.tolist()]
            self._heads = len(output.logits)
        if (known := self._values.pop(key, None)) is not None:
            self.used_bytes -= _size(key, known)
        self._values[key] = value
        self.used_bytes += _size(key, value)
        while self.used_bytes > self._max_bytes:
            self.used_bytes -= _size(*self._values.popitem(last=False))

    def _get(self, key: bytes) -> ModelOutput | None:
        value = self._values.get(key)
        if value is None:
            return None
        self._values.move_to_end(key)
        embedding, *parts = [value[begin:end] for begin, end in itertools.pairwise(self._splits)]
        return ModelOutput(embedding, tuple(parts[: self._heads]), tuple(parts[self._heads :]))


def _size(key: bytes, value: NDArray[np.float32]) -> int:
    return sys.getsizeof(key) + sys.getsizeof(value) + ELEMENT_BYTES
