from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from polyhead_training.config import HeadConfig
from polyhead_training.data.dataset import Data, Row
from polyhead_training.data.quality_report import DataReport, describe_data

HEADS = (
    HeadConfig(name="topic", kind="softmax", field="label", labels=("app", "billing")),
    HeadConfig(name="sentiment", kind="sigmoid", labels=("negative", "positive")),
)
APP, BILLING, NONE = ("app", "positive"), ("billing", "negative"), (None, None)
LONG = "the parcel came two days late and the box was wet when it arrived at my door this morning"

LabelledText = tuple[str, tuple[str | None, ...]]


def rows(name: str, texts: Sequence[LabelledText]) -> tuple[Row, ...]:
    return tuple(Row(text, labels, Path(name), line, 0) for line, (text, labels) in enumerate(texts, start=1))


def describe(
    train: Sequence[LabelledText],
    validation: Sequence[LabelledText] = (),
    test: Sequence[LabelledText] = (),
    tokens: Sequence[int] | None = None,
    fields: Mapping[Path, tuple[str, ...]] | None = None,
) -> DataReport:
    """Computes the report at a token limit of 10; ``tokens`` are the token counts of the training rows."""
    splits = {"train": rows("a.jsonl", train), "validation": rows("b.jsonl", validation), "test": rows("c.jsonl", test)}
    counts = {split: [3] * len(found) for split, found in splits.items()}
    data = Data(HEADS, **splits, similarity=(), fields=fields or {})
    return describe_data(data, counts | ({"train": tokens} if tokens else {}), max_tokens=10)


def warning(report: DataReport, part: str) -> str:
    (found,) = [line for line in report.warnings if part in line]
    return found


def test_labels_are_counted_by_head_in_the_order_of_the_logits() -> None:
    found = describe([("a", BILLING), ("b", BILLING), ("c", APP), ("d", (None, "positive")), ("e", NONE)]).splits[
        "train"
    ]
    assert (found.rows, found.unlabelled) == (5, 1)
    assert list(found.heads["topic"].labels.items()) == [("app", 1), ("billing", 2)]
    assert found.heads["topic"].majority_baseline == pytest.approx(2 / 3)
    assert (found.heads["sentiment"].labelled, found.heads["sentiment"].majority_baseline) == (4, 0.5)


def test_empty_split_has_no_statistics() -> None:
    found = describe([("a", APP), ("b", BILLING)]).splits["validation"]
    assert (found.rows, found.tokens, found.heads["topic"].majority_baseline) == (0, None, None)


def test_token_counts_are_before_truncation() -> None:
    tokens = describe([(str(n), APP) for n in range(4)], tokens=[4, 6, 10, 20]).splits["train"].tokens
    assert tokens is not None
    assert (tokens.max, tokens.truncated, tokens.lost) == (20, 0.25, 0.25)


def test_median_and_95th_percentile_are_lengths_that_occur() -> None:
    tokens = describe([(str(n), APP) for n in range(101)], tokens=list(range(1, 102))).splits["train"].tokens
    assert tokens is not None
    assert (tokens.p50, tokens.p95) == (51, 96)


def test_text_at_the_limit_is_not_truncated() -> None:
    tokens = describe([("a", APP)], tokens=[10]).splits["train"].tokens
    assert tokens is not None
    assert (tokens.truncated, tokens.lost) == (0, 0)


def test_duplicates_and_conflicting_labels_are_counted() -> None:
    report = describe([("Same!", APP), ("same", APP), ("SAME", BILLING), ("other", APP)])
    assert report.splits["train"].duplicates == {"exact": 2, "conflicting": 1}
    assert "a.jsonl:3" in warning(report, "a different label")


def test_duplicate_without_a_label_does_not_conflict() -> None:
    assert describe([("same", APP), ("same", NONE)]).splits["train"].duplicates == {"exact": 1, "conflicting": 0}


def test_leaked_row_is_reported_with_both_locations() -> None:
    report = describe([("x", APP), ("Same!", APP)], test=[("y", APP), ("same", APP)])
    (leak,) = report.leakage
    assert (leak.splits, leak.exact, leak.near, leak.examples) == (
        ("train", "test"),
        1,
        0,
        [("a.jsonl:2", "c.jsonl:2")],
    )
    line = warning(report, "rows that also occur in train")
    assert "a.jsonl:2" in line
    assert "c.jsonl:2" in line


def test_near_duplicates_across_splits_are_reported() -> None:
    (leak,) = describe([(LONG, APP)], test=[(LONG + " again", APP)]).leakage
    assert (leak.exact, leak.near, leak.examples) == (0, 1, [("a.jsonl:1", "c.jsonl:1")])


def test_leak_has_at_most_five_examples() -> None:
    texts: list[LabelledText] = [(f"text {n}", APP) for n in range(9)]
    (leak,) = describe(texts, test=texts).leakage
    assert (leak.exact, len(leak.examples)) == (9, 5)


def test_every_pair_of_splits_with_rows_is_compared() -> None:
    report = describe([("a", APP)], [("b", APP)], [("c", APP)])
    assert [leak.splits for leak in report.leakage] == [
        ("train", "validation"),
        ("train", "test"),
        ("validation", "test"),
    ]
    assert [leak.exact + leak.near for leak in report.leakage] == [0, 0, 0]


def test_misspelled_field_is_reported_with_a_suggestion() -> None:
    fields = {Path("a.jsonl"): ("text", "lable", "sentiment"), Path("b.jsonl"): ("text", "label", "sentiment")}
    report = describe([("a", APP), ("b", BILLING)], fields=fields)
    assert "a.jsonl: has no field 'label' for head 'topic'; did you mean 'lable'?" in report.warnings
    assert not any("b.jsonl" in line for line in report.warnings)


def test_file_without_a_similar_field_gets_no_warning() -> None:
    report = describe([("a", APP), ("b", BILLING)], fields={Path("a.jsonl"): ("text", "label", "labels")})
    assert not any("no field" in line for line in report.warnings)


def test_valid_rows_produce_no_warning() -> None:
    assert describe([("a", APP), ("b", BILLING)], [("c", APP), ("d", BILLING)]).warnings == []


def test_report_is_json_serializable() -> None:
    report = describe([("same", APP), ("Same", BILLING), ("c", NONE)], test=[("same", APP)], tokens=[3, 4, 50])
    content = json.loads(json.dumps(report.to_json()))
    assert set(content) == {"splits", "leakage", "warnings"}
    assert set(content["splits"]) == {"train", "validation", "test"}
    assert set(content["splits"]["train"]) == {"rows", "heads", "tokens", "duplicates", "unlabelled"}
    assert set(content["splits"]["train"]["tokens"]) == {"p50", "p95", "max", "truncated", "lost"}
    assert content["leakage"][0]["examples"] == [["a.jsonl:1", "c.jsonl:1"]]


def test_terminal_lines_cover_each_head_and_warning() -> None:
    report = describe([("same", APP), ("same", BILLING)])
    lines = [line for message in report.lines() for line in message.splitlines()]
    assert any(line.startswith("train") and "topic" in line and "app 50.0%, billing 50.0%" in line for line in lines)
    assert [line for line in lines if line.startswith("warning: ")] == [f"warning: {line}" for line in report.warnings]


def test_many_truncated_texts_are_a_warning() -> None:
    few, many = (describe([(f"text {n}", APP) for n in range(10)], tokens=[5] * (10 - n) + [50] * n) for n in (1, 2))
    assert "20% of the texts are truncated" in warning(many, "truncated")
    assert not any("truncated" in line for line in few.warnings)
