"""Novelty: unfamiliar texts score high, texts like those of training are spread evenly over the percentiles."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray
from polyhead_training.evaluation.novelty import fit_novelty

DIMENSIONS = 48


def texts(rows: int, seed: int, topics: int = 4) -> NDArray[np.float32]:
    """Embeddings of length 1 around some topics, which vary along eight directions."""
    rng = np.random.default_rng(seed)
    basis = np.random.default_rng(99).normal(0, 1, (topics + 8, DIMENSIONS))
    mixed = basis[rng.integers(0, topics, rows)] + rng.normal(0, 0.3, (rows, 8)) @ basis[topics:]
    mixed += rng.normal(0, 0.05, mixed.shape)
    return np.asarray(mixed / np.linalg.norm(mixed, axis=1, keepdims=True), dtype=np.float32)


def unfamiliar_texts(rows: int) -> NDArray[np.float32]:
    found = np.random.default_rng(7).normal(0, 1, (rows, DIMENSIONS))
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), dtype=np.float32)


def test_unfamiliar_texts_are_further_than_every_validation_text() -> None:
    novelty = fit_novelty(texts(1500, 0), texts(500, 1))
    assert (novelty.score(unfamiliar_texts(100)) == 1).all()


def test_novelty_of_held_out_texts_is_a_percentile() -> None:
    found = fit_novelty(texts(1500, 0), texts(1000, 1)).score(texts(1000, 2))
    assert np.quantile(found, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.06)
    assert (found >= 0.95).mean() == pytest.approx(0.05, abs=0.03)


def test_memory_of_the_distances_does_not_grow_with_the_texts() -> None:
    novelty, many = fit_novelty(texts(1500, 0), texts(500, 1)), texts(9000, 2)
    tracemalloc.start()
    found = novelty.distances(many)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # All at once take 300 MB.
    assert peak < 150e6
    assert found[[0, 5000, 8999]] == pytest.approx(novelty.distances(many[[0, 5000, 8999]]))
    assert novelty.distances(many[:0]).shape == (0,)


def test_directions_in_which_texts_vary_count_less() -> None:
    novelty = fit_novelty(texts(1500, 0), texts(500, 1))
    text, matrix = texts(1, 3)[0], novelty.matrix.astype(np.float64)
    along = matrix[-len(novelty.variances)]
    across = np.linalg.svd(matrix)[2][-1]
    near, far = novelty.distances(np.array([text + 0.2 * along, text + 0.2 * across]))
    assert near < far


def test_model_is_small_and_json() -> None:
    novelty = fit_novelty(texts(3000, 0), texts(100, 1))
    assert novelty.matrix.shape == (64 + 32, DIMENSIONS)
    assert novelty.matrix.nbytes < 2**17
    assert json.loads(json.dumps(novelty.to_json(), allow_nan=False))["centroids"] == 64


@pytest.mark.parametrize("rows", [1, 19, 60])
def test_few_texts_have_few_centroids(rows: int) -> None:
    novelty = fit_novelty(texts(rows, 0), texts(3, 1))
    assert novelty.to_json()["centroids"] == max(rows // 20, 1)
    assert np.isfinite(novelty.score(unfamiliar_texts(5))).all()


def test_equal_texts_have_a_novelty() -> None:
    same = np.ones((50, 8), np.float32)
    assert np.isfinite(fit_novelty(same, same).score(same)).all()
