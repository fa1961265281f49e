"""Rows that a server has collected: how they are read, which are ignored, and which are held out."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from polyhead_training.config import Config
from polyhead_training.data.collected import Collected
from polyhead_training.data.dataset import Data, read_data
from polyhead_training.errors import DataError

WriteJsonl = Callable[[str, Sequence[object]], Path]
Read = Callable[..., Data]
LABELS = ("app", "billing")


def collected(number: int, label: str | None, *reasons: str) -> dict[str, Any]:
    """Returns a row as a server writes it, with a label filled in."""
    meta = {
        "reasons": reasons or ("random",),
        "probability": 0.01,
        "predictions": {"topic": {"label": "app", "confidence": 0.7}, "stars": {"value": 2.5}},
        "model": "m-1",
    }
    return {"text": f"collected {number}", "topic": label, "_collected": meta}


@pytest.fixture
def read(configure: Callable[..., Config], write_jsonl: WriteJsonl) -> Read:
    """Reads collected rows beside 40 others; the field of the text and of the label have names of their own."""
    write_jsonl("plain.jsonl", [{"review": f"plain {number}", "area": LABELS[number % 2]} for number in range(40)])
    head = '[{name = "topic", kind = "softmax", field = "area"}]'

    def run(rows: Sequence[object] = (), name: str = "collected.jsonl", **data: object) -> Data:
        if rows:
            write_jsonl(name, rows)
        values = {"train": ["plain.jsonl", name], "text": "review", "collected_holdout": 0.0, **data}
        toml = ", ".join(f"{key} = {json.dumps(value)}" for key, value in values.items())
        return read_data(configure(f"data={{{toml}}}", f"model.heads={head}"))

    return run


def test_labelled_rows_train_under_the_names_of_the_model(read: Read) -> None:
    data = read([collected(1, "billing"), collected(2, "app", "low_confidence", "novel")], validation_fraction=0)
    first, second = [row for row in data.train if row.collected]
    assert (first.text, first.labels) == ("collected 1", ("billing",))
    assert first.collected == Collected(("random",), "m-1", {"topic": "app", "stars": 2.5})
    assert second.collected
    assert second.collected.reasons == ("low_confidence", "novel")
    assert len(data.train) == 42


def test_rows_under_the_names_of_the_configuration_are_read_as_well(read: Read) -> None:
    row = collected(1, None)
    renamed = {"review": row["text"], "area": "billing", "_collected": row["_collected"]}
    data = read([renamed], validation_fraction=0)
    assert [one.labels for one in data.train if one.collected] == [("billing",)]


def test_rows_without_a_label_are_ignored_and_counted(read: Read) -> None:
    rows = [collected(number, "app" if number < 3 else None) for number in range(10)]
    data = read(rows, validation_fraction=0)
    assert sum(row.collected is not None for row in data.train) == 3
    assert data.collected
    assert (data.collected.labelled, data.collected.unlabelled) == (3, 7)
    assert data.collected.line() == "collected: 3 of 10 rows are labelled; 7 without a label are ignored"


def test_other_rows_without_a_label_stay(read: Read) -> None:
    data = read([{"review": "no label", "area": None}], validation_fraction=0)
    assert data.train[-1].text == "no label"
    assert data.collected is None


def test_selected_rows_never_become_validation(read: Read) -> None:
    rows = [
        collected(number, LABELS[number % 2], "random" if number < 50 else "low_confidence") for number in range(100)
    ]
    data = read(rows, validation_fraction=0.5)
    reasons = {row.collected.reasons for row in data.validation if row.collected}
    assert reasons == {("random",)}
    assert sum(row.collected is not None for row in (*data.train, *data.validation)) == 100


def test_part_of_the_random_rows_is_held_out_the_same_in_every_run(read: Read) -> None:
    rows = [collected(number, LABELS[number % 2], "random" if number % 2 else "novel") for number in range(200)]
    first = read(rows[:100], collected_holdout=0.3)
    second = read(rows, collected_holdout=0.3)
    assert first.collected
    assert second.collected
    held = {row.text for row in first.collected.held_out}
    assert held == {row.text for row in second.collected.held_out[: len(held)]}
    assert 15 <= len(second.collected.held_out) <= 45
    assert all(row.collected and row.collected.is_random for row in second.collected.held_out)
    assert len(second.collected.random) == 100
    assert held.isdisjoint(row.text for row in (*first.train, *first.validation))


@pytest.mark.parametrize("changed", [str, str.upper, "{}!".format])
def test_text_that_trains_elsewhere_is_not_held_out(read: Read, changed: Callable[[str], str]) -> None:
    rows = [collected(number, "app") for number in range(50)]
    again = [collected(number, "app", "low_confidence") for number in range(50)]
    data = read([*rows, *({**row, "text": changed(row["text"])} for row in again)], collected_holdout=0.5)
    assert data.collected
    assert data.collected.held_out == ()


def test_random_rows_of_the_test_split_count_as_held_out(read: Read, write_jsonl: WriteJsonl) -> None:
    write_jsonl("test.jsonl", [collected(1, "app"), collected(2, "billing", "novel"), collected(3, None)])
    data = read([collected(4, "app")], test=["test.jsonl"])
    assert data.collected
    assert [row.text for row in data.collected.held_out] == ["collected 1"]
    assert [row.text for row in data.collected.random] == ["collected 4", "collected 1"]
    assert data.collected.unlabelled == 1


def test_table_keeps_what_the_server_wrote(read: Read, tmp_path: Path) -> None:
    row = collected(1, "billing")
    with (tmp_path / "labelled.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "topic", "_collected"])
        writer.writeheader()
        writer.writerow({**row, "_collected": json.dumps(row["_collected"])})
    data = read(name="labelled.csv", validation_fraction=0)
    assert [one.collected and one.collected.model for one in data.train if one.collected] == ["m-1"]


def test_other_rows_of_a_table_keep_their_fields(read: Read, tmp_path: Path) -> None:
    """As where a spreadsheet joins collected rows with others: each row leaves the columns of the others empty."""
    row = collected(1, "billing")
    with (tmp_path / "joined.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["review", "area", "text", "topic", "_collected"])
        writer.writeheader()
        writer.writerow({"review": "other", "area": "app"})
        writer.writerow({**row, "_collected": json.dumps(row["_collected"])})
    data = read(name="joined.csv", validation_fraction=0)
    found = [(one.text, one.labels, one.collected is not None) for one in data.train if one.path.name == "joined.csv"]
    assert found == [("other", ("app",), False), ("collected 1", ("billing",), True)]


@pytest.mark.parametrize("meta", ["x", 3, {"reasons": ["random"]}, {"reasons": 1, "model": "m", "predictions": {}}])
def test_changed_field_of_the_server_is_an_error(read: Read, meta: object) -> None:
    with pytest.raises(DataError, match="field '_collected': is not that of a collected row"):
        read([{**collected(1, "app"), "_collected": meta}])


def test_row_without_the_field_of_the_server_is_an_ordinary_row(read: Read) -> None:
    data = read([{"review": "labelled", "area": "app"}], validation_fraction=0)
    assert data.collected is None
    assert len(data.train) == 41
