from __future__ import annotations

from collections import Counter
from typing import Any

from polyhead_training.config import DataConfig
from polyhead_training.data.embedding_sampling import EmbeddingSampler, EmbeddingStep, interleave
from polyhead_training.embedding_config import EmbeddingSourceConfig


def sampler(seed: int = 0, **settings: Any) -> EmbeddingSampler:
    sources = (
        EmbeddingSourceConfig(files=("a.jsonl",), kind="pairs"),
        EmbeddingSourceConfig(files=("b.jsonl",), kind="pairs", batch_size=40),
    )
    return EmbeddingSampler([33, 100], DataConfig(train=("t",), embedding=sources, **settings), 8, seed)


def test_epoch_has_every_row_once_in_even_steps_of_one_source() -> None:
    steps = sampler().epoch(0)
    rows = [(step.source, row) for step in steps for row in step.rows]
    assert sorted(rows) == [*((0, row) for row in range(33)), *((1, row) for row in range(100))]
    # 33 rows in steps of at most 8 are 5 steps, none of them of a single row.
    assert Counter((step.source, len(step.rows)) for step in steps) == {(0, 6): 2, (0, 7): 3, (1, 33): 2, (1, 34): 1}


def test_order_depends_on_the_seed_and_the_epoch_alone() -> None:
    assert sampler().epoch(3) == sampler().epoch(3)
    assert len({tuple(steps) for steps in (sampler().epoch(0), sampler().epoch(1), sampler(seed=1).epoch(0))}) == 3


def test_round_robin_draws_sources_equally_often() -> None:
    counts = Counter(step.source for step in sampler(sampling="round_robin").epoch(0) for _ in step.rows)
    assert abs(counts[0] - counts[1]) <= 1
    assert counts.total() == 133


def test_interleaved_steps_keep_the_order_of_each_kind() -> None:
    labelled = [[number] for number in range(20)]
    texts = [EmbeddingStep(0, (number,)) for number in range(30)]
    merged = interleave(labelled, texts, seed=0, epoch=1)
    assert [step for step in merged if isinstance(step, list)] == labelled
    assert [step for step in merged if isinstance(step, EmbeddingStep)] == texts
    assert merged[:20] != labelled
    assert merged == interleave(labelled, texts, seed=0, epoch=1) != interleave(labelled, texts, seed=0, epoch=2)


def test_labelled_steps_alone_are_unchanged() -> None:
    labelled = [[number] for number in range(20)]
    assert interleave(labelled, [], seed=0, epoch=0) == labelled
