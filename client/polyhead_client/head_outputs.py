"""The outputs of heads of each kind: frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from .value import Value


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
class LabelSet(Value):
    """The output of a multilabel head, whose labels apply independently of each other.

    Attributes:
        head: Name of the head.
        scores: Every label of the head once, most probable first; the probabilities do not sum to 1.
        labels: Those whose probability reaches their threshold, most probable first; empty when none applies.
    """

    head: str
    scores: tuple[LabelScore, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Score(Value):
    """The output of an ordinal or regression head.

    Attributes:
        head: Name of the head.
        value: Output of a regression head. For an ordinal head the expected value: the mean of its labels as numbers,
            or of their positions counted from 1 when a label is not a number, weighted by their probabilities.
        label: Median label of an ordinal head; None for a regression head.
        probabilities: Every label of an ordinal head once, in the model's order; the probabilities sum to 1. Empty for
            a regression head.
    """

    head: str
    value: float
    label: str | None = None
    probabilities: tuple[LabelScore, ...] = ()


HeadOutput: TypeAlias = Classification | Sentiment | LabelSet | Score
