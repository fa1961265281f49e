"""The programs that measure promises and novelty, on embeddings of a few numbers, and the tables of their results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.report.trust import novelty_table, promise_table
from bench.training import novelty, selective_accuracy
from bench.training.frozen_embeddings import Embedder, fit_head
from bench.training.selective_accuracy import Rows

CENTERS = 3 * np.eye(4, 16)


def embed(texts: Sequence[str]) -> NDArray[np.float32]:
    """Embeds a text near the center of its first character, unfamiliar ones elsewhere."""
    rng = np.random.default_rng(len(texts))
    known = [CENTERS["abcd".index(text[0])] if text[0] in "abcd" else -CENTERS.sum(axis=0) for text in texts]
    return (np.array(known) + rng.normal(0, 1, (len(texts), 16))).astype(np.float32)


@pytest.fixture
def rows() -> Rows:
    targets = np.random.default_rng(0).integers(0, 4, 2000)
    embeddings = embed(["abcd"[target] for target in targets])
    return Rows({"fp32": embeddings, "int8": embeddings + np.float32(1e-3)}, targets)


def test_head_of_two_labels_has_two_logits() -> None:
    values = np.array([[-1.0], [-2.0], [1.0], [2.0]], np.float32)
    head = fit_head(values, np.array([0, 0, 1, 1]))
    assert head.logits(values).argmax(axis=1).tolist() == [0, 0, 1, 1]


def test_promises_of_a_split_are_measured_on_its_test_rows(rows: Rows) -> None:
    found = selective_accuracy.measure(rows, 0)
    assert [one["promised"] for one in found] == [0.9, 0.95, 0.98]
    for one in found:
        assert one["met"]
        assert one["rows"] == 500
        assert one["fp32"]["accuracy"] >= one["all_fp32"]
        assert 0 < one["fp32"]["coverage"] <= 1
        assert one["int8"]["coverage"] == pytest.approx(one["fp32"]["coverage"], abs=0.02)
    coverages = [one["fp32"]["coverage"] for one in found]
    assert coverages == sorted(coverages, reverse=True)


def test_table_of_promises_counts_splits(rows: Rows) -> None:
    met = {"coverage": 0.5, "accuracy": 0.96, "kept": True, "refuted": False}
    run = {"set": "a", "promised": 0.95, "met": True, "all_fp32": 0.9, "fp32": met}
    missed = {"set": "a", "promised": 0.95, "met": False, "all_fp32": 0.8}
    lines = promise_table([run, run, missed], "fp32").splitlines()
    assert lines[2] == "| a | 95 | 3 | 2 | 2 | 0 | 50.0 | 96.0 | 86.7 |"
    assert promise_table([missed], "fp32").splitlines()[2] == "| a | 95 | 1 | 0 |  |  |  |  | 80.0 |"
    assert (
        len(promise_table([{"set": "a", "seed": 0, **one} for one in selective_accuracy.measure(rows, 1)], "int8")) > 0
    )


def test_unfamiliar_texts_are_told_by_their_distance() -> None:
    known = [{"text": f"{'abcd'[number % 4]}{number}", "label": "abcd"[number % 4]} for number in range(1200)]
    (run,) = novelty.measure("letters", known, {"others": [f"x{number}" for number in range(100)]}, embed, 600)  # type: ignore[arg-type]
    assert run["novelty"]["auroc"] > 0.99
    assert run["novelty"]["fpr95"] < 0.05
    table = novelty_table([run], ["novelty", "energy"]).splitlines()
    assert table[0] == "| known | unfamiliar | novelty | energy |"
    assert table[2].startswith("| letters | others | ")


def test_equal_scores_detect_nothing() -> None:
    assert novelty.detection(np.ones(10), np.ones(5)) == {"auroc": 0.5, "fpr95": 1.0}
    assert novelty.detection(np.arange(100.0), np.full(5, 200.0)) == {"auroc": 1.0, "fpr95": 0.0}


def test_embeddings_are_read_from_their_file(tmp_path: Path) -> None:
    embedder = Embedder(tmp_path / "no-bundle", "fp32", tmp_path / "files")
    (tmp_path / "files").mkdir()

    class Fake:
        def answer_columns(self, texts: list[str]) -> dict[str, object]:
            import pyarrow as pa

            return {"embedding": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(2.0 * len(texts))), 2)}

    embedder._annotator = Fake()  # type: ignore[assignment]
    first = embedder(["a", "b"])
    assert first.tolist() == [[0, 1], [2, 3]]
    embedder._annotator = None
    assert embedder(["a", "b"]).tolist() == first.tolist()
