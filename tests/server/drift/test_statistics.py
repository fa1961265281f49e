"""The statistics of drift against known values, and their false alarms with independent and with similar texts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from polyhead_server.drift.statistics import compare_means, compare_rates, compare_shares, f_tail

# Shares of four labels.
SHARES = np.array([0.4, 0.3, 0.2, 0.1])
TEXTS = 500


@pytest.mark.parametrize(
    ("value", "above", "below", "expected"),
    [
        # Tables of the F distribution: its 95th and 99th percentiles.
        (4.9646, 1, 10, 0.05),
        (2.7109, 5, 20, 0.05),
        (5.9943, 4, 10, 0.01),
        (4.1027, 5, 20, 0.01),
        # F(1, 1) is the square of a Cauchy variable, F(2, n) has a closed form.
        (30.0, 1, 1, 1 - 2 / math.pi * math.atan(math.sqrt(30))),
        (3.0, 2, 8, (1 + 2 * 3.0 / 8) ** -4),
        (200.0, 2, 100, (1 + 2 * 200.0 / 100) ** -50),
        (0.0, 3, 69, 1.0),
    ],
)
def test_tail_of_the_f_distribution(value: float, above: float, below: float, expected: float) -> None:
    assert f_tail(value, above, below) == pytest.approx(expected, rel=2e-3)


def test_distance_is_the_jensen_shannon_distance() -> None:
    # With ever more texts, chance explains nothing.
    blocks = np.array([[0, 1e9], [0, 1e9]])
    assert compare_shares(blocks, np.array([1.0, 0.0]), 10**9).distance == pytest.approx(1, abs=1e-3)
    blocks = np.array([[0.25e9, 0.75e9]] * 2)
    middle = (0.5 * math.log2(0.5 / 0.375) + 0.5 * math.log2(0.5 / 0.625)) / 2
    middle += (0.25 * math.log2(0.25 / 0.375) + 0.75 * math.log2(0.75 / 0.625)) / 2
    found = compare_shares(blocks, np.array([0.5, 0.5]), 10**9)
    assert found.distance == pytest.approx(math.sqrt(middle), abs=1e-3)
    assert found.p_value is not None
    assert found.p_value < 1e-3


def test_equal_shares_have_no_distance() -> None:
    found = compare_shares(np.array([SHARES * 100] * 24), SHARES, TEXTS)
    assert (found.distance, found.effective) == (0.0, 2400)
    assert found.p_value == pytest.approx(1)


def test_g_test_of_two_samples() -> None:
    # Blocks that are alike count in full: G = 2 sum O ln(O / E) over both samples, with one degree of freedom.
    observed = np.array([[60.0, 40.0], [250.0, 250.0]])
    expected = np.outer(observed.sum(axis=1), observed.sum(axis=0)) / observed.sum()
    statistic = 2 * (observed * np.log(observed / expected)).sum()
    found = compare_shares(np.array([[3.0, 2.0]] * 20), np.array([0.5, 0.5]), TEXTS)
    assert found.p_value == pytest.approx(f_tail(statistic, 1, 19))


def test_nothing_is_told_from_less_than_two_blocks() -> None:
    assert compare_shares(np.zeros((0, 2)), np.array([0.5, 0.5]), TEXTS) == (0.0, None, 0.0)
    found = compare_shares(np.array([[90.0, 10.0], [0.0, 0.0]]), np.array([0.5, 0.5]), TEXTS)
    assert found.p_value is None
    assert found.distance > 0.3
    assert compare_means(np.array([[10.0, 10.0]]), np.zeros(1), np.ones(1), TEXTS).p_value is None
    assert compare_rates(np.array([[5.0, 10.0]]), np.array([0.5]), TEXTS).p_value is None


def test_only_one_bin_is_no_drift() -> None:
    assert compare_shares(np.array([[10.0, 0.0]] * 3), np.array([1.0, 0.0]), TEXTS) == (0.0, 1.0, 30)


def p_values(copies: int, blocks: int = 24, texts: int = 50) -> list[float]:
    """Returns p-values without drift; every text comes ``copies`` times in a row."""
    rng = np.random.default_rng(copies)
    found = []
    for _ in range(300):
        reference = rng.multinomial(TEXTS, SHARES) / TEXTS
        counts = rng.multinomial(texts // copies, SHARES, size=blocks) * float(copies)
        found.append(compare_shares(counts, reference, TEXTS).p_value or 0.0)
    return found


@pytest.mark.parametrize("copies", [1, 10])
def test_similar_neighbors_cause_no_more_false_alarms(copies: int) -> None:
    assert np.mean(np.array(p_values(copies)) < 0.05) < 0.1


def test_similar_neighbors_would_cause_false_alarms_if_they_counted_as_independent() -> None:
    """The control: the same texts in blocks so long that each looks like all of them."""
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(300):
        reference = rng.multinomial(TEXTS, SHARES) / TEXTS
        counts = rng.multinomial(120, SHARES) * 10.0
        alarms += (compare_shares(np.array([counts / 24] * 24), reference, TEXTS).p_value or 0.0) < 0.05
    assert alarms > 100


def test_design_effect_divides_the_number_of_texts() -> None:
    rng = np.random.default_rng(0)
    counts = rng.multinomial(100, SHARES, size=200) * 10.0
    found = compare_shares(counts, SHARES, TEXTS)
    assert found.effective == pytest.approx(200 * 100, rel=0.15)


def test_rates_are_those_of_the_label_that_changed_most() -> None:
    blocks = np.array([[50.0, 10.0, 100.0], [48.0, 12.0, 100.0], [52.0, 8.0, 100.0]])
    found = compare_rates(blocks, np.array([0.5, 0.5]), TEXTS)
    alone = compare_shares(np.column_stack([blocks[:, 2] - blocks[:, 1], blocks[:, 1]]), np.array([0.5, 0.5]), TEXTS)
    assert found.distance == alone.distance
    assert alone.p_value is not None
    assert found.p_value == pytest.approx(2 * alone.p_value)


def test_mean_of_vectors() -> None:
    rng = np.random.default_rng(0)
    scales = np.array([3.0, 1.0, *[0.1] * 30])

    def blocks(shift: float) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        vectors = rng.normal(0, 1, (24, 50, 32)) * scales + shift * scales
        return np.column_stack([vectors.sum(axis=1), np.full(24, 50.0)])

    known = rng.normal(0, 1, (TEXTS, 32)) * scales
    mean, spread = known.mean(axis=0), known.std(axis=0)
    same = [compare_means(blocks(0), mean, spread, TEXTS) for _ in range(20)]
    assert min(one.p_value or 0.0 for one in same) > 0.001
    assert np.mean([one.distance for one in same]) < 0.05
    moved = compare_means(blocks(0.5), mean, spread, TEXTS)
    assert moved.distance == pytest.approx(0.5, abs=0.1)
    assert moved.p_value is not None
    assert moved.p_value < 1e-6
    assert compare_means(np.zeros((3, 33)), mean, spread, TEXTS) == (0.0, None, 0.0)
