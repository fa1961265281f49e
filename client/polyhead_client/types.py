"""The answers of a client, ``Answer`` and its parts: frozen dataclasses, free of protobuf and gRPC."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidRequestError, ItemFailedError, ServerError
from .head_outputs import Classification, HeadOutput, LabelSet, Score, Sentiment
from .value import Value

OutputT = TypeVar("OutputT")
HeadT = TypeVar("HeadT", bound=HeadOutput)


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
class Truncation(Value):
    """How much of the text the model read.

    Attributes:
        truncated: True when the model did not read the whole text.
        tokens_seen: Number of tokens in the text before truncation, special tokens and prompt included.
        tokens_used: Number of tokens that the model read in all windows, special tokens and prompt included.
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
        batch_items: Number of items in the batch; 0 for an answer from the server's cache.
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
        label_sets: Outputs of the multilabel heads.
        scores: Outputs of the ordinal and regression heads.
        novelty: Share of the model's validation texts that are more like its training texts, 0 to 1. None unless
            ``include_novelty=True``.
    """

    truncation: Truncation
    fingerprints: Fingerprints
    embedding: NDArray[np.float32] | None = field(default=None, repr=False)  # (dimensions,)
    classification: Classification | None = None
    sentiment: Sentiment | None = None
    additional_classifications: tuple[Classification, ...] = ()
    additional_sentiments: tuple[Sentiment, ...] = ()
    timings: Timings | None = None
    label_sets: tuple[LabelSet, ...] = ()
    scores: tuple[Score, ...] = ()
    novelty: float | None = None

    @property
    def heads(self) -> dict[str, HeadOutput]:
        """The output of each head, by its name."""
        outputs: list[HeadOutput] = [one for one in (self.classification, self.sentiment) if one is not None]
        outputs += [*self.additional_classifications, *self.additional_sentiments, *self.label_sets, *self.scores]
        return {one.head: one for one in outputs}

    @overload
    def head(self, name: str) -> HeadOutput: ...

    @overload
    def head(self, name: str, kind: type[HeadT]) -> HeadT: ...

    def head(self, name: str, kind: type[Any] = Value) -> Any:
        """Returns the output of a head.

        Args:
            name: Name of the head, as in ``ModelInfo.heads``.
            kind: Type that the output must have, for type checkers: ``answer.head("stars", Score).value``.

        Raises:
            InvalidRequestError: The result has no output of that head; the message names those it has. Or the output
                has another type.
        """
        heads = self.heads
        if name in heads:
            if isinstance(heads[name], kind):
                return heads[name]
            problem = f"the output of head {name!r} is a {type(heads[name]).__name__}, not a {kind.__name__}"
            raise InvalidRequestError("NOT_FOUND", problem, "UNKNOWN_HEAD")
        near = difflib.get_close_matches(str(name), heads, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        problem = f"the result has no head {name!r}, only {', '.join(map(repr, heads)) or 'none'}{hint}"
        raise InvalidRequestError("NOT_FOUND", problem, "UNKNOWN_HEAD")


@dataclass(frozen=True)
class Answer(Value):
    """The outcome of one item: exactly one of ``result`` and ``error`` is set.

    ``embedding``, ``classification``, ``sentiment``, ``label_sets``, ``scores`` and ``head`` return a part of the
    result, never None and never nothing: they raise where there is none, so that a type checker accepts
    ``answer.sentiment.label``.

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

    @property
    def label_sets(self) -> tuple[LabelSet, ...]:
        """Outputs of the multilabel heads, at least one.

        Raises:
            ItemFailedError: The item has an error.
            InvalidRequestError: The result has no label sets.
        """
        return self._output("label set", self.unwrap().label_sets or None)

    @property
    def scores(self) -> tuple[Score, ...]:
        """Outputs of the ordinal and regression heads, at least one.

        Raises:
            ItemFailedError: The item has an error.
            InvalidRequestError: The result has no scores.
        """
        return self._output("score", self.unwrap().scores or None)

    @overload
    def head(self, name: str) -> HeadOutput: ...

    @overload
    def head(self, name: str, kind: type[HeadT]) -> HeadT: ...

    def head(self, name: str, kind: type[Any] = Value) -> Any:
        """Returns the output of a head, like ``Result.head``.

        Raises:
            ItemFailedError: The item has an error.
            InvalidRequestError: The result has no output of that head; the message names those it has. Or the output
                has another type.
        """
        return self.unwrap().head(name, kind)

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
