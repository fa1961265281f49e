"""Lists, ordered labels and numbers as they occur in files, and bad input of them, named by file and line."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from polyhead_training.config import Config
from polyhead_training.data.dataset import Data, read_data
from polyhead_training.data.quality_report import describe_data
from polyhead_training.errors import ConfigError, DataError

Read = Callable[..., Data]
HEADS = (
    '[{name="tags", kind="multilabel", field="labels"}, {name="stars", kind="ordinal"}, '
    '{name="price", kind="regression"}]'
)
ROWS: list[dict[str, Any]] = [
    {"text": "a", "labels": ["late", "rude"], "stars": 10, "price": 1.5},
    {"text": "b", "labels": [], "stars": 2, "price": -3},
    {"text": "c", "labels": None, "stars": None, "price": None},
    {"text": "d", "labels": ["late"], "stars": 10, "price": 0},
]
ANSWERS = [(("late", "rude"), "10", 1.5), ((), "2", -3.0), (None, None, None), (("late",), "10", 0.0)]


@pytest.fixture
def read(configure: Callable[..., Config], tmp_path: Path) -> Read:
    """Reads a training file with heads of three kinds; validation is the same file."""

    def read(name: str, heads: str = HEADS) -> Data:
        return read_data(configure(f'data={{train="{name}", validation="{name}"}}', f"model.heads={heads}"))

    return read


def _write_jsonl(path: Path, rows: Sequence[object]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    lists = {0: "late|rude", 1: "[]", 2: "", 3: '"[""late""]"'}
    lines = [
        f"{row['text']},{lists[number]},{row['stars'] or ''},{'' if row['price'] is None else row['price']}"
        for number, row in enumerate(rows)
    ]
    path.write_text("\n".join(["text,labels,stars,price", *lines]) + "\n")


def _write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    schema = pa.schema(
        [("text", pa.string()), ("labels", pa.list_(pa.string())), ("stars", pa.float64()), ("price", pa.float32())]
    )
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path)


@pytest.mark.parametrize(
    ("name", "write"), [("a.jsonl", _write_jsonl), ("a.csv", _write_csv), ("a.parquet", _write_parquet)]
)
def test_answers_are_the_same_in_every_format(
    read: Read, tmp_path: Path, name: str, write: Callable[..., None]
) -> None:
    write(tmp_path / name, ROWS)
    data = read(name)
    assert [row.labels for row in data.train] == ANSWERS
    assert [head.labels for head in data.heads] == [("late", "rude"), ("2", "10"), None]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "stars as text": ({"stars": "five"}, r"a\.jsonl:5: field 'stars': 'five' is not a number"),
    "price as text": ({"price": "cheap"}, r"a\.jsonl:5: field 'price': 'cheap' is not a finite number"),
    "price beyond the range": ({"price": 1e300}, r"a\.jsonl:5: field 'price': .* is beyond 1e\+18"),
    "label in a list of lists": ({"labels": [["late"]]}, r"a\.jsonl:5: field 'labels': \['late'\] is a list"),
    "lone surrogate in a list": ({"labels": ["\ud800"]}, r"a\.jsonl:5: field 'labels': .* is a lone surrogate"),
}


@pytest.mark.parametrize("fault", BAD)
def test_invalid_answer_is_named_by_file_and_line(read: Read, tmp_path: Path, fault: str) -> None:
    change, message = BAD[fault]
    _write_jsonl(tmp_path / "a.jsonl", [*ROWS, {**ROWS[0], **change}])
    with pytest.raises(DataError, match=message):
        read("a.jsonl")


def test_unknown_label_in_a_list_is_named_by_file_and_line(read: Read, tmp_path: Path) -> None:
    _write_jsonl(tmp_path / "a.jsonl", [*ROWS, {"text": "e", "labels": ["late", "rde"], "stars": 2, "price": 2}])
    heads = '[{name="tags", kind="multilabel", field="labels", labels=["late", "rude"]}]'
    with pytest.raises(
        DataError, match=r"a\.jsonl:5: .*'rde' is not a valid label of head 'tags': did you mean 'rude'"
    ):
        read("a.jsonl", heads)


CONSTANT: dict[str, tuple[str, str]] = {
    "labels": (
        "multilabel",
        r"all training rows have the labels \['x'\] \(first: .*a\.jsonl:1\); add rows with another",
    ),
    "stars": ("ordinal", r"all training rows have the label '3' \(first"),
    "price": ("regression", r"all training rows have the number 3\.0 \(first"),
    "label": ("softmax", r"all training rows have the label 'x' \(first"),
}


@pytest.mark.parametrize("field", CONSTANT)
def test_data_with_a_single_answer_is_rejected(read: Read, tmp_path: Path, field: str) -> None:
    kind, message = CONSTANT[field]
    row = {"labels": ["x"], "stars": 3, "price": 3, "label": "x"}
    _write_jsonl(tmp_path / "a.jsonl", [{"text": text, **row} for text in "abc"])
    with pytest.raises(ConfigError, match=message):
        read("a.jsonl", f'[{{name="any", kind="{kind}", field="{field}"}}]')


def test_ordered_labels_that_are_the_same_number_are_rejected(read: Read, tmp_path: Path) -> None:
    _write_jsonl(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(ConfigError, match=r"labels: 2, 2\.0, 10: two of them are the same number"):
        read("a.jsonl", '[{name="stars", kind="ordinal", labels=["2", "2.0", "10"]}]')


def test_lists_with_a_single_label_are_rejected(read: Read, tmp_path: Path) -> None:
    _write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "labels": ["x"]}, {"text": "b", "labels": []}])
    with pytest.raises(ConfigError, match="name a single label, 'x'; name all labels in labels"):
        read("a.jsonl", '[{name="tags", kind="multilabel", field="labels"}]')


@pytest.mark.parametrize(("offset", "expected"), [(0, False), (200, False), (2000, True)])
def test_numbers_far_from_zero_for_their_spread_are_a_warning(
    read: Read, tmp_path: Path, offset: int, expected: bool
) -> None:
    _write_jsonl(tmp_path / "a.jsonl", [{"text": text, "price": offset + n} for n, text in enumerate("abcdef")])
    data = read("a.jsonl", '[{name="price", kind="regression"}]')
    warnings = describe_data(data, {"train": [3] * 6, "validation": [3] * 6, "test": []}, 32).warnings
    assert any("head 'price': mean" in warning for warning in warnings) is expected


def test_report_counts_labels_in_lists_and_describes_numbers(read: Read, tmp_path: Path) -> None:
    _write_jsonl(tmp_path / "a.jsonl", ROWS)
    data = read("a.jsonl")
    report = describe_data(data, {"train": [3] * 4, "validation": [3] * 4, "test": []}, 32)
    tags, stars, price = (report.splits["train"].heads[name] for name in ("tags", "stars", "price"))
    assert (tags.labelled, tags.labels, tags.majority_baseline) == (3, {"late": 2, "rude": 1}, None)
    assert stars.labels == {"2": 1, "10": 2}
    assert stars.majority_baseline == pytest.approx(2 / 3)
    assert price.numbers is not None
    assert (price.labelled, price.numbers["min"], price.numbers["max"]) == (3, -3.0, 1.5)
    assert report.splits["train"].unlabelled == 1
    lines = list(report.lines())
    assert any("-3 to 1.5, mean -0.5" in line for line in lines)
    assert any("labels of head 'tags' with one row, too few to learn: 1: 'rude'" in line for line in lines)
