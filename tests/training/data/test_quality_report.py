from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from polyhead_training.data.dataset import Data, Row
from polyhead_training.data.label_checks import one_edit_apart
from polyhead_training.data.quality_report import DataReport, describe_data
from polyhead_training.model_config import HeadConfig

HEADS = (
    HeadConfig(name="topic", kind="softmax", field="label", labels=("app", "billing")),
    HeadConfig(name="sentiment", kind="sigmoid", labels=("negative", "positive")),
)
APP, BILLING, NONE = ("app", "positive"), ("billing", "negative"), (None, None)
LONG = "the parcel came two days late and the box was wet when it arrived at my door this morning"

RowsWithTags = Callable[..., DataReport]
LabelledText = tuple[str, tuple[str | None, ...]]


def rows(name: str, texts: Sequence[LabelledText]) -> tuple[Row, ...]:
    return tuple(Row(text, labels, Path(name), line, 0) for line, (text, labels) in enumerate(texts, start=1))


def describe(
    train: Sequence[LabelledText],
    validation: Sequence[LabelledText] = (),
    test: Sequence[LabelledText] = (),
    *,
    tokens: Sequence[int] | None = None,
    fields: Mapping[Path, tuple[str, ...]] | None = None,
    heads: tuple[HeadConfig, ...] = HEADS,
    empty: tuple[str, ...] = (),
) -> DataReport:
    """Computes the report at a token limit of 10; ``tokens`` are the token counts of the training rows."""
    splits = {"train": rows("a.jsonl", train), "validation": rows("b.jsonl", validation), "test": rows("c.jsonl", test)}
    counts = {split: [3] * len(found) for split, found in splits.items()}
    data = Data(heads, splits["train"], splits["validation"], splits["test"], (), fields or {}, empty)
    return describe_data(data, counts | ({"train": tokens} if tokens else {}), max_tokens=10)


def describe_labels(train: Sequence[LabelledText], labels: Sequence[str]) -> DataReport:
    """Computes the report for training rows of a topic head with these labels."""
    return describe(train, heads=(HEADS[0].model_copy(update={"labels": tuple(labels)}), HEADS[1]))


@pytest.fixture
def rows_with_tags() -> RowsWithTags:
    """Computes the report for training rows of a multilabel head, a row for each label."""

    def found(*labels: str) -> DataReport:
        head = HeadConfig(name="tags", kind="multilabel", labels=labels)
        train = tuple(Row(label, ((label,),), Path("a.jsonl"), line, 0) for line, label in enumerate(labels, start=1))
        counts = {"train": [3] * len(train), "validation": [], "test": []}
        return describe_data(Data((head,), train, (), (), (), {}), counts, max_tokens=10)

    return found


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


def many(label: str, count: int = 20, start: str = "row") -> list[LabelledText]:
    return [(f"{start} {label} {number}", (label, "positive" if number % 2 else "negative")) for number in range(count)]


def test_valid_rows_produce_no_warning() -> None:
    train, validation = ([*many("app", start=start), *many("billing", start=start)] for start in ("first", "second"))
    assert describe(train, validation).warnings == []


def test_labels_that_spell_a_missing_value_are_listed() -> None:
    labels = ("N/A", "NULL", "NaN", "None", "nan", "#N/A", "<NA>", "-", "app", "Nancy", "nulls", "none of these")
    report = describe_labels([*many("app"), *many("Nancy"), *many("nulls"), *many("none of these")], labels)
    assert not any("missing value" in line for line in report.warnings)
    line = warning(describe_labels([row for label in labels for row in many(label)], labels), "spell a missing value")
    assert [label for label in labels if repr(label) in line] == list(labels[:8])
    assert "first in a.jsonl:1)" in line


def test_na_is_a_label_unless_other_spellings_of_a_missing_value_occur() -> None:
    assert not any("missing" in line for line in describe_labels([*many("NA"), *many("EU")], ("NA", "EU")).warnings)
    report = describe_labels([*many("NA"), *many("EU"), *many("NaN")], ("NA", "NaN", "EU"))
    assert "'NA' (20" in warning(report, "missing value")


@pytest.mark.parametrize(
    "labels",
    [
        ("App", "app"),
        ("app", "app "),
        ("app", "app\u200b"),
        ("app", "\uff41\uff50\uff50"),
        ("b\xa0c", "B c", "b  c"),
        ("e\u0301", "\xe9"),
    ],
)
def test_labels_that_differ_invisibly_are_shown_escaped(labels: tuple[str, ...]) -> None:
    report = describe_labels([row for label in labels for row in many(label)], labels)
    line = warning(report, "differ only in case, spaces or invisible characters")
    assert all(repr(label) in line for label in labels)
    assert not any("one letter" in other for other in report.warnings)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (("billing", "biling"), True),
        (("billing", "bililng"), True),
        (("billing", "billings"), True),
        (("Billing", "bylling"), True),
        (("app", "apps"), True),
        (("cat", "bat"), False),
        (("class 1", "class 2"), False),
        (("v1.0", "v1.1"), False),
        (("1", "2"), False),
        (("billing", "delivery"), False),
        (("male", "female"), False),
    ],
)
def test_labels_one_letter_apart_are_a_warning(labels: tuple[str, str], expected: bool) -> None:
    report = describe_labels([row for label in labels for row in many(label)], labels)
    assert any("differ by one letter" in line for line in report.warnings) is expected


def test_labels_that_are_lists_with_another_separator_are_a_warning(rows_with_tags: RowsWithTags) -> None:
    line = warning(rows_with_tags("late", "rude", "late,rude", "rude; slow"), "look like lists of labels: 2")
    assert "'late,rude' (1, first in a.jsonl:3); 'rude; slow' (1, first in a.jsonl:4); set separator = \",\"" in line
    assert not any("look like" in line for line in rows_with_tags("lakes, rivers", "seas").warnings)


def test_head_without_answers_in_a_split_is_a_warning() -> None:
    report = describe([*many("app"), *many("billing")], [("a", ("app", None))], [("b", (None, "positive"))])
    assert warning(report, "validation: no row has an answer for head 'sentiment'").endswith("or threshold is fitted")
    assert warning(report, "test: no row has an answer for head 'topic'").endswith("which is not measured there")


def test_many_labels_are_compared_fast() -> None:
    labels = [
        f"{chr(97 + number % 26)}{chr(97 + number // 26 % 26)}{'xyz'[number % 3]}{number}" for number in range(5000)
    ]
    assert one_edit_apart([*labels, "billing", "biling"]) == [("biling", "billing")]


def test_label_with_one_training_row_is_a_warning() -> None:
    report = describe([*many("app"), *many("billing", 1)], [*many("app", start="v"), *many("billing", start="v")])
    assert "'billing' (a.jsonl:21)" in warning(report, "with one row")
    assert not any("with one row" in line for line in describe([*many("app"), *many("billing", 2)]).warnings)
    missing = describe_labels([*many("app"), *many("NaN", 1)], ["app", "NaN"])
    assert not any("with one row" in line for line in missing.warnings)


def test_small_splits_are_a_warning() -> None:
    few, enough = [*many("app", 10), *many("billing", 9)], [*many("app"), *many("billing")]
    report = describe(few, few, enough)
    assert "has only 19 rows" in warning(report, "train: has only")
    assert "has only 19 rows; an accuracy on them is uncertain by up to 22%" in warning(report, "validation: has only")
    assert not any(line.startswith("test: has only") for line in report.warnings)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_split_without_rows_is_a_warning(split: str) -> None:
    report = describe([*many("app"), *many("billing")], empty=(split,), fields={Path("x.csv"): ()})
    assert warning(report, f"{split}: has no rows")
    assert "x.csv: has no rows" in report.warnings


def test_invisible_characters_are_escaped_in_the_table() -> None:
    report = describe_labels(
        [*many("app"), *many("app\u200b"), *many("two\nlines")], ("app", "app\u200b", "two\nlines")
    )
    table = next(iter(report.lines()))
    assert "app 33.3%, 'app\\u200b' 33.3%" in table
    assert "two\\nlines" in table


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
