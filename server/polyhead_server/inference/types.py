"""What the steps of the server hand to each other: items, what is wished for them, and their results."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polyhead_server.errors import InvalidRequestError, ServerError


class Task(enum.Enum):
    """One kind of answer."""

    EMBEDDING = 1
    CLASSIFICATION = 2
    SENTIMENT = 3


class Encoding(enum.Enum):
    """Layout of an embedding's bytes."""

    FLOAT32_LE = 1
    FLOAT16_LE = 2
    INT8 = 3
    BINARY = 4


class Truncation(enum.Enum):
    """What happens to a text that has more tokens than the model reads."""

    TRUNCATE = 1
    ERROR = 2
    WINDOW = 3


ALL_TASKS = frozenset(Task)


@dataclass(frozen=True, slots=True)
class Item:
    """One text with the id that its answer must carry."""

    item_id: str
    text: str


@dataclass(frozen=True, slots=True)
class InvalidItem:
    """An item that could not be read, with the reason; it is answered like any other."""

    item_id: str
    error: InvalidRequestError


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """What a message asks for all of its items.

    Attributes:
        tasks: Kinds of answers.
        encoding: Of the embedding.
        dimensions: Of the embedding; 0 for all.
        truncation: Of texts that are too long.
        timings: Whether to say where the time went.
        expected_space: Fingerprint of the embedding space that must answer; empty for any.
        expected_heads: Fingerprints of heads that must answer, by name.
    """

    tasks: frozenset[Task] = ALL_TASKS
    encoding: Encoding = Encoding.FLOAT32_LE
    dimensions: int = 0
    truncation: Truncation = Truncation.TRUNCATE
    timings: bool = False
    expected_space: str = ""
    expected_heads: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Message:
    """A request message after reading. ``in_order`` is None when the message does not say."""

    items: tuple[Item | InvalidItem, ...]
    options: RequestOptions
    in_order: bool | None = None


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """A text as the model reads it.

    Attributes:
        windows: Token ids with special tokens, each at most the model's limit; several for a long text that is read in
            overlapping windows.
        seen: Number of tokens before truncation.
        cut_at: Code point where the unread part begins; None when all was read.
    """

    windows: tuple[list[int], ...]
    seen: int
    cut_at: int | None = None

    @property
    def used(self) -> int:
        """Tokens that the model reads, those of all windows."""
        return sum(map(len, self.windows))


@dataclass(frozen=True, slots=True)
class Timings:
    """Where an item's time went, in nanoseconds, and the size of the pass that it rode in.

    Attributes:
        finished_ns: When the pass ended (``time.monotonic_ns()``), from which everything else is counted back.
    """

    tokenization_ns: int
    queue_ns: int
    compute_ns: int
    total_ns: int
    batch_items: int
    batch_tokens: int
    finished_ns: int

    @property
    def admission_ns(self) -> int:
        """What is before the tokenization: the wait for room."""
        return self.total_ns - self.tokenization_ns - self.queue_ns - self.compute_ns


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """One item's row of what the engine and the heads made of its batch.

    Attributes:
        embedding: (dimensions,) float32.
        probabilities: For each head in the model's order: (labels,) float32, or (1,) for a sigmoid head.
    """

    embedding: NDArray[np.float32]
    probabilities: tuple[NDArray[np.float32], ...]


@dataclass(frozen=True, slots=True)
class Result:
    """What one item is answered with."""

    numbers: ModelOutput
    tokens: TokenizedText
    timings: Timings


# What becomes of an item: errors are values here, so that one item's never disturbs another's.
ItemOutcome = Result | ServerError
