"""Metrics of a head follow their definitions, and intervals have the right coverage."""

from __future__ import annotations

import math
import time
from dataclasses import asdict

import numpy as np
import pytest
from numpy.typing import NDArray
from polyhead_training.data.labels import UNLABELLED
from polyhead_training.evaluation.metrics import HeadScore, LabelScore, macro_f1, quick_score, score
from polyhead_training.model_types import HeadKind

NAMES = ("a", "b", "c")


def _certain(answered: list[int], labels: int = 3) -> NDArray[np.float32]:
    """Logits of a softmax head that answers this."""
    return np.eye(labels, dtype=np.float32)[answered] * 4


def _noisy(rows: int, labels: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, labels, rows)
    logits = np.eye(labels)[targets] * 1.5 + rng.normal(size=(rows, labels))
    return logits.astype(np.float32), targets


def test_softmax_score_counts_the_largest_logit_over_labelled_rows() -> None:
    found = score("softmax", NAMES, _certain([1, 0, 2, 0, 0]), np.array([1, 0, 2, UNLABELLED, 1]))
    assert (found.rows, found.accuracy, found.majority_baseline) == (4, 0.75, 0.5)
    assert found.confusion == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert (found.temperature, found.threshold) == (1.0, None)


def test_threshold_changes_predictions_but_not_calibration() -> None:
    logits, targets = np.array([[0.5], [0.4], [2.0]], dtype=np.float32), np.array([0, 1, 1])
    low, high = (score("sigmoid", ("no", "yes"), logits, targets, threshold=share) for share in (0.5, 0.7))
    assert (low.confusion, high.confusion) == ([[0, 1], [0, 2]], [[1, 0], [1, 1]])
    assert (low.ece, low.brier, low.nll) == (high.ece, high.brier, high.nll)


def test_each_label_has_precision_recall_and_f1() -> None:
    found = score("softmax", NAMES, _certain([0, 0, 0, 1]), np.array([0, 0, 1, 1])).labels
    assert asdict(found["a"]) == pytest.approx(
        {"support": 2, "answered": 3, "precision": 2 / 3, "recall": 1.0, "f1": 0.8}
    )
    assert asdict(found["b"]) == pytest.approx(
        {"support": 2, "answered": 1, "precision": 1.0, "recall": 0.5, "f1": 2 / 3}
    )
    assert found["c"] == LabelScore(0, 0, None, None, None)


def test_means_are_over_the_labels_that_occur() -> None:
    # "c" is answered once and never true: it costs "b" a row, and is no label of its own.
    found = score("softmax", NAMES, _certain([0, 0, 2, 1]), np.array([0, 0, 1, 1]))
    assert found.macro_f1 == pytest.approx((1 + 2 / 3) / 2)
    assert found.balanced_accuracy == pytest.approx((1 + 0.5) / 2)


def test_macro_f1_without_correct_predictions_is_zero() -> None:
    assert macro_f1(np.array([0, 0]), np.array([2, 1])) == 0.0


def test_score_without_labelled_rows_is_empty() -> None:
    found = score("sigmoid", ("no", "yes"), np.zeros((2, 1)), np.full(2, UNLABELLED), temperature=2.0, threshold=0.3)
    assert found == HeadScore(0, temperature=2.0, threshold=0.3)
    assert (found.accuracy, found.ece, found.intervals, found.confusion) == (None, None, {}, [])


def test_score_of_no_rows_is_empty() -> None:
    empty = np.zeros(0, dtype=np.int64)
    assert score("softmax", NAMES, np.zeros((0, 3)), empty) == HeadScore(0)
    assert quick_score("softmax", np.zeros((0, 3)), empty) == {"accuracy": None, "macro_f1": None, "nll": None}


@pytest.mark.parametrize(("kind", "labels"), [("softmax", 4), ("sigmoid", 2)])
def test_quick_score_agrees_with_the_score(kind: HeadKind, labels: int) -> None:
    logits, targets = _noisy(300, labels)
    logits = logits if kind == "softmax" else logits[:, 1:] - logits[:, :1]
    targets[::7] = UNLABELLED
    quick, whole = quick_score(kind, logits, targets), score(kind, "abcd"[:labels], logits, targets)
    assert quick == pytest.approx({"accuracy": whole.accuracy, "macro_f1": whole.macro_f1, "nll": whole.nll})


def test_intervals_contain_the_metrics_and_narrow_with_rows() -> None:
    few, many = (score("softmax", "abcd", *_noisy(rows, 4)) for rows in (200, 5_000))
    for name in ("accuracy", "macro_f1", "balanced_accuracy", "brier"):
        for found in (few, many):
            low, high = found.intervals[name]
            assert low < getattr(found, name) < high
        assert np.ptp(many.intervals[name]) < np.ptp(few.intervals[name]) / 3
    assert few.intervals["ece"][0] < few.intervals["ece"][1]


def test_accuracy_interval_matches_the_binomial_distribution() -> None:
    answered = [0] * 300 + [1] * 100
    low, high = score("softmax", "ab", _certain(answered, 2), np.zeros(400, dtype=np.int64)).intervals["accuracy"]
    deviation = math.sqrt(0.75 * 0.25 / 400)
    assert low == pytest.approx(0.75 - 1.96 * deviation, abs=0.006)
    assert high == pytest.approx(0.75 + 1.96 * deviation, abs=0.006)


def test_resampled_metrics_equal_the_metrics_of_the_drawn_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = _noisy(60, 3)
    # The only resample is the rows themselves.
    monkeypatch.setattr(
        "polyhead_training.evaluation.metrics.resamples", lambda rows, seed: [np.ones((1, rows), np.float32)]
    )
    found = score("softmax", NAMES, logits, targets)
    for name, interval in found.intervals.items():
        assert interval == pytest.approx([getattr(found, name)] * 2, rel=1e-5)


def test_intervals_depend_on_the_seed_alone() -> None:
    first, again, other = (score("softmax", NAMES, *_noisy(100, 3), seed=seed) for seed in (1, 1, 2))
    assert first.intervals == again.intervals
    assert first.intervals != other.intervals


def test_chunked_resampling_gives_the_same_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = _noisy(50, 3)
    whole = score("softmax", NAMES, logits, targets).intervals
    monkeypatch.setattr("polyhead_training.evaluation.metrics._CHUNK_DRAWS", 1)
    for name, interval in score("softmax", NAMES, logits, targets).intervals.items():
        assert interval == pytest.approx(whole[name], rel=1e-5)


def test_ten_thousand_rows_take_little_time() -> None:
    logits, targets = _noisy(10_000, 4)
    began = time.thread_time()  # without threads that other tests left behind
    score("softmax", "abcd", logits, targets)
    assert time.thread_time() - began < 10
