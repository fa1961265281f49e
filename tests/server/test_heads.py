from __future__ import annotations

import numpy as np
import pytest
from polyhead_export import bundle
from polyhead_server import heads


def softmax(temperature: float = 1.0) -> bundle.Head:
    return bundle.Head("topic", "softmax", "logits", ("a", "b"), temperature)


SIGMOID = bundle.Head("sentiment", "sigmoid", "sentiment_logits", ("negative", "positive"), 1.0, 0.5)


def row(*values: float) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.array([values], dtype=np.float32)


def test_softmax_of_far_apart_logits_is_finite() -> None:
    assert heads.probabilities(softmax(), row(-95, 3))[0] == pytest.approx([0, 1])
    assert heads.probabilities(softmax(), row(1e4, 1e4))[0] == pytest.approx([0.5, 0.5])


def test_softmax_divides_by_the_temperature() -> None:
    expected = 1 / (1 + np.exp(-2.0))
    assert heads.probabilities(softmax(2.0), row(4, 0))[0, 0] == pytest.approx(expected)


@pytest.mark.parametrize(("logit", "expected"), [(0, 0.5), (500, 1.0), (-500, 0.0), (1.5, 1 / (1 + np.exp(-1.5)))])
def test_sigmoid_of_any_logit_is_right(logit: float, expected: float) -> None:
    assert heads.probabilities(SIGMOID, row(logit))[0, 0] == pytest.approx(expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_row_that_is_not_finite_touches_no_other(bad: float) -> None:
    embedding = np.array([[1, 2], [bad, 2], [3, 4]], dtype=np.float32)
    logits = np.zeros((3, 2), dtype=np.float32)
    first, second, third = heads.answer([softmax()], [embedding, logits])
    assert second is None
    assert first is not None
    assert third is not None
    assert third.embedding.tolist() == [3, 4]
