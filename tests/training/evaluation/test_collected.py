"""What collected rows tell about the model that served and about the new one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from polyhead_training.data.collected import Collected, CollectedRows
from polyhead_training.data.dataset import Row
from polyhead_training.data.targets import Target
from polyhead_training.evaluation.collected import collected_lines, score_collected
from polyhead_training.model_config import HeadConfig

TOPIC = HeadConfig(name="topic", kind="softmax", labels=("a", "b"))
SENTIMENT = HeadConfig(name="sentiment", kind="sigmoid", labels=("no", "yes"), threshold=0.7)
TAGS = HeadConfig(name="tags", kind="multilabel", labels=("x", "y"))
STARS = HeadConfig(name="stars", kind="regression")


def row(label: Target | None, predicted: Target, head: str = "topic", model: str = "m-1") -> Row:
    return Row("text", (label,), Path("c.jsonl"), 1, 0, Collected(("random",), model, {head: predicted}))


def rows(random: list[Row], held_out: list[Row]) -> CollectedRows:
    return CollectedRows(len(random), 0, {"random": len(random)}, tuple(random), tuple(held_out))


def test_accuracy_of_the_served_model_is_that_of_all_random_rows() -> None:
    random = [row("a", "a")] * 8 + [row("a", "b")] * 2 + [row(None, "a")]
    found = score_collected([TOPIC], rows(random, []), {"topic": np.zeros((0, 2))}, {}, {})
    served = found["heads"]["topic"]["served"]
    assert (served["rows"], served["accuracy"]) == (10, 0.8)
    # Clopper-Pearson for 8 of 10.
    assert served["interval"] == pytest.approx([0.4439, 0.9748], abs=1e-4)
    assert found["heads"]["topic"]["held_out"]["difference"] is None
    assert list(collected_lines(found)) == [
        "collected: head 'topic' of the served model is right in 80.0% [44.4, 97.5] of 10 random texts"
    ]


def test_both_models_are_compared_on_the_rows_held_out() -> None:
    held = [row("a", "b"), row("a", "b"), row("b", "b"), row("b", "a"), row("a", "a")]
    logits = np.array([[1, 0], [1, 0], [1, 0], [1, 0], [1, 0]], dtype=np.float32)
    found = score_collected([TOPIC], rows(held, held), {"topic": logits}, {}, {})["heads"]["topic"]["held_out"]
    assert (found["served"]["accuracy"], found["trained"]["accuracy"]) == (0.4, 0.6)
    assert (found["fixed"], found["broken"]) == (2, 1)
    assert found["difference"] == pytest.approx(0.2)
    # Agresti and Min with n = 7, 2.5 and 1.5: 1/7 +- 1.96 * sqrt(4/7 - 1/49) / sqrt(7).
    assert found["interval"] == pytest.approx([-0.4070, 0.6927], abs=1e-3)


def test_many_fixed_rows_are_a_certain_gain() -> None:
    held = [row("a", "b")] * 30 + [row("a", "a")] * 70
    logits = np.tile(np.array([[1, 0]], dtype=np.float32), (100, 1))
    found = score_collected([TOPIC], rows(held, held), {"topic": logits}, {}, {})
    low, high = found["heads"]["topic"]["held_out"]["interval"]
    assert 0.2 < low < 0.3 < high < 0.4
    assert "70.0% before and 100.0% now, +30.0 points" in list(collected_lines(found))[1]


def test_threshold_of_a_sigmoid_head_applies() -> None:
    held = [row("no", "no", "sentiment"), row("yes", "no", "sentiment")]
    logits = np.array([[0.5], [2.0]], dtype=np.float32)
    found = score_collected([SENTIMENT], rows(held, held), {"sentiment": logits}, {}, {"sentiment": 0.7})
    assert found["heads"]["sentiment"]["held_out"]["trained"]["accuracy"] == 1.0


def test_list_of_labels_must_match_as_a_whole() -> None:
    held = [row(("x",), ("x", "y"), "tags"), row(("x", "y"), ("x", "y"), "tags"), row((), (), "tags")]
    logits = np.array([[3, -3], [3, 3], [3, -3]], dtype=np.float32)
    found = score_collected([TAGS], rows(held, held), {"tags": logits}, {}, {"tags": (0.5, 0.5)})["heads"]["tags"]
    assert found["served"]["accuracy"] == pytest.approx(2 / 3)
    assert (found["held_out"]["fixed"], found["held_out"]["broken"]) == (1, 1)


def test_heads_that_predict_numbers_and_new_heads_are_left_out() -> None:
    numbers = [row(2.0, 2.5, "stars")]
    assert score_collected([STARS], rows(numbers, []), {"stars": np.zeros((0, 1))}, {}, {})["heads"] == {}
    other = [row("a", "x", "another")]
    found = score_collected([TOPIC], rows(other, other), {"topic": np.zeros((1, 2))}, {}, {})
    assert found["heads"]["topic"]["served"] == {"rows": 0, "accuracy": None, "interval": None}
    assert list(collected_lines(found)) == []


def test_models_are_counted() -> None:
    random = [row("a", "a"), row("a", "a", model="m-2"), row("a", "a", model="m-2")]
    found = score_collected([TOPIC], rows(random, []), {"topic": np.zeros((0, 2))}, {}, {})
    assert found["models"] == {"m-1": 1, "m-2": 2}
