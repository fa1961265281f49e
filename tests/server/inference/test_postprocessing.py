from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import polyhead_bundle as bundle
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from polyhead_server.inference import postprocessing


def softmax(temperature: float = 1.0) -> bundle.Head:
    return bundle.Head("topic", "softmax", "logits", ("a", "b"), temperature)


SIGMOID = bundle.Head("sentiment", "sigmoid", "sentiment_logits", ("negative", "positive"), 1.0, 0.5)


STARS = bundle.Head("stars", "ordinal", "stars_logits", ("1", "2", "3", "4"), 2.0)
PRICE = bundle.Head("price", "regression", "price_logits", (), spread=12.5)


def tags(temperature: float = 1.0) -> bundle.Head:
    return bundle.Head("tags", "multilabel", "tags_logits", ("late", "rude"), temperature, thresholds=(0.5, 0.5))


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


def test_labels_of_a_multilabel_head_have_independent_probabilities() -> None:
    found = postprocessing.probabilities(tags(2.0), row(3, -1e4))[0]
    assert found == pytest.approx([1 / (1 + np.exp(-1.5)), 0])
    assert postprocessing.probabilities(tags(), row(1e4, 1e4))[0].tolist() == [1, 1]


def test_probabilities_of_an_ordinal_head_are_differences_of_those_of_being_above() -> None:
    found = postprocessing.probabilities(STARS, row(4, 0, -4))[0]
    above = 1 / (1 + np.exp(-2.0))
    assert found == pytest.approx([1 - above, above - 0.5, 0.5 - (1 - above), 1 - above], rel=1e-6)
    assert found.dtype == np.float32


@given(st.lists(st.floats(-1e5, 1e5, width=32), min_size=3, max_size=3), st.floats(1e-2, 1e2))
@example([-5.0, 5.0, 5.0], 1.0)
def test_probabilities_of_an_ordinal_head_are_a_distribution_for_any_logits(
    logits: list[float], temperature: float
) -> None:
    head = bundle.Head("stars", "ordinal", "stars_logits", ("1", "2", "3", "4"), temperature)
    found = postprocessing.probabilities(head, row(*logits))[0]
    assert (found >= 0).all()
    assert found.sum() == pytest.approx(1)
    # The probability of the lowest label is given by its own output, whatever the others say.
    lowest = 1 / (1 + math.exp(max(min(logits[0] / temperature, 700), -700)))
    assert found[0] == pytest.approx(lowest, abs=1e-6)


def test_labels_behind_an_output_that_rises_again_have_no_probability() -> None:
    head = bundle.Head("stars", "ordinal", "stars_logits", ("1", "2", "3", "4"))
    assert postprocessing.probabilities(head, row(0, -1000, 1000))[0].tolist() == [0.5, 0.5, 0, 0]


def test_output_of_a_regression_head_is_its_value() -> None:
    assert postprocessing.probabilities(PRICE, row(-1234.5)).tolist() == [[-1234.5]]


def test_windows_of_every_other_kind_are_pooled_by_their_logits() -> None:
    heads = [tags(2.0), STARS, PRICE]
    numbers: list[list[list[float]]] = [[[1, -2], [-3, 4]], [[3, 1, -1], [-1, -2, -5]], [[10], [20]]]
    windows = [np.array(one, np.float32) for one in numbers]
    rows = postprocessing.postprocess(heads, [np.ones((2, 4), np.float32), *windows])
    pooled = postprocessing.pool_windows(heads, [one for one in rows if one], [30, 10], normalized=False)
    assert pooled is not None
    for head, logits, found in zip(heads, windows, pooled.probabilities, strict=True):
        mean = row(0.75, 0.25) @ logits
        np.testing.assert_allclose(found, postprocessing.probabilities(head, mean)[0], rtol=1e-6)
    assert pooled.probabilities[2].tolist() == [12.5]


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


def test_finite_numbers_whose_sum_is_not_finite_are_answered() -> None:
    largest = float(np.finfo(np.float32).max)
    rows = postprocessing.postprocess([softmax()], [row(largest, largest), row(largest, 0)])
    assert [one.embedding.tolist() for one in rows if one] == [[largest, largest]]
    bad = np.array([[largest, largest], [np.inf, -np.inf]], dtype=np.float32)
    first, second = postprocessing.postprocess([softmax()], [bad, np.zeros((2, 2), np.float32)])
    assert first is not None
    assert second is None


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
    assert pooled is not None
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


FINITE = st.floats(-(2.0**99), 2.0**99, width=32)


@given(
    windows=st.lists(st.tuples(FINITE, FINITE, FINITE, st.integers(1, 512)), min_size=1, max_size=6),
    temperature=st.floats(1e-3, 1e3),
)
@example(windows=[(17.2, 0, 0, 128), (0.1, 0, 0, 128), (-14.3, 0, 0, 128), (-15.4, 0, 0, 128)], temperature=1.0)
@example(windows=[(0.0, 1.0, 0.0, 1), (2.0**53, 2.0**53, 0.0, 1)], temperature=1.0)
@example(windows=[(500.0, 1, 0, 7), (-500.0, 0, 1, 7)], temperature=1.0)
@example(windows=[(3e38, -3e38, 3e38, 512), (3e38, 3e38, -3e38, 1)], temperature=1.0)
def test_windows_are_pooled_like_exact_arithmetic(
    windows: list[tuple[float, float, float, int]], temperature: float
) -> None:
    topic = bundle.Head("topic", "softmax", "logits", ("a", "b"), temperature)
    mood = bundle.Head("mood", "sigmoid", "mood_logits", ("no", "yes"), temperature, 0.5)
    logits = np.array([values[:2] for values in windows], dtype=np.float32)
    moods = np.array([values[2:3] for values in windows], dtype=np.float32)
    rows = postprocessing.postprocess([topic, mood], [np.ones((len(windows), 4), np.float32), logits, moods])
    tokens = [window[3] for window in windows]
    pooled = postprocessing.pool_windows([topic, mood], [one for one in rows if one], tokens, normalized=True)
    assert pooled is not None
    largest = max(abs(value) for window in windows for value in window[:3])
    for index, values in enumerate(([one - other for one, other in logits.tolist()], moods[:, 0].tolist())):
        # The difference of two logits decides, as the logit of a sigmoid head does.
        mean = sum(Fraction(value) * count for value, count in zip(values, tokens, strict=True)) / sum(tokens)
        expected = 1 / (1 + math.exp(-float(max(min(mean / Fraction(temperature), 700), -700))))
        # float64 rounds sums and differences of large numbers.
        slack = 1e-5 + largest / temperature * 1e-15
        assert pooled.probabilities[index][0] == pytest.approx(expected, abs=slack)
        assert pooled.probabilities[index].dtype == np.float32


@pytest.mark.parametrize("temperature", [0.01, 1.0, 7.0])
@pytest.mark.parametrize("logit", [0.0, 20.0, -90.0, 12_345.0])
def test_window_alone_has_the_same_probabilities_as_the_text(logit: float, temperature: float) -> None:
    head = bundle.Head("mood", "sigmoid", "mood_logits", ("no", "yes"), temperature, 0.5)
    (only,) = postprocessing.postprocess([head], [np.ones((1, 4), np.float32), row(logit)])
    assert only is not None
    pooled = postprocessing.pool_windows([head], [only], [9], normalized=False)
    assert pooled is not None
    assert pooled.probabilities[0].tolist() == only.probabilities[0].tolist()


def test_row_whose_probabilities_are_not_finite_is_no_result() -> None:
    head = bundle.Head("mood", "sigmoid", "mood_logits", ("no", "yes"), 1e-300, 0.5)
    topic = softmax(1e-300)
    assert postprocessing.postprocess([topic], [np.ones((1, 4), np.float32), row(3e38, 1)]) == [None]
    (sharp,) = postprocessing.postprocess([head], [np.ones((1, 4), np.float32), row(3e38)])
    assert sharp is not None
    assert sharp.probabilities[0].tolist() == [1.0]


def test_mean_of_embeddings_that_cancel_out_is_no_reason_to_divide_by_zero() -> None:
    rows = postprocessing.postprocess([], [np.array([[1, 0], [-1, 0]], np.float32)])
    pooled = postprocessing.pool_windows([], [one for one in rows if one], [5, 5], normalized=True)
    assert pooled is not None
    assert pooled.embedding.tolist() == [0, 0]
