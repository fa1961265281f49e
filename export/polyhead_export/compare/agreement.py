"""How far the answers of two models agree on the same texts; the models are called old and new.

::

    answers of old and new --head_agreement-----> HeadAgreement: changed texts, matrix of labels, confidence, accuracy
    their embeddings       --embedding_agreement-> EmbeddingAgreement: one space or two, cosines, common neighbours
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from polyhead_bundle import Head
from polyhead_training.evaluation.probabilities import is_labelled, probabilities
from scipy.stats import binomtest

from polyhead_export.eval_data import predictions

Space = Literal["same", "comparable", "other", "other size"]
# Nearest neighbours of a text that are compared, and texts among which they are searched.
NEIGHBOURS = 10
MAX_NEIGHBOUR_TEXTS = 2000
# Lowest share of texts whose own vector of the other model is nearer than that of the next text, in one space.
_RECOGNIZED = 0.9


class Share(NamedTuple):
    """A share of texts, 0 to 1, with its 95 % interval (Wilson score)."""

    texts: int
    total: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of both models on the labelled texts.

    Attributes:
        rows: Number of labelled texts.
        old: Share of correct answers of the old model.
        new: Share of correct answers of the new model.
        only_old: Texts that the old model alone answers correctly.
        only_new: Texts that the new model alone answers correctly.
        p_value: Probability of a difference at least as large if both were equally good (exact McNemar test).
    """

    rows: int
    old: float
    new: float
    only_old: int
    only_new: int
    p_value: float


@dataclass(frozen=True)
class HeadAgreement:
    """Agreement of a head of both models on N texts.

    Attributes:
        name: Name of the head.
        kind: Kind of the head in both models.
        changed: Texts with another answer; None for a regression head.
        matrix: Texts by label of the old model (row) and of the new model (column); for a multi-label head by label,
            with the columns "both", "old alone" and "new alone". Empty for a regression head.
        rows: Labels of the rows of ``matrix``.
        columns: Labels of the columns of ``matrix``.
        weighted: Mean over all texts of the lower of both confidences where the answer changed, else 0: changes that
            neither model was sure of count little. None unless the head has one label per text.
        difference: Mean difference of the answers: of a regression head or of the places of ordinal labels, in units of
            the answer; otherwise half the sum of the differences of the probabilities (total variation), or the
            mean over the labels of a multi-label head. None if the labels differ.
        accuracy: Accuracy where texts have labels, if any have.
        only_old: Labels that the old model alone has.
        only_new: Labels that the new model alone has.
        changes: (N,) whether the answer changed; with a regression head, the absolute difference.
        answers: (N,) answers of the old and of the new model, as places in ``rows``; (N, labels) zeros and ones of a
            multi-label head; numbers of a regression head.
    """

    name: str
    kind: str
    changed: Share | None
    matrix: NDArray[np.int64]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    weighted: float | None
    difference: float | None
    accuracy: Accuracy | None
    only_old: tuple[str, ...]
    only_new: tuple[str, ...]
    changes: NDArray[Any]
    answers: tuple[NDArray[Any], NDArray[Any]]

    def answer(self, model: int, row: int) -> str:
        """Returns the answer of model 0, the old one, or 1, the new one, to a text."""
        found = self.answers[model][row]
        if self.kind == "regression":
            return f"{found:.4g}"
        if self.kind == "multilabel":
            return ", ".join(label for label, applies in zip(self.rows, found, strict=True) if applies)
        return str(self.rows[found])


@dataclass(frozen=True)
class EmbeddingAgreement:
    """Agreement of the embeddings of N texts.

    Attributes:
        space: ``same``: the fingerprints are equal; ``comparable``: other weights, but the vectors of both models can
            stand in one index; ``other``: they cannot, since a text is not nearest to itself; ``other size``.
        cosine: Mean, 5th percentile and minimum of the cosine of the two vectors of a text; None unless of one space.
        recognized: Share of texts whose new vector is nearer to their own old vector than to that of any other text;
            None with other sizes.
        common_neighbours: Mean share of the nearest texts by the old vectors that are also nearest by the new ones,
            which also compares spaces of different sizes.
        neighbours: Number of nearest texts that were compared.
    """

    space: Space
    cosine: tuple[float, float, float] | None
    recognized: float | None
    common_neighbours: float
    neighbours: int


def share(count: int, total: int) -> Share:
    """Returns a share of texts with its interval; of no texts, every share is possible."""
    if not total:
        return Share(0, 0, float("nan"), 0.0, 1.0)
    interval = binomtest(count, total).proportion_ci(method="wilson")
    return Share(count, total, count / total, float(interval.low), float(interval.high))


def head_agreement(
    old: Head,
    new: Head,
    old_logits: NDArray[np.float32],
    new_logits: NDArray[np.float32],
    truth: NDArray[Any] | None = None,
) -> HeadAgreement:
    """Compares a head of two models.

    Args:
        old: The head of the old model.
        new: The head of the new model, of the same kind.
        old_logits: (N, outputs of the old head).
        new_logits: (N, outputs of the new head).
        truth: True answers in terms of ``union_labels``, as in training's ``Targets.arrays``; None without any.

    Raises:
        ValueError: The heads are of different kinds.
    """
    if old.kind != new.kind:
        raise ValueError(f"head {old.name!r} is {old.kind} in the old model and {new.kind} in the new one")
    found = predictions({old.output: old_logits}, old), predictions({new.output: new_logits}, new)
    if old.kind == "regression":
        difference = np.abs(found[0] - found[1])
        empty = np.zeros((0, 0), np.int64)
        return HeadAgreement(
            old.name, old.kind, None, empty, (), (), None, float(difference.mean()), None, (), (), difference, found
        )
    labels = union_labels(old, new)
    placed = _placed(old, found[0], labels), _placed(new, found[1], labels)
    differs = placed[0] != placed[1]  # (N,), or (N, labels) of a multi-label head
    changes = differs if differs.ndim == 1 else differs.any(axis=1)
    values = [probabilities(head.kind, x, head.temperature) for head, x in ((old, old_logits), (new, new_logits))]
    weighted = None
    if old.kind != "multilabel":
        lower = np.minimum(*(_confidence(head, one) for head, one in zip((old, new), values, strict=True)))
        weighted = float((lower * changes).mean())
    return HeadAgreement(
        name=old.name,
        kind=old.kind,
        changed=share(int(changes.sum()), len(changes)),
        matrix=_matrix(old.kind, *placed, len(labels)),
        rows=labels,
        columns=("both", "old alone", "new alone") if old.kind == "multilabel" else labels,
        weighted=weighted,
        difference=_difference(old, values, found) if old.labels == new.labels else None,
        accuracy=None if truth is None else _accuracy(placed, truth),
        only_old=tuple(label for label in old.labels if label not in new.labels),
        only_new=tuple(label for label in new.labels if label not in old.labels),
        changes=changes,
        answers=placed,
    )


def embedding_agreement(old: NDArray[np.float32], new: NDArray[np.float32], *, same_space: bool) -> EmbeddingAgreement:
    """Compares two embeddings of N texts.

    Args:
        old: (N, dimensions of the old model).
        new: (N, dimensions of the new model).
        same_space: Whether the fingerprints of the spaces are equal.
    """
    first, second = (
        vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12) for vectors in (old, new)
    )
    step = max(1, -(-len(first) // MAX_NEIGHBOUR_TEXTS))
    some, others = first[::step], second[::step]
    count = min(NEIGHBOURS, len(some) - 1)
    common = 1.0
    if count > 0:
        nearest = [np.argpartition(-_without_self(one), count - 1, axis=1)[:, :count] for one in (some, others)]
        common = float(np.mean([len(np.intersect1d(a, b)) / count for a, b in zip(*nearest, strict=True)]))
    if first.shape[1] != second.shape[1]:
        return EmbeddingAgreement("other size", None, None, common, count)
    # Equal texts have equal vectors: a text is also recognized by its copy.
    crossed = some @ others.T  # (texts, texts)
    recognized = float((np.diag(crossed) >= crossed.max(axis=0) - 1e-6).mean())
    space: Space = "same" if same_space else "comparable" if recognized >= _RECOGNIZED else "other"
    cosines = (first * second).sum(axis=1)
    summary = (float(cosines.mean()), float(np.quantile(cosines, 0.05)), float(cosines.min()))
    return EmbeddingAgreement(space, None if space == "other" else summary, recognized, common, count)


def union_labels(old: Head, new: Head) -> tuple[str, ...]:
    """Returns the labels of both heads, those of the old one first."""
    return tuple(dict.fromkeys([*old.labels, *new.labels]))


def _placed(head: Head, found: NDArray[Any], labels: Sequence[str]) -> NDArray[np.int64]:
    """Expresses a head's answers in other labels: (N,) places, or (N, labels) zeros and ones for a multi-label head."""
    places = np.array([labels.index(label) for label in head.labels])
    if head.kind != "multilabel":
        return np.asarray(places[found])
    placed = np.zeros((len(found), len(labels)), np.int64)
    placed[:, places] = found
    return placed


def _matrix(kind: str, old: NDArray[np.int64], new: NDArray[np.int64], labels: int) -> NDArray[np.int64]:
    if kind == "multilabel":
        return np.stack([(old & new).sum(axis=0), (old & ~new).sum(axis=0), (new & ~old).sum(axis=0)], axis=1)
    return np.bincount(old * labels + new, minlength=labels**2).reshape(labels, labels)


def _confidence(head: Head, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability of the more probable side or label, (N,)."""
    if head.kind == "sigmoid":
        return np.asarray(np.maximum(values[:, 0], 1.0 - values[:, 0]))
    return np.asarray(values.max(axis=1))


def _difference(head: Head, values: Sequence[NDArray[np.float64]], found: Sequence[NDArray[Any]]) -> float:
    if head.kind == "ordinal":
        return float(np.abs(found[0] - found[1]).mean())
    differences = np.abs(values[0] - values[1])
    if head.kind == "softmax":
        return float(differences.sum(axis=1).mean() / 2.0)
    return float(differences.mean())


def _accuracy(placed: Sequence[NDArray[np.int64]], truth: NDArray[Any]) -> Accuracy | None:
    chosen = is_labelled(truth)
    if not chosen.any():
        return None
    equal = [one[chosen] == truth[chosen] for one in placed]
    old, new = (one if one.ndim == 1 else one.all(axis=1) for one in equal)
    only_old, only_new = int((old & ~new).sum()), int((new & ~old).sum())
    p_value = binomtest(only_old, only_old + only_new).pvalue if only_old + only_new else 1.0
    return Accuracy(int(chosen.sum()), float(old.mean()), float(new.mean()), only_old, only_new, float(p_value))


def _without_self(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosines of the vectors with each other, (N, N), the lowest with themselves."""
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    return cosines
