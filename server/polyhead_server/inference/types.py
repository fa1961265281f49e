"""Types shared by the steps of the inference pipeline.

None of them changes once it is made, except ``Flow`` and ``Entry``. Those of which every text needs one are not
declared as frozen, because that makes them take three times as long to create.
"""

from __future__ import annotations

import asyncio
import enum
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyhead_server.errors import InvalidRequestError, ServerError


class Task(enum.Enum):
    """One kind of answer."""

    EMBEDDING = 1
    CLASSIFICATION = 2
    SENTIMENT = 3
    LABELS = 4
    SCORE = 5


class Encoding(enum.Enum):
    """Byte layout of an embedding."""

    FLOAT32_LE = 1
    FLOAT16_LE = 2
    INT8 = 3
    BINARY = 4


class Truncation(enum.Enum):
    """Policy for a text that has more tokens than the model reads."""

    TRUNCATE = 1
    ERROR = 2
    WINDOW = 3


ALL_TASKS = frozenset(Task)
MAX_ITEM_ID_BYTES = 256
# Size of a part of a message, which one step on the event loop processes: some tenths of a millisecond.
MAX_PART_ITEMS = 64
MAX_PART_CHARACTERS = 65_536


@dataclass(slots=True)
class Item:
    """One text with the id that its answer must carry."""

    item_id: str
    text: str


@dataclass(frozen=True, slots=True)
class InvalidItem:
    """An item that could not be decoded, with the reason; it is answered like any other item."""

    item_id: str
    error: InvalidRequestError


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """Options that a message sets for all of its items.

    Attributes:
        tasks: Kinds of answers to compute, as far as the model has heads for them.
        required_tasks: Those of them that the message names, for which the model must have a head.
        encoding: Byte layout of the embedding.
        dimensions: Dimensions of the embedding to return; 0 for all.
        truncation: Policy for texts that are too long.
        prompt: Name of the prompt of the model to put before every text; empty for none.
        timings: Whether to return a latency breakdown.
        novelty: Whether to return the novelty of the text, which the model must have.
        prediction_sets: Whether to return the prediction set of each head that has them.
        expected_space: Fingerprint that the model's embedding space must have; empty for any.
        expected_heads: Fingerprints that heads must have, by name.
    """

    tasks: frozenset[Task] = ALL_TASKS
    required_tasks: frozenset[Task] = frozenset()
    encoding: Encoding = Encoding.FLOAT32_LE
    dimensions: int = 0
    truncation: Truncation = Truncation.TRUNCATE
    prompt: str = ""
    timings: bool = False
    novelty: bool = False
    prediction_sets: bool = False
    expected_space: str = ""
    expected_heads: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class Message:
    """A decoded request message.

    Attributes:
        items: The items; those of a large message are decoded when they are read.
        options: Options for all of them.
        in_order: Order of the answers; None when the message does not set it.
        error: Error with which every item is rejected, made once for all of them; None for a message that is accepted.
    """

    items: Sequence[Item | InvalidItem]
    options: RequestOptions
    in_order: bool | None = None
    error: InvalidRequestError | None = None

    def parts(self) -> Iterator[Message]:
        """Divides the message into consecutive parts, each of which is little work for the event loop."""
        part: list[Item | InvalidItem] = []
        characters = 0
        for item in self.items:
            part.append(item)
            characters += len(item.text) if isinstance(item, Item) else 0
            if len(part) >= MAX_PART_ITEMS or characters >= MAX_PART_CHARACTERS:
                yield Message(part, self.options, self.in_order, self.error)
                part, characters = [], 0
        if part:
            yield Message(part, self.options, self.in_order, self.error)


@dataclass(slots=True)
class TokenizedText:
    """The token ids that the model reads for one text.

    Attributes:
        windows: Token ids with special tokens, each list at most the model's limit; several lists for a long text that
            is read in overlapping windows.
        seen: Number of tokens before truncation, those of the prompt included.
        cut_at: Code point where the unread part begins, in the text without the prompt; None when the whole text is
            read.
    """

    windows: tuple[list[int], ...]
    seen: int
    cut_at: int | None = None

    @property
    def used(self) -> int:
        """Number of tokens that the model reads, summed over all windows."""
        return len(self.windows[0]) if len(self.windows) == 1 else sum(map(len, self.windows))


class EstimatedSize(NamedTuple):
    """Size of an item as estimated before it is tokenized.

    Attributes:
        tokens: Estimated number of tokens.
        characters: Code points that are tokenized off the event loop; 0 for a text that is tokenized inline.
    """

    tokens: int
    characters: int


@dataclass(slots=True, eq=False, weakref_slot=True)
class Flow:
    """One call, a stream or a unary request, among which the scheduler shares out the engine.

    ``TokenAccounting`` alone writes the four counters, ``FairClock`` the next two fields, ``FairWorker`` the last one.

    Attributes:
        unary: Whether the answers go out together when the last one is ready.
        waiting_tokens: Tokens of the flow's entries that wait.
        in_service_tokens: Tokens of a unary flow's entries that left the queue while others of the flow still wait.
        reserved_tokens: Estimated tokens of the flow's admitted items that are not in the queue yet.
        reserved_characters: Code points of those items that are tokenized off the event loop.
        virtual_finish: Virtual time at which the flow's last entry would be finished.
        last_length: Tokens of that last entry.
        worker_time: Seconds of the tokenization thread that the flow is charged with.
    """

    unary: bool = False
    waiting_tokens: int = 0
    in_service_tokens: int = 0
    reserved_tokens: int = 0
    reserved_characters: int = 0
    virtual_finish: float = 0.0
    last_length: int = 0
    worker_time: float = 0.0

    @property
    def pending_tokens(self) -> int:
        """Tokens of the flow that wait now or will wait once they are tokenized."""
        return self.waiting_tokens + self.reserved_tokens


@dataclass(slots=True, eq=False)
class Entry:
    """One text, or one window of a long text, in the queue.

    Attributes:
        flow: The call that the text belongs to.
        tokens: The whole tokenized text.
        ids: Token ids that the model reads for this entry: one of the text's windows.
        future: Receives the outcome. A cancelled future means that the answer is not wanted any more.
        deadline: ``time.monotonic()`` second after which the answer is useless; None for no deadline.
        arrived_ns: ``time.monotonic_ns()`` at which the message arrived.
        tokenized_ns: ``time.monotonic_ns()`` at which the tokens were ready and the entry entered the queue.
        tokenization_ns: Duration of the tokenization that the entry was part of.
        key: Equal for entries with equal token ids, which share a computation; None for an entry that shares none.
        item: Index of the text among the admitted texts of its message.
        number: Number by which a front and the engine process refer to it; 0 without fronts.
        length: Tokens that the model reads, at least 1.
        waiting: Whether the entry waits in the queue; written by ``TokenAccounting`` alone.
        twins: The waiting entries with the same key, this one included; None for no other. Written by ``EqualTexts``
            alone, as is ``shared``.
        shared: Entries that are answered with the computation of this one; None for no other.
    """

    flow: Flow
    tokens: TokenizedText
    ids: list[int]
    future: asyncio.Future[ItemOutcome]
    deadline: float | None
    arrived_ns: int
    tokenized_ns: int
    tokenization_ns: int
    key: bytes | None = None
    item: int = 0
    number: int = field(init=False, default=0)
    length: int = field(init=False)
    waiting: bool = field(init=False, default=False)
    twins: dict[Entry, None] | None = field(init=False, default=None)
    shared: list[Entry] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.length = max(len(self.ids), 1)

    @property
    def is_first_window(self) -> bool:
        """Whether it is a whole text, or the first window of one; the engine process of ``--fronts`` has no windows."""
        windows = self.tokens.windows
        return self.ids is windows[0] if windows else self.tokens.seen > 0


@dataclass(frozen=True)
class Batch:
    """One unit of work for a compute thread.

    Attributes:
        entries: Entries to compute in one forward pass.
        expired: Entries whose deadline passed while they waited.
        backlog: Whether enough tokens for another full batch were left waiting.
    """

    entries: list[Entry]
    expired: list[Entry]
    backlog: bool = False

    @functools.cached_property
    def tokens(self) -> int:
        """Real tokens of the entries."""
        return sum([entry.length for entry in self.entries])

    @property
    def padding(self) -> int:
        """Padding tokens that the forward pass computes in addition."""
        longest = max([entry.length for entry in self.entries], default=0)
        return longest * len(self.entries) - self.tokens

    @property
    def shared_items(self) -> int:
        """Number of further entries that are answered with the computation of equal ones in this batch."""
        return sum([len(entry.shared) for entry in self.entries if entry.shared])


@dataclass(slots=True)
class Timings:
    """Latency breakdown of one item in nanoseconds, and the size of the batch that it was computed in.

    An item that was answered from the cache has no batch: ``queue_ns``, ``compute_ns``, ``batch_items`` and
    ``batch_tokens`` are 0. For one that shares the computation of an equal text, they count from its own arrival.

    Attributes:
        finished_ns: ``time.monotonic_ns()`` at which the batch ended; the durations count back from it.
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
        """Time before tokenization: the wait for capacity."""
        return self.total_ns - self.tokenization_ns - self.queue_ns - self.compute_ns

    @property
    def is_cached(self) -> bool:
        """Whether the item was answered from the cache."""
        return not self.batch_items


@dataclass(slots=True)
class ModelOutput:
    """The model's output for one item: one row of its batch after postprocessing.

    Attributes:
        embedding: (dimensions,) float32.
        logits: One array per head in the model's order: (outputs,) float32.
        probabilities: One array per head: (numbers,) float32, as ``head_answers`` defines them by the kind of the head;
            that of a regression head is its value.
    """

    embedding: NDArray[np.float32]
    logits: tuple[NDArray[np.float32], ...]
    probabilities: tuple[NDArray[np.float32], ...]


class QueueState(NamedTuple):
    """What waits in the queue of a process; all zero where the queue is in another process.

    Attributes:
        items: Entries that wait.
        tokens: Their tokens.
        pending_tokens: Tokens that wait now or will wait once they are tokenized.
        expected_wait_s: Expected queueing time of a text that arrives now.
        cache_bytes: Memory of the answer cache.
    """

    items: int = 0
    tokens: int = 0
    pending_tokens: int = 0
    expected_wait_s: float = 0.0
    cache_bytes: int = 0


@dataclass(slots=True)
class Result:
    """The successful outcome of one item."""

    output: ModelOutput
    tokens: TokenizedText
    timings: Timings


# Errors are values here, so that one item's error never disturbs another item.
ItemOutcome = Result | ServerError
OutcomeFuture = asyncio.Future[ItemOutcome]
