"""The rows that the comparison draws, and its summary."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.training.few_shot import Source, draw_rows, summary

INTENTS = Source("train", "test", "label")


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [{"text": f"text {n}", "label": "abc"[n % 3], "sentiment": None} for n in range(60)]
    write(tmp_path / "train.jsonl.gz", [*rows, {"text": "x", "label": None, "sentiment": 1}])
    write(tmp_path / "test.jsonl.gz", [{"text": f"test {n}", "label": "a"} for n in range(50)])
    return tmp_path


def texts(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [row["text"] for row in rows]


def test_draw_has_as_many_rows_of_each_label_and_depends_on_its_seed(data: Path) -> None:
    drawn, tested = draw_rows(data, INTENTS, 8, 0, 1000)
    assert Counter(row["label"] for row in drawn) == {"a": 8, "b": 8, "c": 8}
    assert texts(drawn) == texts(draw_rows(data, INTENTS, 8, 0, 1000)[0])
    assert texts(drawn) != texts(draw_rows(data, INTENTS, 8, 1, 1000)[0])
    assert len(tested) == 50


def test_label_with_fewer_rows_gives_all_of_them(data: Path) -> None:
    assert len(draw_rows(data, INTENTS, 64, 0, 1000)[0]) == 60


def test_all_draws_share_the_test_rows(data: Path) -> None:
    assert texts(draw_rows(data, INTENTS, 8, 0, 10)[1]) == texts(draw_rows(data, INTENTS, 8, 1, 10)[1])


def test_published_draws_are_cumulative(tmp_path: Path) -> None:
    rows = [{"text": f"{n}", "label": "ab"[n % 2], "shot": (5, 10, None)[n // 10]} for n in range(30)]
    for name in ("train", "test"):
        write(tmp_path / f"{name}.jsonl.gz", rows)
    assert [len(draw_rows(tmp_path, INTENTS, count, 0, 9)[0]) for count in (5, 10)] == [10, 20]
    assert len(draw_rows(tmp_path, INTENTS, 8, 0, 9)[0]) == 16


def test_summary_has_the_mean_and_the_deviation_over_draws() -> None:
    runs = [
        {"set": "trec", "rows": 8, "draw": draw, "method": "SetFit", "accuracy": accuracy, "seconds": 2.0}
        for draw, accuracy in enumerate((0.5, 0.7))
    ]
    (found,) = summary(runs)
    assert (found["draws"], found["accuracy"], found["sd"], found["seconds"]) == (2, 0.6, 0.1414, 2.0)
