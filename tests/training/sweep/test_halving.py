from __future__ import annotations

import pytest
from polyhead_training.sweep.halving import Plan, subset


def test_each_rung_has_fewer_trials_and_more_rows() -> None:
    plan = Plan(trials=12, rungs=3, reduction=3)
    assert [plan.count(rung) for rung in range(3)] == [12, 4, 2]
    assert [plan.share(rung) for rung in range(3)] == pytest.approx([1 / 9, 1 / 3, 1.0])
    assert Plan(trials=2, rungs=4, reduction=3).count(3) == 1


def test_smaller_share_is_part_of_the_larger_and_keeps_the_order() -> None:
    rows = [f"row {number}" for number in range(100)]
    parts = [subset(rows, share, seed=1) for share in (1 / 9, 1 / 3, 1.0)]
    assert [len(part) for part in parts] == [12, 34, 100]
    assert set(parts[0]) < set(parts[1])
    assert parts[2] == tuple(rows)
    assert list(parts[1]) == [row for row in rows if row in parts[1]]
    assert subset(rows, 1 / 3, seed=2) != parts[1]
