"""The outputs of heads of each kind: frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from .value import Value

_OPTIONAL = ("confidence", "abstained", "prediction_set")


class MaybeAbstained(Value):
    """Base class of the outputs of heads that may abstain; without ``confidence`` in JSON for those that never do."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields by name, like ``Value.to_dict``."""
        return {name: value for name, value in super().to_dict().items() if name not in _OPTIONAL or value is not None}


@dataclass(frozen=True)
class LabelScore(Value):
    """One label and its probability, 0 to 1."""

    label: str
    probability: float


@dataclass(frozen=True)
class Classification(MaybeAbstained):
    """The output of a softmax head.

    Attributes:
        head: Name of the head.
        scores: Every label of the head once, most probable first; the probabilities sum to 1.
        confidence: Probability of the most probable label; None for a head that never abstains.
        abstained: True when the confidence is below the head's threshold, so that the head does not vouch for its
            answer, which is unchanged; None for a head that never abstains.
        prediction_set: Labels among which the true one is with the probability ``HeadInfo.prediction_sets.coverage``,
            most probable first. None unless ``include_prediction_sets=True``, and for a head without such sets.
    """

    head: str
    scores: tuple[LabelScore, ...]
    confidence: float | None = None
    abstained: bool | None = None
    prediction_set: tuple[str, ...] | None = None

    @property
    def best(self) -> LabelScore:
        """The most probable label, with its probability."""
        return self.scores[0]

    @property
    def label(self) -> str:
        """The most probable label."""
        return self.scores[0].label


@dataclass(frozen=True)
class Sentiment(MaybeAbstained):
    """The output of a sigmoid head.

    Attributes:
        head: Name of the head.
        probability: Probability of the positive label, 0 to 1.
        label: The positive label when the probability reaches the head's threshold, otherwise the negative one.
        confidence: Probability of ``label``; None for a head that never abstains.
        abstained: True when the confidence is below the head's threshold, so that the head does not vouch for its
            answer, which is unchanged; None for a head that never abstains.
    """

    head: str
    probability: float
    label: str
    confidence: float | None = None
    abstained: bool | None = None


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
class Score(MaybeAbstained):
    """The output of an ordinal or regression head.

    Attributes:
        head: Name of the head.
        value: Output of a regression head. For an ordinal head the expected value: the mean of its labels as numbers,
            or of their positions counted from 1 when a label is not a number, weighted by their probabilities.
        label: Median label of an ordinal head; None for a regression head.
        probabilities: Every label of an ordinal head once, in the model's order; the probabilities sum to 1. Empty for
            a regression head.
        confidence: Probability of ``label``; None for a head that never abstains.
        abstained: True when the confidence is below the head's threshold, so that the head does not vouch for its
            answer, which is unchanged; None for a head that never abstains.
    """

    head: str
    value: float
    label: str | None = None
    probabilities: tuple[LabelScore, ...] = ()
    confidence: float | None = None
    abstained: bool | None = None


HeadOutput: TypeAlias = Classification | Sentiment | LabelSet | Score
