from __future__ import annotations

import pytest

from bench.harness import upper_bound
from bench.harness.upper_bound import batches_of_similar_length, with_efficiency


def test_batches_are_sorted_by_length_and_keep_the_token_limit() -> None:
    ids = [[0] * length for length in (9, 2, 5, 4, 8, 3)]
    batches = batches_of_similar_length(ids, max_tokens=12)
    assert [[len(one) for one in batch] for batch in batches] == [[2, 3, 4], [5], [8], [9]]
    assert all(len(batch) * max(map(len, batch)) <= 12 for batch in batches)


def test_a_text_longer_than_the_limit_is_a_batch_of_its_own() -> None:
    assert [len(batch) for batch in batches_of_similar_length([[0] * 20, [0] * 30], max_tokens=12)] == [0, 1, 1][1:]


def test_efficiency_excludes_the_cpu_time_of_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upper_bound, "usable_cores", lambda: 2)
    figures = with_efficiency({"items_per_s": 90.0, "client_cores": 0.2}, upper_bound=100.0)
    assert figures["efficiency"] == pytest.approx(0.9)
    assert figures["efficiency_without_client"] == pytest.approx(1.0)
