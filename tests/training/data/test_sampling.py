from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from polyhead_training.config import DataConfig
from polyhead_training.data.sampling import Sampler, epoch_counts, micro_batches

LENGTHS = random.Random(3).choices(range(1, 60), k=1000)
# 900 rows of the first source in data.train, 90 of the second, 10 of the third.
SOURCES = [0] * 900 + [1] * 90 + [2] * 10

# Every third row has a label for the second head, the others for the first.
LABELLED = [2 if row % 3 == 0 else 1 for row in range(1000)]


def sampler(size: int = 16, seed: int = 0, **settings: Any) -> Sampler:
    return Sampler(SOURCES, LENGTHS, LABELLED, DataConfig(train=("a", "b", "c"), **settings), size, seed)


def padding(batches: list[list[int]]) -> float:
    """Share of the tokens of all batches that is padding."""
    used = sum(LENGTHS[row] for batch in batches for row in batch)
    return 1 - used / sum(len(batch) * max(LENGTHS[row] for row in batch) for batch in batches)


def test_epoch_contains_every_row_once() -> None:
    steps = sampler().epoch(0)
    assert sorted(row for step in steps for row in step) == list(range(1000))
    assert Counter(map(len, steps)) == {16: 62, 8: 1}


def test_epoch_groups_similar_lengths_in_random_order() -> None:
    steps = sampler().epoch(0)
    one_by_one = [list(range(start, min(start + 16, 1000))) for start in range(0, 1000, 16)]
    assert padding(steps) < 0.1
    assert padding(one_by_one) > 0.3
    # Steps are made from windows of 32 steps, sorted by heads with labels and length; their order must be random again.
    order = [(LABELLED[step[0]], LENGTHS[step[0]]) for step in steps]
    assert order[:32] != sorted(order[:32], reverse=True)
    assert len(set(order[:16]) & set(sorted(order, reverse=True)[:16])) < 16


@pytest.mark.parametrize("sampling", ["proportional", "temperature", "round_robin"])
def test_epoch_depends_on_seed_and_number_alone(sampling: str) -> None:
    first = sampler(sampling=sampling)
    later = first.epoch(4)
    assert sampler(sampling=sampling).epoch(4) == later
    assert first.epoch(5) != later
    assert sampler(seed=1, sampling=sampling).epoch(4) != later


def test_epoch_counts_follow_the_sampling_rule() -> None:
    sizes = {0: 900, 1: 90, 2: 10}
    assert epoch_counts(DataConfig(train=("a",)), sizes) == sizes
    assert epoch_counts(DataConfig(train=("a",), sampling="round_robin"), sizes) == {0: 334, 1: 333, 2: 333}
    # In proportion to the square roots: 30, 9.49, 3.16.
    heated = epoch_counts(DataConfig(train=("a",), sampling="temperature"), sizes)
    assert heated == {0: 703, 1: 223, 2: 74}
    assert epoch_counts(DataConfig(train=("a",), sampling="temperature", sampling_temperature=1.0), sizes) == sizes


@pytest.mark.parametrize("sampling", ["temperature", "round_robin"])
def test_rows_repeat_only_after_all_rows_of_their_source(sampling: str) -> None:
    chosen = sampler(sampling=sampling)
    occurrences = Counter(row for number in range(3) for step in chosen.epoch(number) for row in step)
    assert sum(occurrences.values()) == 3000
    for source in (0, 1, 2):
        times = [occurrences[row] for row in range(1000) if SOURCES[row] == source]
        assert max(times) - min(times) <= 1


def test_steps_contain_rows_with_labels_for_the_same_heads() -> None:
    steps = sampler().epoch(0)
    mixed = [step for step in steps if len({LABELLED[row] for row in step}) > 1]
    # Only the step where one kind ends and the other begins, in each of the two windows.
    assert len(mixed) <= 2
    assert len({LABELLED[step[0]] for step in steps[:16]}) == 2


def test_micro_batches_split_a_step_in_order() -> None:
    assert micro_batches([5, 3, 8, 1, 9], 2) == [[5, 3], [8, 1], [9]]
