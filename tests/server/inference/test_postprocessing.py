from __future__ import annotations

import numpy as np
import polyhead_bundle as bundle
import pytest
from polyhead_server.inference import postprocessing


def softmax(temperature: float = 1.0) -> bundle.Head:
    return bundle.Head("topic", "softmax", "logits", ("a", "b"), temperature)


SIGMOID = bundle.Head("sentiment", "sigmoid", "sentiment_logits", ("negative", "positive"), 1.0, 0.5)


def row(*values: float) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.array([values], dtype=np.float32)


def test_softmax_of_logits_with_a_large_difference_is_finite() -> None:
    assert postprocessing.probabilities(softmax(), row(-95, 3))[0] == pytest.approx([0, 1])
    assert postprocessing.probabilities(softmax(), row(1e4, 1e4))[0] == pytest.approx([0.5, 0.5])


def test_softmax_divides_by_the_temperature() -> None:
    expected = 1 / (1 + np.exp(-2.0))
    assert postprocessing.probabilities(softmax(2.0), row(4, 0))[0, 0] == pytest.approx(expected)


@pytest.mark.parametrize(("logit", "expected"), [(0, 0.5), (500, 1.0), (-500, 0.0), (1.5, 1 / (1 + np.exp(-1.5)))])
def test_sigmoid_is_correct_for_any_logit(logit: float, expected: float) -> None:
    assert postprocessing.probabilities(SIGMOID, row(logit))[0, 0] == pytest.approx(expected)


def test_rows_of_a_batch_do_not_influence_each_other() -> None:
    logits = np.array([[0, 1], [200, 100], [-300, -300]], dtype=np.float32)
    found = postprocessing.probabilities(softmax(), logits)
    assert found.dtype == np.float32
    for one, single in zip(found, logits, strict=True):
        assert one.tolist() == postprocessing.probabilities(softmax(), single[None])[0].tolist()
    assert found.sum(axis=1) == pytest.approx([1, 1, 1])
    signs = postprocessing.probabilities(SIGMOID, np.array([[0.5], [-0.5]], dtype=np.float32))
    assert signs.dtype == np.float32
    assert signs.sum() == pytest.approx(1)


def test_outputs_for_another_number_of_heads_are_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        postprocessing.postprocess([softmax(), SIGMOID], [np.zeros((1, 2), np.float32)] * 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_row_that_is_not_finite_does_not_affect_other_rows(bad: float) -> None:
    embedding = np.array([[1, 2], [bad, 2], [3, 4]], dtype=np.float32)
    logits = np.zeros((3, 2), dtype=np.float32)
    first, second, third = postprocessing.postprocess([softmax()], [embedding, logits])
    assert second is None
    assert first is not None
    assert third is not None
    assert third.embedding.tolist() == [3, 4]


@pytest.mark.parametrize("normalized", [True, False])
def test_windows_are_weighted_by_their_tokens(normalized: bool) -> None:
    topic = bundle.Head("topic", "softmax", "logits", ("a", "b", "c"), temperature=2.0)
    mood = bundle.Head("mood", "sigmoid", "mood_logits", ("no", "yes"), threshold=0.5)
    random = np.random.default_rng(0)
    embeddings = random.normal(size=(3, 4)).astype(np.float32)
    logits = random.normal(size=(3, 3), scale=4).astype(np.float32)
    moods = random.normal(size=(3, 1), scale=4).astype(np.float32)
    rows = postprocessing.postprocess([topic, mood], [embeddings, logits, moods])
    weights = np.array([10, 10, 5]) / 25
    pooled = postprocessing.pool_windows(
        [topic, mood], [row for row in rows if row], [10, 10, 5], normalized=normalized
    )
    mean = weights @ embeddings
    np.testing.assert_allclose(pooled.embedding, mean / (np.linalg.norm(mean) if normalized else 1), rtol=1e-5)
    # Equal to the probabilities of the mean of the logits, which pool_windows does not see.
    expected = postprocessing.postprocess(
        [topic, mood], [embeddings[:1], *((weights @ one)[None].astype(np.float32) for one in (logits, moods))]
    )[0]
    assert expected is not None
    for one, other in zip(pooled.probabilities, expected.probabilities, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4)
        assert one.dtype == np.float32


def test_windows_with_probabilities_of_0_and_1_are_pooled_to_finite_values() -> None:
    mood = bundle.Head("mood", "sigmoid", "mood_logits", ("no", "yes"), threshold=0.5)
    rows = postprocessing.postprocess([mood], [np.zeros((2, 4), np.float32), np.array([[500.0], [-500.0]], np.float32)])
    (probability,) = postprocessing.pool_windows(
        [mood], [row for row in rows if row], [7, 7], normalized=True
    ).probabilities
    assert probability.tolist() == [0.5]
