"""What a bundle states about when to trust an answer: when heads abstain, and how new a text is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CoveragePoint:
    """A point of a risk-coverage curve, on the validation rows.

    With ``threshold`` as the lowest confidence that is answered, ``coverage`` is the share of the rows that are
    answered, and ``accuracy`` the share of those that are answered correctly.
    """

    threshold: float
    coverage: float
    accuracy: float


@dataclass(frozen=True)
class Abstention:
    """When a head abstains, and what that promises.

    ``accuracy`` is the promised share of correct answers among the texts on which the head does not abstain, a promise
    that holds with the probability ``certainty`` for texts like those of validation. The head abstains where its
    confidence, the float32 probability of its prediction, is below ``threshold``; null where no confidence keeps the
    promise, and the head then never abstains. ``lower_bound`` is the accuracy that is certain at the threshold; without
    a threshold, the highest accuracy that a confidence keeps. ``coverage`` is the share of the ``rows`` validation rows
    that is answered, 0 without a threshold, and ``curve`` their risk-coverage curve, lowest coverage first.
    """

    accuracy: float
    certainty: float
    threshold: float | None
    lower_bound: float
    coverage: float
    rows: int
    curve: tuple[CoveragePoint, ...]


@dataclass(frozen=True)
class PredictionSets:
    """Sets of labels of a softmax head among which the true one is with the probability ``coverage``.

    A set holds each label whose float32 probability is at or above ``threshold``, and the most probable label in any
    case. The probability holds for texts like the ``rows`` validation rows that the threshold was found on (split
    conformal prediction).
    """

    coverage: float
    threshold: float
    rows: int


@dataclass(frozen=True)
class Novelty:
    """What decides the novelty of a text: the Mahalanobis distance of its embedding to the nearest centroid.

    ``novelty.npy`` holds ``centroids`` rows, then a unit vector for each of the ``variances``, in float16. All clusters
    share one covariance: the variances along these directions, ``noise`` along every other. ``percentiles`` are squared
    distances of validation texts, evenly spaced from the nearest to the farthest; the share of them that are below a
    text's distance is its novelty, 0 to 1.
    """

    centroids: int
    variances: tuple[float, ...]
    noise: float
    percentiles: tuple[float, ...]

    def shape(self, dimensions: int) -> tuple[int, int]:
        """Returns the shape of the matrix for embeddings of so many dimensions."""
        return self.centroids + len(self.variances), dimensions


def check_novelty(found: Novelty) -> None:
    """Rejects a novelty with impossible values.

    Raises:
        ValueError: Names the field and what is wrong with it.
    """
    if found.centroids < 1:
        raise ValueError(f"novelty.centroids: must be at least 1; got {found.centroids}")
    for field, values in (("variances", found.variances), ("noise", (found.noise,))):
        if not all(value > 0 for value in values):
            raise ValueError(f"novelty.{field}: must be above 0; got {min(values)}")
    if len(found.percentiles) < 2 or list(found.percentiles) != sorted(found.percentiles):
        raise ValueError("novelty.percentiles: requires at least two numbers, the lowest first")


def check_prediction_sets(where: str, found: PredictionSets) -> None:
    """Rejects prediction sets with impossible values.

    Args:
        where: Path of the field, for the message.
        found: The prediction sets.

    Raises:
        ValueError: Names the field and what is wrong with it.
    """
    if not 0 < found.coverage < 1:
        raise ValueError(f"{where}.coverage: must be between 0 and 1; got {found.coverage}")
    if not 0 <= found.threshold <= 1:
        raise ValueError(f"{where}.threshold: must be from 0 to 1; got {found.threshold}")
    if found.rows < 1:
        raise ValueError(f"{where}.rows: {found.rows} is not a number of rows")


def check_abstention(where: str, found: Abstention) -> None:
    """Rejects an abstention with values that contradict each other.

    Args:
        where: Path of the field, for the message.
        found: The abstention.

    Raises:
        ValueError: Names the field and what is wrong with it.
    """
    for field, value in (("accuracy", found.accuracy), ("certainty", found.certainty)):
        if not 0 < value < 1:
            raise ValueError(f"{where}.{field}: must be between 0 and 1; got {value}")
    shares = [
        found.lower_bound,
        found.coverage,
        *(share for one in found.curve for share in (one.coverage, one.accuracy)),
    ]
    thresholds = [*(one.threshold for one in found.curve), *([] if found.threshold is None else [found.threshold])]
    if not all(0 <= value <= 1 for value in (*shares, *thresholds)):
        raise ValueError(f"{where}: has a value that is not between 0 and 1")
    if found.rows < 0:
        raise ValueError(f"{where}.rows: {found.rows} is not a number of rows")
