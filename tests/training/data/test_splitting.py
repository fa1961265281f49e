from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from polyhead_training.data.dataset import Row
from polyhead_training.data.splitting import split_rows, strata_of
from polyhead_training.data.targets import Target


def _rows(targets: list[Target | None]) -> list[Row]:
    return [Row(f"text {line}", (target,), Path("a.jsonl"), line, 0) for line, target in enumerate(targets, 1)]


def test_lists_are_split_by_their_rarest_label() -> None:
    # Every row has the frequent label; each of its combinations is too rare to be a stratum of its own.
    targets: list[Target | None] = [("common", f"other {n % 20}") for n in range(400)]
    _, taken = split_rows(_rows(targets), 0.1, seed=3)
    counts = Counter(label for row in taken for label in row.labels[0] or ())  # type: ignore[union-attr]
    assert counts["common"] == len(taken) == 40
    assert all(counts[f"other {n}"] == 2 for n in range(20))


def test_last_row_of_a_label_in_a_list_stays() -> None:
    targets: list[Target | None] = [("common",)] * 30 + [("common", "rare")]
    for seed in range(20):
        stay, _ = split_rows(_rows(targets), 0.5, seed)
        assert any(row.labels[0] == ("common", "rare") for row in stay)


def test_numbers_are_split_by_their_size() -> None:
    _, taken = split_rows(_rows([float(n % 200) for n in range(1000)]), 0.1, seed=0)
    tenths = Counter(int(float(str(row.labels[0])) // 20) for row in taken)
    assert tenths == dict.fromkeys(range(10), 10)


def test_every_number_may_leave_the_first_part() -> None:
    stay, taken = split_rows(_rows([1.0, 2.0, 3.0, 4.0]), 0.5, seed=0)
    assert len(stay) == len(taken) == 2


@pytest.mark.parametrize("target", [None, (), "a", 2.5])
def test_equal_answers_have_equal_strata(target: Target | None) -> None:
    first, second = strata_of(_rows([target, target]))
    assert first == second


def test_no_rows_have_no_strata() -> None:
    assert strata_of([]) == []
