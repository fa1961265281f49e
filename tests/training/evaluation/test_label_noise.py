from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from polyhead_training.data.labels import UNLABELLED
from polyhead_training.evaluation.evaluate import Split
from polyhead_training.evaluation.label_noise import label_noise
from polyhead_training.model_config import HeadConfig

HEAD = HeadConfig(name="topic", kind="softmax", labels=("a", "b", "c"))


def split(targets: list[int], probabilities: list[list[float]], head: HeadConfig = HEAD) -> Split:
    return Split(
        texts=[f"text {n}" for n in range(len(targets))],
        locations=[(Path("x.jsonl"), n + 1) for n in range(len(targets))],
        targets={head.name: np.array(targets, dtype=np.int64)},
        logits={head.name: np.log(np.array(probabilities))},
    )


def test_confident_predictions_of_another_label_are_found_and_sorted() -> None:
    found = label_noise(
        [HEAD],
        split(
            [0, 0, 1, 1, 1, 0],
            [
                [0.8, 0.1, 0.1],
                [0.2, 0.7, 0.1],  # given a, b is as probable as in b's own rows
                [0.3, 0.6, 0.1],
                [0.3, 0.6, 0.1],
                [0.95, 0.04, 0.01],  # given b, clearly a
                [0.4, 0.41, 0.19],  # given a, b is not confident
            ],
        ),
        {"topic": 1.0},
    )["topic"]
    assert [(row["line"], row["label"], row["predicted"]) for row in found["suspects"]] == [
        (5, "b", "a"),
        (2, "a", "b"),
    ]
    assert found["suspects"][0]["predicted_probability"] == pytest.approx(0.95)
    assert found["suspects"][0]["text"] == "text 4"
    assert (found["rows"], found["found"]) == (6, 2)
    # The mean probability of a label in its own rows.
    assert found["thresholds"] == {
        "a": pytest.approx((0.8 + 0.2 + 0.4) / 3),
        "b": pytest.approx((0.6 + 0.6 + 0.04) / 3),
    }
    assert {(pair["label"], pair["predicted"]): pair["rows"] for pair in found["pairs"]} == {
        ("a", "b"): 1,
        ("b", "a"): 1,
    }


def test_label_with_a_single_row_and_rows_without_a_label_are_left_out() -> None:
    """No model that predicts for the only row of c has seen c."""
    rows = split([0, 0, 2, UNLABELLED], [[0.6, 0.1, 0.3], [0.6, 0.1, 0.3], [0.9, 0.05, 0.05], [0.0001, 0.9998, 0.0001]])
    found = label_noise([HEAD], rows, {"topic": 1.0})["topic"]
    assert (found["rows"], found["suspects"]) == (2, [])


def test_sigmoid_head_compares_its_two_labels() -> None:
    head = HeadConfig(name="sentiment", kind="sigmoid", labels=("no", "yes"))
    logits = np.array([[-2.0], [-2.0], [3.0], [3.0], [4.0]])
    rows = Split([""] * 5, [(Path("x"), 1)] * 5, {"sentiment": np.array([0, 0, 1, 1, 0])}, {"sentiment": logits})
    (suspect,) = label_noise([head], rows, {"sentiment": 1.0})["sentiment"]["suspects"]
    assert (suspect["label"], suspect["predicted"]) == ("no", "yes")


def test_no_labelled_rows_give_an_empty_report() -> None:
    found = label_noise([HEAD], split([UNLABELLED], [[0.3, 0.3, 0.4]]), {"topic": 1.0})["topic"]
    assert (found["rows"], found["found"], found["thresholds"]) == (0, 0, {})
