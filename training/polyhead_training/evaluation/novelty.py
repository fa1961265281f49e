"""Novelty of a text: how far its sentence embedding lies from those of the training texts.

::

    training embeddings --k-means, covariance--> centroids, directions, variances --+
    validation embeddings --distances--> percentiles --------------------------------+--> NoveltyModel --score--> 0 to 1

The distance is the Mahalanobis distance to the nearest centroid (Lee et al., arXiv 1807.03888), with one covariance
within all clusters. That is the one of probabilistic PCA (Tipping and Bishop 1999): a variance for each of the first
directions, and one for all others, whose own variances are too small to be estimated. A score is the share of the
validation texts that are nearer.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .probabilities import Floats

# 64 centroids and 32 directions of 384 float16 take 72 KiB. More of them gained nothing on news and on intents.
_MAX_CENTROIDS = 64
_MAX_DIRECTIONS = 32
# Texts per centroid, and per direction, without which they would fit the texts themselves.
_MIN_TEXTS = 20
_PERCENTILES = 101
# Texts whose distances are computed at once; each takes up to 37 kB.
_ROWS = 2000
# Smallest variance, of embeddings of length about 1: equal texts have none.
_MIN_VARIANCE = 1e-6


@dataclass(frozen=True)
class NoveltyModel:
    """What decides the novelty of an embedding.

    Attributes:
        matrix: (centroids + directions, dimensions) float16: the centroids, then the unit vectors of the directions.
        variances: (directions,) variances along the directions.
        noise: Variance along every other direction.
        percentiles: (101,) squared distances of the validation texts at 0, 1, ..., 100 %.
        mean: (dimensions,) mean of the validation embeddings.
        spread: (dimensions,) standard deviation of the validation embeddings.
    """

    matrix: NDArray[np.float16]
    variances: NDArray[np.float64]
    noise: float
    percentiles: NDArray[np.float64]
    mean: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    spread: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def distances(self, embeddings: Floats) -> NDArray[np.float64]:
        """Computes the squared distance of each of (N, dimensions) embeddings to its nearest centroid, (N,)."""
        centroids, directions = np.split(self.matrix.astype(np.float64), [len(self.matrix) - len(self.variances)])
        found = []
        for first in range(0, len(embeddings) or 1, _ROWS):
            values = np.asarray(embeddings[first : first + _ROWS], dtype=np.float64)  # (n, dimensions)
            squares = (values**2).sum(axis=1)[:, None] - 2 * values @ centroids.T + (centroids**2).sum(axis=1)  # (n, k)
            along = (values @ directions.T)[:, None] - centroids @ directions.T  # (n, k, directions)
            explained = along**2 @ (1 / self.noise - 1 / self.variances)  # (n, k)
            found.append((squares / self.noise - explained).min(axis=1))
        return np.concatenate(found)

    def score(self, embeddings: Floats) -> NDArray[np.float64]:
        """Computes the novelty of each of (N, dimensions) embeddings, (N,), 0 to 1."""
        shares = np.linspace(0, 1, len(self.percentiles))
        return np.asarray(np.interp(self.distances(embeddings), self.percentiles, shares))

    def to_json(self) -> dict[str, Any]:
        """Returns the numbers beside the matrix, in the form of ``run.json``."""
        return {
            "centroids": len(self.matrix) - len(self.variances),
            "variances": self.variances.tolist(),
            "noise": self.noise,
            "percentiles": self.percentiles.tolist(),
        }


def fit_novelty(train: Floats, validation: Floats, seed: int = 0) -> NoveltyModel:
    """Fits the novelty of embeddings.

    Args:
        train: (N, dimensions) embeddings of training texts, N > 0.
        validation: (M, dimensions) embeddings of validation texts, M > 0.
        seed: Seed of the clustering.
    """
    from sklearn.cluster import KMeans  # takes seconds to import

    values = np.asarray(train, dtype=np.float64)
    rows, dimensions = values.shape
    distinct = len(np.unique(values.astype(np.float16), axis=0))
    clusters = min(_MAX_CENTROIDS, max(rows // _MIN_TEXTS, 1), distinct)
    found = KMeans(clusters, n_init=1, random_state=seed).fit(values)
    centroids = found.cluster_centers_.astype(np.float16)
    residuals = values - found.cluster_centers_[found.labels_]
    variances, vectors = np.linalg.eigh(residuals.T @ residuals / rows)  # ascending
    count = min(_MAX_DIRECTIONS, rows // _MIN_TEXTS, dimensions - 1)
    variances, vectors = variances[::-1], vectors[:, ::-1]
    model = NoveltyModel(
        matrix=np.vstack([centroids, vectors[:, :count].T.astype(np.float16)]),
        variances=np.maximum(variances[:count], _MIN_VARIANCE),
        noise=max(float(variances[count:].mean()), _MIN_VARIANCE),
        percentiles=np.zeros(_PERCENTILES),
    )
    quantiles = np.quantile(model.distances(validation), np.linspace(0, 1, _PERCENTILES))
    known = np.asarray(validation, dtype=np.float64)
    percentiles = np.maximum.accumulate(quantiles)
    return replace(model, percentiles=percentiles, mean=known.mean(axis=0), spread=known.std(axis=0))
