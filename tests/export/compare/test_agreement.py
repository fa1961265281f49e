"""Agreement of two models: which answers changed, how sure the models were, and whether they share a space."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from polyhead_bundle import Head
from polyhead_export.compare.agreement import embedding_agreement, head_agreement, share
from polyhead_training.data.labels import UNLABELLED

TOPIC = Head("topic", "softmax", "topic", ("app", "billing", "support"))
MOOD = Head("mood", "sigmoid", "mood", ("negative", "positive"), threshold=0.5)
TAGS = Head("tags", "multilabel", "tags", ("late", "rude"), thresholds=(0.5, 0.5))
STARS = Head("stars", "ordinal", "stars", ("1", "2", "3"))
PRICE = Head("price", "regression", "price", ())


def logits(*rows: list[float]) -> NDArray[np.float32]:
    return np.array(rows, dtype=np.float32)


def test_changed_labels_are_counted_in_a_matrix() -> None:
    old = logits([5, 0, 0], [0, 5, 0], [0, 5, 0], [0, 0, 5])
    new = logits([5, 0, 0], [5, 0, 0], [0, 5, 0], [0, 5, 0])
    found = head_agreement(TOPIC, TOPIC, old, new)
    assert found.matrix.tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 0]]
    assert found.changed
    assert found.changed[:3] == (2, 4, 0.5)
    assert 0 < found.changed.low < 0.5 < found.changed.high < 1
    assert [found.answer(model, 3) for model in (0, 1)] == ["support", "billing"]


def test_changes_of_unsure_models_count_less() -> None:
    def weighted(height: float) -> float:
        sure, other = logits([height, 0, 0]), logits([0, height, 0])
        return head_agreement(TOPIC, TOPIC, sure, other).weighted or 0.0

    assert weighted(0.1) < weighted(1) < weighted(10)
    assert weighted(10) == pytest.approx(1, abs=1e-3)


def test_difference_is_the_total_variation() -> None:
    old, new = logits([50, 0, 0], [0, 0, 0]), logits([0, 50, 0], [0, 0, 0])
    assert head_agreement(TOPIC, TOPIC, old, new).difference == pytest.approx(0.5)
    assert head_agreement(MOOD, MOOD, logits([50.0]), logits([-50.0])).difference == pytest.approx(1)


def test_models_with_other_labels_are_compared_where_they_can_be() -> None:
    other = Head("topic", "softmax", "topic", ("billing", "refund"))
    found = head_agreement(TOPIC, other, logits([0, 5, 0], [5, 0, 0]), logits([5, 0], [0, 5]))
    assert found.rows == found.columns == ("app", "billing", "support", "refund")
    assert found.changes.tolist() == [False, True]
    assert (found.only_old, found.only_new) == (("app", "support"), ("refund",))
    assert found.difference is None


def test_accuracy_counts_labelled_texts_alone() -> None:
    old = logits([5, 0, 0], [0, 5, 0], [0, 5, 0])
    new = logits([5, 0, 0], [5, 0, 0], [0, 0, 5])
    found = head_agreement(TOPIC, TOPIC, old, new, np.array([0, 1, UNLABELLED])).accuracy
    assert found
    assert (found.rows, found.old, found.new, found.only_old, found.only_new) == (2, 1.0, 0.5, 1, 0)
    assert found.p_value == 1.0


def test_many_texts_that_one_model_alone_answers_are_significant() -> None:
    old, new = np.tile(logits([5, 0, 0]), (20, 1)), np.tile(logits([0, 5, 0]), (20, 1))
    found = head_agreement(TOPIC, TOPIC, old, new, np.zeros(20, np.int64)).accuracy
    assert found
    assert found.p_value < 1e-5


def test_multilabel_head_counts_each_label() -> None:
    old, new = logits([5, -5], [5, 5], [-5, -5]), logits([5, 5], [5, -5], [-5, -5])
    truth = np.array([[1, 0], [1, 1], [UNLABELLED, UNLABELLED]])
    found = head_agreement(TAGS, TAGS, old, new, truth)
    assert found.columns == ("both", "old alone", "new alone")
    assert found.matrix.tolist() == [[2, 0, 0], [0, 1, 1]]
    assert found.changed
    assert found.changed.texts == 2
    assert found.accuracy
    assert (found.accuracy.rows, found.accuracy.old, found.accuracy.new) == (2, 1.0, 0.0)
    assert [found.answer(0, 0), found.answer(1, 0), found.answer(0, 2)] == ["late", "late, rude", ""]


def test_ordinal_difference_is_in_places() -> None:
    found = head_agreement(STARS, STARS, logits([5, 5], [-5, -5]), logits([-5, -5], [-5, -5]))
    assert found.difference == 1.0
    assert found.matrix.tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 0]]


def test_regression_head_has_differences_alone() -> None:
    found = head_agreement(PRICE, PRICE, logits([1.0], [2.0]), logits([1.5], [2.0]))
    assert (found.changed, found.difference, found.answer(1, 0)) == (None, 0.25, "1.5")


def test_heads_of_other_kinds_are_not_compared() -> None:
    with pytest.raises(ValueError, match="softmax in the old model and sigmoid in the new one"):
        head_agreement(TOPIC, MOOD, logits([1, 2, 3]), logits([1.0]))


def vectors(rows: int = 200, size: int = 32, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(rows, size)).astype(np.float32)


def rotated(values: NDArray[Any]) -> NDArray[np.float32]:
    rotation, _ = np.linalg.qr(vectors(values.shape[1], values.shape[1], 1))
    return np.asarray(values @ rotation, dtype=np.float32)


@pytest.mark.parametrize(
    ("new", "same_space", "space"),
    [
        (vectors(), True, "same"),
        (vectors() + 0.05 * vectors(seed=2), False, "comparable"),
        (rotated(vectors()), False, "other"),
        (vectors(size=16), False, "other size"),
    ],
)
def test_space(new: NDArray[np.float32], same_space: bool, space: str) -> None:
    found = embedding_agreement(vectors(), new, same_space=same_space)
    assert found.space == space
    assert (found.cosine is None) == space.startswith("other")


def test_neighbours_are_compared_across_spaces() -> None:
    turned, unrelated = (
        embedding_agreement(vectors(), new, same_space=False) for new in (rotated(vectors()), vectors(seed=3))
    )
    assert turned.common_neighbours == pytest.approx(1, abs=0.01)
    assert unrelated.common_neighbours < 0.2


def test_equal_texts_do_not_make_another_space() -> None:
    copies = np.repeat(vectors(20), 10, axis=0)
    assert embedding_agreement(copies, copies + 1e-4, same_space=False).space == "comparable"


def test_share_of_no_texts_is_unknown() -> None:
    assert share(0, 0)[3:] == (0.0, 1.0)
