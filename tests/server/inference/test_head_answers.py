from __future__ import annotations

from typing import get_args

import numpy as np
import polyhead_bundle as bundle
import pytest
from numpy.typing import NDArray
from polyhead_server.inference import head_answers
from polyhead_server.inference.types import Task

TOPIC = bundle.Head("topic", "softmax", "logits", ("a", "b", "c"))
MOOD = bundle.Head("mood", "sigmoid", "mood_logits", ("no", "yes"), threshold=0.7)
TAGS = bundle.Head("tags", "multilabel", "tags_logits", ("late", "rude"), thresholds=(0.7, 0.2))
STARS = bundle.Head("stars", "ordinal", "stars_logits", ("1", "2.5", "10"))
GRADES = bundle.Head("grades", "ordinal", "grades_logits", ("poor", "fair", "good"))
PRICE = bundle.Head("price", "regression", "price_logits", ())


def numbers(values: object) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def test_every_kind_of_head_has_a_task() -> None:
    assert set(head_answers.TASKS) == set(get_args(bundle.HeadKind))
    assert set(head_answers.TASKS.values()) == set(Task) - {Task.EMBEDDING}


@pytest.mark.parametrize(
    ("head", "values", "index"),
    [
        (TOPIC, [0.2, 0.4, 0.4], 1),
        # The nearest float32 is below 0.7.
        (MOOD, [0.7], 0),
        (MOOD, [0.7000001], 1),
        (STARS, [0.5, 0.2, 0.3], 0),
        (STARS, [0.4, 0.2, 0.4], 1),
        (STARS, [0.2, 0.2, 0.6], 2),
        (STARS, [0.0, 0.0, 1.0], 2),
    ],
)
def test_predicted_label(head: bundle.Head, values: list[float], index: int) -> None:
    one = numbers(values)
    assert head_answers.predicted(head, one) == index
    assert head_answers.predicted(head, np.stack([one, one])).tolist() == [index, index]


def test_labels_apply_from_their_thresholds() -> None:
    found = head_answers.applying(TAGS, numbers([[0.7, 0.2], [0.7000001, 0.1999]]))
    # float32 rounds 0.7 down and 0.2 up.
    assert found.tolist() == [[False, True], [True, False]]


def test_value_of_an_ordinal_head_is_the_mean_of_its_labels_as_numbers_or_places() -> None:
    one = numbers([0.5, 0.25, 0.25])
    assert head_answers.value_of(STARS, one) == 0.5 + 0.625 + 2.5
    assert head_answers.value_of(GRADES, one) == 0.5 + 0.5 + 0.75
    assert head_answers.value_of(GRADES, np.stack([one, one[::-1]])).tolist() == [1.75, 2.25]


def test_value_of_a_regression_head_is_its_output() -> None:
    assert head_answers.value_of(PRICE, numbers([[3.5], [-1]])).tolist() == [3.5, -1]


def test_probability_by_label() -> None:
    assert head_answers.by_label(MOOD, numbers([[0.25]])).tolist() == [[0.75, 0.25]]
    assert head_answers.by_label(STARS, numbers([0.5, 0.2, 0.3])) == pytest.approx([0.5, 0.2, 0.3])


def test_equal_probabilities_keep_the_order_of_the_labels() -> None:
    assert head_answers.best_first([0.25, 0.5, 0.25]) == [1, 0, 2]


@pytest.mark.parametrize(("head", "count"), [(TOPIC, 3), (MOOD, 1), (TAGS, 2), (STARS, 3), (PRICE, 1)])
def test_numbers_of_a_head(head: bundle.Head, count: int) -> None:
    assert head_answers.numbers_of(head) == count


@pytest.mark.parametrize(
    ("head", "values", "confidence"),
    [(TOPIC, [0.2, 0.5, 0.3], 0.5), (MOOD, [0.6], 0.4), (MOOD, [0.75], 0.75), (STARS, [0.4, 0.25, 0.35], 0.25)],
)
def test_confidence_is_the_probability_of_the_predicted_label(
    head: bundle.Head, values: list[float], confidence: float
) -> None:
    one = numbers(values)
    assert head_answers.confidence(head, one) == pytest.approx(confidence)
    assert head_answers.confidence(head, np.stack([one, one])) == pytest.approx([confidence] * 2)


def test_head_abstains_below_its_threshold_and_not_at_it() -> None:
    threshold = float(np.float32(0.7))
    head = bundle.Head(
        "a", "softmax", "logits", ("a", "b"), abstention=bundle.Abstention(0.9, 0.9, threshold, 0.9, 0.5, 9, ())
    )
    found = head_answers.abstains(head, numbers([0.7, np.nextafter(np.float32(0.7), np.float32(0)), np.nan]))
    assert found.tolist() == [False, True, False]
