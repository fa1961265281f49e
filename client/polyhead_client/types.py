"""The answers of a client, ``Answer`` and its parts: frozen dataclasses, free of protobuf and gRPC."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidRequestError, ItemFailedError, ServerError

OutputT = TypeVar("OutputT")

# Fields of the protocol that are float32; their shortest decimals are shorter than those of the equal float64.
_FLOAT32_FIELDS = ("probability", "temperature", "threshold")


class Value:
    """Base class of the values that a client returns."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields by name, as values that ``json.dumps`` accepts.

        Nested values are dicts, tuples and embeddings are lists. A float32 is the shortest decimal that restores it:
        0.9, not the 0.8999999761581421 of the equal float64.
        """
        fields = dataclasses.fields(self)  # type: ignore[arg-type]  # every subclass is a dataclass
        return {one.name: _to_json(getattr(self, one.name), one.name in _FLOAT32_FIELDS) for one in fields}


def _to_json(value: Any, is_float32: bool = False) -> Any:
    converted: Any = value
    match value:
        case Value():
            converted = value.to_dict()
        case np.ndarray():
            converted = [_shortest(number) for number in value]
        case Mapping():
            converted = {key: _to_json(one) for key, one in value.items()}
        case tuple():
            converted = [_to_json(one) for one in value]
        case float() if not math.isfinite(value):
            converted = None  # JSON has no infinity
        case float() if is_float32:
            converted = _shortest(value)
    return converted


def _shortest(number: float | np.float32) -> float:
    return float(str(np.float32(number)))


@dataclass(frozen=True)
class ItemError(Value):
    """The reason why one item has no result.

    Attributes:
        code: Name of the gRPC status code, for example ``"OUT_OF_RANGE"``.
        reason: Machine-readable reason, listed in docs/reference/errors.md; empty when the server sent none.
        message: Human-readable description.
        retry_after_s: Seconds to wait before sending the item again; None when the server sent no delay.
    """

    code: str
    reason: str
    message: str
    retry_after_s: float | None = None


@dataclass(frozen=True)
class LabelScore(Value):
    """One label and its probability, 0 to 1."""

    label: str
    probability: float


@dataclass(frozen=True)
class Classification(Value):
    """The output of a softmax head.

    Attributes:
        head: Name of the head.
        scores: Every label of the head once, most probable first; the probabilities sum to 1.
    """

    head: str
    scores: tuple[LabelScore, ...]

    @property
    def best(self) -> LabelScore:
        """The most probable label, with its probability."""
        return self.scores[0]

    @property
    def label(self) -> str:
        """The most probable label."""
        return self.scores[0].label


@dataclass(frozen=True)
class Sentiment(Value):
    """The output of a sigmoid head.

    Attributes:
        head: Name of the head.
        probability: Probability of the positive label, 0 to 1.
        label: The positive label when the probability reaches the head's threshold, otherwise the negative one.
    """

    head: str
    probability: float
    label: str


@dataclass(frozen=True)
class Truncation(Value):
    """How much of the text the model read.

    Attributes:
        truncated: True when the model did not read the whole text.
        tokens_seen: Number of tokens in the text before truncation, special tokens included.
        tokens_used: Number of tokens that the model read in all windows, special tokens included.
        cut_at_code_point: Start of the unread part: ``text[cut_at_code_point:]``. None when the whole text was read.
        windows: Number of windows that the text was split into; 1 unless ``truncation="window"`` required more.
    """

    truncated: bool
    tokens_seen: int
    tokens_used: int
    cut_at_code_point: int | None = None
    windows: int = 1


@dataclass(frozen=True)
class Fingerprints(Value):
    """Identity of the weights that computed a result.

    Two embeddings are comparable exactly when their ``embedding_space`` is equal.

    Attributes:
        embedding_space: 16 hexadecimal digits.
        heads: Head name to 16 hexadecimal digits, in the model's order.
    """

    embedding_space: str
    heads: Mapping[str, str]


@dataclass(frozen=True)
class Timings(Value):
    """Time that one item spent in each step on the server, in seconds.

    Attributes:
        tokenization_s: Tokenization of the texts in the item's message.
        queue_s: End of tokenization to start of the forward pass.
        compute_s: Forward pass of the batch that contained the item.
        total_s: Arrival of the message to completion of the item's answer: admission, tokenization, queue, compute.
        batch_items: Number of items in the batch.
        batch_tokens: Number of tokens in the batch, padding included.
        admission_s: Arrival of the message to its admission; a stream waits here for free capacity.
        delivery_s: Completion of the item's answer to its write on the stream, after those before it. Not included in
            ``total_s``.
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
class Result(Value):
    """The outputs for one text, all computed in the same forward pass.

    Attributes:
        truncation: How much of the text the model read.
        fingerprints: Identity of the weights that computed this result.
        embedding: Sentence embedding, float32, shape (dimensions,), read-only; values -1 and 1 with
            ``encoding="binary"``. None when it was not requested.
        classification: Output of the first softmax head. None when not requested or the model has no such head.
        sentiment: Output of the first sigmoid head. None when not requested or the model has no such head.
        additional_classifications: Outputs of the softmax heads after the first.
        additional_sentiments: Outputs of the sigmoid heads after the first.
        timings: Time per step. None unless ``include_timings=True``.
    """

    truncation: Truncation
    fingerprints: Fingerprints
    embedding: NDArray[np.float32] | None = field(default=None, repr=False)  # (dimensions,)
    classification: Classification | None = None
    sentiment: Sentiment | None = None
    additional_classifications: tuple[Classification, ...] = ()
    additional_sentiments: tuple[Sentiment, ...] = ()
    timings: Timings | None = None

    @property
    def heads(self) -> dict[str, Classification | Sentiment]:
        """The output of each head, by its name."""
        first = [one for one in (self.classification, self.sentiment) if one is not None]
        return {one.head: one for one in (*first, *self.additional_classifications, *self.additional_sentiments)}

    def head(self, name: str) -> Classification | Sentiment:
        """Returns the output of a head.

        Args:
            name: Name of the head, as in ``ModelInfo.heads``.

        Raises:
            InvalidRequestError: The result has no output of that head; the message names those it has.
        """
        heads = self.heads
        if name in heads:
            return heads[name]
        near = difflib.get_close_matches(str(name), heads, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        problem = f"the result has no head {name!r}, only {', '.join(map(repr, heads)) or 'none'}{hint}"
        raise InvalidRequestError("NOT_FOUND", problem, "UNKNOWN_HEAD")


@dataclass(frozen=True)
class Answer(Value):
    """The outcome of one item: exactly one of ``result`` and ``error`` is set.

    ``embedding``, ``classification``, ``sentiment`` and ``head`` return a part of the result, never None: they raise
    where there is none, so that a type checker accepts ``answer.sentiment.label``.

    Attributes:
        item_id: Id of the item as the caller gave it, or its running number in the call.
        result: The requested outputs.
        error: The reason why there is no result.
    """

    item_id: str
    result: Result | None = None
    error: ItemError | None = None

    @property
    def embedding(self) -> NDArray[np.float32]:
        """Sentence embedding, float32, shape (dimensions,).

        Raises:
            ItemFailedError: The item has an error.
            InvalidRequestError: The result has no embedding.
        """
        return self._output("embedding", self.unwrap().embedding)

    @property
    def classification(self) -> Classification:
        """Output of the first softmax head.

        Raises:
            ItemFailedError: The item has an error.
            InvalidRequestError: The result has no classification.
        """
        return self._output("classification", self.unwrap().classification)

    @property
    def sentiment(self) -> Sentiment:
        """Output of the first sigmoid head.

        Raises:
            ItemFailedError: The item has an error.
            InvalidRequestError: The result has no sentiment.
        """
        return self._output("sentiment", self.unwrap().sentiment)

    def head(self, name: str) -> Classification | Sentiment:
        """Returns the output of a head, like ``Result.head``.

        Raises:
            ItemFailedError: The item has an error.
            InvalidRequestError: The result has no output of that head; the message names those it has.
        """
        return self.unwrap().head(name)

    def _output(self, task: str, output: OutputT | None) -> OutputT:
        if output is None:
            problem = (
                f"the answer to item {self.item_id!r} has no {task}: it was not requested, or the model has no head"
            )
            raise InvalidRequestError("NOT_FOUND", f"{problem} for it", "OUTPUT_MISSING")
        return output

    def unwrap(self) -> Result:
        """Returns the result, for callers that treat an item error as an exception.

        Raises:
            ItemFailedError: The item has an error.
        """
        if self.result is not None:
            return self.result
        error = self.error or ItemError("UNKNOWN", "", "the server sent neither a result nor an error")
        raise ItemFailedError(self.item_id, error.code, error.message, error.reason, error.retry_after_s)


def embedding_matrix(answers: Sequence[Answer]) -> NDArray[np.float32]:
    """Returns the embeddings of a call as one matrix.

    Args:
        answers: At least one answer.

    Returns:
        Array of float32, shape (number of answers, dimensions).

    Raises:
        ItemFailedError: An item has an error, the first of them.
        ServerError: Different models answered, and their embeddings are not comparable.
    """
    spaces = {answer.unwrap().fingerprints.embedding_space for answer in answers}
    if len(spaces) > 1:
        problem = f"the texts were embedded by different models, with embedding spaces {', '.join(sorted(spaces))}"
        raise ServerError("INTERNAL", f"{problem}; pass expected_fingerprints", "EMBEDDING_SPACES_DIFFER")
    return np.stack([answer.embedding for answer in answers])
