"""Embeddings of texts by a variant of a bundle, kept in files, and heads of scikit-learn on them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from polyhead_bulk import Annotator
from sklearn.linear_model import LogisticRegression

Floats = NDArray[np.float32]


class Embedder:
    """Computes embeddings, each once.

    Args:
        bundle: The bundle's directory.
        variant: Its variant.
        folder: Folder of the files.
    """

    def __init__(self, bundle: Path, variant: str, folder: Path) -> None:
        self._bundle = bundle
        self._variant = variant
        self._folder = folder
        self._annotator: Annotator | None = None

    def __call__(self, texts: Sequence[str]) -> Floats:
        """Returns the embeddings of texts, (N, dimensions)."""
        digest = hashlib.sha256(str(self._bundle.resolve()).encode())
        for text in texts:
            digest.update(text.encode() + b"\0")
        path = self._folder / f"{self._variant}-{digest.hexdigest()[:16]}.npy"
        if not path.exists():
            self._annotator = self._annotator or Annotator(self._bundle, tasks=["embedding"], variant=self._variant)
            column = self._annotator.answer_columns(list(texts))["embedding"]
            self._folder.mkdir(parents=True, exist_ok=True)
            np.save(path, column.flatten().to_numpy().reshape(len(texts), -1))
        return np.asarray(np.load(path, allow_pickle=False))


class LinearHead(NamedTuple):
    """A logistic regression on embeddings, as a head without a hidden layer.

    Attributes:
        weights: (dimensions, labels).
        bias: (labels,).
    """

    weights: NDArray[np.float64]
    bias: NDArray[np.float64]

    def logits(self, embeddings: Floats) -> NDArray[np.float64]:
        """Returns the logits of a softmax head, (N, labels)."""
        return np.asarray(embeddings @ self.weights + self.bias)


def fit_head(embeddings: Floats, targets: NDArray[np.int64]) -> LinearHead:
    """Fits a head to (N, dimensions) embeddings and the (N,) indices of their labels."""
    model = LogisticRegression(C=10.0, max_iter=1000).fit(embeddings, targets)
    weights, bias = model.coef_.T, model.intercept_
    if weights.shape[1] == 1:  # two labels have one logit, the second label's
        weights, bias = np.hstack([np.zeros_like(weights), weights]), np.append(0.0, bias)
    return LinearHead(weights, bias)
