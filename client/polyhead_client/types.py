"""What a caller gets: plain frozen dataclasses, free of protobuf and gRPC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .errors import ItemFailedError


@dataclass(frozen=True)
class ItemError:
    """Why one item has no result.

    Attributes:
        code: The name of the status code, such as ``"OUT_OF_RANGE"``.
        reason: The machine-readable reason, one of those in docs/errors.md; empty when the server gave none.
        message: What happened, for people.
        retry_after_s: Seconds after which the server wants to be asked again; None when it did not say.
    """

    code: str
    reason: str
    message: str
    retry_after_s: float | None = None


@dataclass(frozen=True)
class LabelScore:
    """One label and its probability, 0 to 1."""

    label: str
    probability: float


@dataclass(frozen=True)
class Classification:
    """The answer of a softmax head.

    Attributes:
        head: The head's name.
        scores: Every label of the head once, most probable first; the probabilities sum to 1.
    """

    head: str
    scores: tuple[LabelScore, ...]

    @property
    def best(self) -> LabelScore:
        """The most probable label."""
        return self.scores[0]


@dataclass(frozen=True)
class Sentiment:
    """The answer of a sigmoid head.

    Attributes:
        head: The head's name.
        probability: Of the positive label, 0 to 1.
        label: The positive label when the probability reaches the head's threshold, otherwise the negative one.
    """

    head: str
    probability: float
    label: str


@dataclass(frozen=True)
class Truncation:
    """How much of the text the model read.

    Attributes:
        truncated: True when the model did not read the whole text.
        tokens_seen: Tokens of the text, special tokens included, before truncation.
        tokens_used: Tokens that the model read, special tokens included; those of every window.
        cut_at_code_point: Where the unread part begins: ``text[cut_at_code_point:]``. None when nothing was cut.
        windows: In which the text was read; 1 unless ``truncation="window"`` asked for more.
    """

    truncated: bool
    tokens_seen: int
    tokens_used: int
    cut_at_code_point: int | None = None
    windows: int = 1


@dataclass(frozen=True)
class Fingerprints:
    """What an answer came from. Two embeddings are comparable exactly when ``embedding_space`` is equal.

    Attributes:
        embedding_space: 16 hexadecimal digits.
        heads: 16 hexadecimal digits for each head's name, in the model's order.
    """

    embedding_space: str
    heads: Mapping[str, str]


@dataclass(frozen=True)
class Timings:
    """Where one item's time went on the server, in seconds.

    Attributes:
        tokenization_s: Turning the message's texts into tokens.
        queue_s: From the end of tokenization to the start of the pass.
        compute_s: The pass that the item shared with its batch.
        total_s: From the arrival of the message to the item's answer being ready: admission, tokenization, queue and
            compute.
        batch_items: The number of items that shared the pass.
        batch_tokens: The size of the pass, padding included.
        admission_s: Until the server took the message in: a stream's, until there was room.
        delivery_s: From the item's answer being ready to its being written, after those before it. Not part of total.
    """

    tokenization_s: float
    queue_s: float
    compute_s: float
    total_s: float
    batch_items: int
    batch_tokens: int
    admission_s: float
    delivery_s: float


@dataclass(frozen=True, eq=False)
class Result:
    """Every answer that was asked for about one text, all from one pass through the model.

    Attributes:
        truncation: How much of the text the model read.
        fingerprints: Of what answered.
        embedding: The sentence embedding, float32, (dimensions,), read-only; -1 and 1 when it came as ``"binary"``.
            None when it was not asked for.
        classification: The first softmax head's answer. None when not asked for, or the model has no such head.
        sentiment: The first sigmoid head's answer. None when not asked for, or the model has no such head.
        additional_classifications: The answers of the softmax heads after the first.
        additional_sentiments: The answers of the sigmoid heads after the first.
        timings: Where the time went. None when it was not asked for.
    """

    truncation: Truncation
    fingerprints: Fingerprints
    embedding: NDArray[np.float32] | None = field(default=None, repr=False)  # (dimensions,)
    classification: Classification | None = None
    sentiment: Sentiment | None = None
    additional_classifications: tuple[Classification, ...] = ()
    additional_sentiments: tuple[Sentiment, ...] = ()
    timings: Timings | None = None


@dataclass(frozen=True)
class Answer:
    """What became of one item: a result or an error, never both, never neither.

    Attributes:
        item_id: The item's id, as the caller gave it, or its running number in the call.
        result: What was asked for.
        error: Why there is no result.
    """

    item_id: str
    result: Result | None = None
    error: ItemError | None = None

    def unwrap(self) -> Result:
        """The result, for callers to whom an item without one is a failure.

        Raises:
            ItemFailedError: The item has an error.
        """
        if self.result is not None:
            return self.result
        error = self.error or ItemError("UNKNOWN", "", "the server sent neither a result nor an error")
        raise ItemFailedError(self.item_id, error.code, error.message, error.reason, error.retry_after_s)
