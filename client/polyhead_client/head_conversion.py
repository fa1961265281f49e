"""Conversion of the outputs of heads from protobuf messages, with a check that they are possible."""

from __future__ import annotations

import math
from collections.abc import Iterable

from polyhead.v1 import item_pb2

from .errors import invalid_answer
from .head_outputs import Classification, LabelScore, LabelSet, Score, Sentiment

_MAX_PROBABILITY = 1 + 1e-6  # 1, and the error of float32
_OUT_OF_RANGE = "a probability that is not between 0 and 1"
# Maximum difference between 1 and the sum of a head's probabilities, for thousands of labels in float32.
_MAX_SUM_ERROR = 0.01


def classification_of(output: item_pb2.Classification) -> Classification:
    """Returns the output of a softmax head.

    Raises:
        ServerError: It is impossible; the same for the other functions.
    """
    scores = _label_scores(output.head, output.scores, is_ordered=True, sums_to_one=True)
    labels = tuple(output.prediction_set) or None
    if labels and len({score.label for score in scores}.intersection(labels)) < len(labels):
        raise invalid_answer(f"the prediction set of head {output.head!r} has a label twice or without a probability")
    return Classification(output.head, scores, *_confidence(output), labels)


def sentiment_of(output: item_pb2.Sentiment) -> Sentiment:
    """Returns the output of a sigmoid head."""
    if not 0 <= output.probability <= _MAX_PROBABILITY:
        raise invalid_answer(f"the output of head {output.head!r} has {_OUT_OF_RANGE}")
    return Sentiment(output.head, output.probability, output.label, *_confidence(output))


def label_set_of(output: item_pb2.LabelSet) -> LabelSet:
    """Returns the output of a multilabel head."""
    scores = _label_scores(output.head, output.scores, is_ordered=True, sums_to_one=False)
    labels = tuple(output.labels)
    if len({score.label for score in scores}.intersection(labels)) < len(labels):
        raise invalid_answer(f"the output of head {output.head!r} has a label twice or without a probability")
    return LabelSet(output.head, scores, labels)


def score_of(output: item_pb2.Score) -> Score:
    """Returns the output of an ordinal or regression head."""
    if not math.isfinite(output.value):
        raise invalid_answer(f"the output of head {output.head!r} has the value {output.value}")
    if not output.probabilities:
        return Score(output.head, output.value)
    probabilities = _label_scores(output.head, output.probabilities, is_ordered=False, sums_to_one=True)
    if all(score.label != output.label for score in probabilities):
        raise invalid_answer(f"the output of head {output.head!r} has a label without a probability")
    return Score(output.head, output.value, output.label, probabilities, *_confidence(output))


def _confidence(
    output: item_pb2.Classification | item_pb2.Sentiment | item_pb2.Score,
) -> tuple[float | None, bool | None]:
    """Returns ``confidence`` and ``abstained``; None for a head that never abstains."""
    if not output.HasField("confidence"):
        return None, None
    if not 0 <= output.confidence <= _MAX_PROBABILITY:
        raise invalid_answer(f"the output of head {output.head!r} has a confidence that is not between 0 and 1")
    return output.confidence, output.abstained


def _label_scores(
    head: str, encoded: Iterable[item_pb2.LabelScore], *, is_ordered: bool, sums_to_one: bool
) -> tuple[LabelScore, ...]:
    scores = tuple(LabelScore(score.label, score.probability) for score in encoded)
    if problem := _scores_problem(scores, is_ordered, sums_to_one):
        raise invalid_answer(f"the output of head {head!r} has {problem}")
    return scores


def _scores_problem(scores: tuple[LabelScore, ...], is_ordered: bool, sums_to_one: bool) -> str | None:
    """Returns what is impossible about the probabilities of a head's labels."""
    total, limit = 0.0, _MAX_PROBABILITY
    for score in scores:
        probability = score.probability
        if not 0 <= probability <= limit:
            ordered = 0 <= probability <= _MAX_PROBABILITY
            return "labels that are not ordered by probability" if ordered else _OUT_OF_RANGE
        total += probability
        if is_ordered:
            limit = probability
    if not scores:
        return "no labels"
    if sums_to_one and abs(total - 1) > _MAX_SUM_ERROR:
        return f"probabilities that add up to {total:g}"
    return "a label twice" if len({score.label for score in scores}) < len(scores) else None
