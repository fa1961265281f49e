"""The novelty of a text: how far its sentence embedding lies from those of the training texts.

The same function exists twice in the project: here, and in ``polyhead_training.evaluation.novelty``, which fits it and
explains it. The server does not import training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polyhead_bundle as bundle
from numpy.typing import NDArray

from polyhead_server.errors import StartupError


class Novelty:
    """Computes the novelty of embeddings. Any thread may use it."""

    def __init__(self, found: bundle.Novelty, matrix: NDArray[np.floating[Any]]) -> None:
        """Prepares what all embeddings share.

        Args:
            found: What the manifest says.
            matrix: (centroids + directions, dimensions).
        """
        values = matrix.astype(np.float64)
        centroids, directions = values[: found.centroids], values[found.centroids :]
        weights = 1 / found.noise - 1 / np.asarray(found.variances)  # (directions,)
        along = centroids @ directions.T  # (centroids, directions)
        # The squared distance of x to a centroid c is |x|^2 / noise - weights * (U x)^2, the same for each c, plus a
        # linear function of x and a constant that c determines.
        linear = 2 * (along * weights @ directions - centroids / found.noise)  # (centroids, dimensions)
        self._centroids = found.centroids
        # In float32, as a score mostly waits for the matrix, which the forward pass has displaced from the caches.
        self._matrix = np.vstack([linear, directions]).astype(np.float32)  # (centroids + directions, dimensions)
        self._constants = (centroids**2).sum(axis=1) / found.noise - along**2 @ weights  # (centroids,)
        self._weights = weights
        self._noise = found.noise
        self._percentiles = np.asarray(found.percentiles)
        self._shares = np.linspace(0, 1, len(found.percentiles))

    def score(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the novelty of each of (B, dimensions) finite embeddings: (B,) float32, 0 to 1."""
        products = (embeddings @ self._matrix.T).astype(np.float64)  # (B, centroids + directions)
        nearest = (products[:, : self._centroids] + self._constants).min(axis=1)  # (B,)
        shared = products[:, self._centroids :] ** 2 @ self._weights  # (B,)
        squares = np.einsum("bd,bd->b", embeddings, embeddings, dtype=np.float64)  # (B,)
        distances = squares / self._noise - shared + nearest
        return np.asarray(np.interp(distances, self._percentiles, self._shares), dtype=np.float32)


def load_novelty(source: bundle.Bundle) -> Novelty | None:
    """Returns what computes the novelty of a model's embeddings; None for a bundle without it.

    Raises:
        StartupError: The file is not the matrix that the manifest describes.
    """
    found = source.manifest.novelty
    if found is None:
        return None
    return read_novelty(found, source.manifest.embedding.dimensions, source.file(bundle.NOVELTY))


def read_novelty(found: bundle.Novelty, dimensions: int, path: Path) -> Novelty:
    """Reads the matrix of a model's novelty.

    Args:
        found: What the manifest says.
        dimensions: Size of the embedding.
        path: The file.

    Raises:
        StartupError: The file is not the matrix that the manifest describes.
    """
    shape = found.shape(dimensions)
    try:
        matrix: NDArray[Any] = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise StartupError(f"{path}: cannot be read: {error}") from error
    if matrix.dtype != np.float16 or matrix.shape != shape or not np.isfinite(matrix).all():
        raise StartupError(f"{path}: is not a matrix of {shape} float16")
    return Novelty(found, matrix)
