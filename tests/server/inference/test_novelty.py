"""The novelty of texts: distances to centroids as percentiles, from the file of a bundle."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import polyhead_bundle as bundle
import pytest
from polyhead_server.errors import StartupError
from polyhead_server.inference.novelty import Novelty, load_novelty

from tests.support.small_bundle import changed_manifest, write_sources

# Two centroids on the first axis, along which the clusters are four times as wide as across it.
FOUND = bundle.Novelty(2, (4.0,), 1.0, (0.0, 1.0, 4.0))
MATRIX = np.array([[0, 0], [10, 0], [1, 0]], np.float16)


def write(folder: Path, matrix: object) -> bundle.Bundle:
    path = folder / "novelty.npy"
    if isinstance(matrix, bytes):
        path.write_bytes(matrix)
    else:
        np.save(path, np.asarray(matrix))
    sources = {**write_sources(folder / "sources"), "novelty.npy": path}
    return bundle.write(folder / "demo", changed_manifest(novelty=FOUND), sources)


def test_score_is_the_percentile_of_the_distance_to_the_nearest_centroid() -> None:
    novelty = Novelty(FOUND, MATRIX)
    # Squared distances 0, 1, 1 and 2.5, and one beyond all validation texts.
    embeddings = np.array([[10, 0], [0, 1], [8, 0], [0, np.sqrt(2.5)], [5, 5]], np.float32)
    assert novelty.score(embeddings) == pytest.approx([0, 0.5, 0.5, 0.75, 1])
    assert novelty.score(embeddings[3:4]) == pytest.approx([0.75])
    assert novelty.score(embeddings).dtype == np.float32


def test_bundle_without_novelty_has_none() -> None:
    assert load_novelty(bundle.Bundle(Path("none"), changed_manifest(), "0" * 64)) is None


def test_matrix_of_a_bundle_is_loaded(tmp_path: Path) -> None:
    found = load_novelty(write(tmp_path, MATRIX))
    assert found is not None
    assert found.score(np.array([[0, 1]], np.float32)) == pytest.approx([0.5])


@pytest.mark.parametrize(
    ("matrix", "problem"),
    [
        (MATRIX[:2], r"is not a matrix of \(3, 2\) float16"),
        (MATRIX.astype(np.float32), r"is not a matrix of \(3, 2\) float16"),
        (np.full_like(MATRIX, np.nan), r"is not a matrix of \(3, 2\) float16"),
        (np.array([[{}, 1]] * 3, dtype=object), "cannot be read: Object arrays cannot be loaded"),
        (b"not an array", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_damaged_matrix_does_not_serve(tmp_path: Path, matrix: object, problem: str) -> None:
    with pytest.raises(StartupError, match=f"novelty.npy: {problem}"):
        load_novelty(write(tmp_path, matrix))


def test_manifest_and_matrix_need_not_have_directions() -> None:
    found = dataclasses.replace(FOUND, variances=())
    assert Novelty(found, MATRIX[:2]).score(np.array([[2, 0]], np.float32)) == pytest.approx([1])
