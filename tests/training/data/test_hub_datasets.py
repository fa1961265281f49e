from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from polyhead_rows import RawRow
from polyhead_training.data.hub_datasets import read_dataset
from polyhead_training.data.readers import read_source
from polyhead_training.errors import DataError, HubError

datasets: Any = pytest.importorskip("datasets")

NAME = "hub:owner/name@v1:small#train"
FIELDS = ("text", "label", "stars")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A hub of one dataset; what was asked of it."""
    label = datasets.ClassLabel(names=["app", "billing"])
    features = datasets.Features({"text": datasets.Value("string"), "label": label, "stars": datasets.Value("int64")})
    rows = {"text": ["a", "b", "c"], "label": [1, 0, -1], "stars": [1, None, 5]}
    asked: list[tuple[Any, ...]] = []

    def load_dataset(path: str, name: str | None = None, *, split: str, revision: str | None, **more: object) -> Any:
        asked.append((path, name, split, revision, more))
        return datasets.Dataset.from_dict(rows, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def fail_with(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def test_class_label_numbers_become_names_and_minus_one_becomes_none(hub: list[tuple[Any, ...]]) -> None:
    assert [row.values for row in read_dataset(NAME, FIELDS)] == [
        {"text": "a", "label": "billing", "stars": 1},
        {"text": "b", "label": "app", "stars": None},
        {"text": "c", "label": None, "stars": 5},
    ]


def test_only_named_fields_are_decoded(hub: list[tuple[Any, ...]]) -> None:
    first = next(iter(read_dataset(NAME, ["text"])))
    assert (first.values, first.names) == ({"text": "a"}, ("text", "label", "stars"))


def test_every_part_of_the_name_is_passed_to_the_library(hub: list[tuple[Any, ...]]) -> None:
    list(read_dataset(NAME, FIELDS))
    list(read_dataset("hub:owner/name#test", FIELDS))
    assert [asked[:4] for asked in hub] == [("owner/name", "small", "train", "v1"), ("owner/name", None, "test", None)]


def test_dataset_code_is_never_enabled(hub: list[tuple[Any, ...]]) -> None:
    list(read_dataset(NAME, FIELDS))
    assert "trust_remote_code" not in hub[0][4]


def test_rows_are_numbered_from_one_under_the_configured_name(hub: list[tuple[Any, ...]]) -> None:
    found = [row for row in read_source(Path(NAME), FIELDS) if isinstance(row, RawRow)]
    assert [(str(row.path), row.line) for row in found] == [(NAME, 1), (NAME, 2), (NAME, 3)]


@pytest.mark.parametrize("name", ["hub:owner/name", "hub:#train", "hub:owner/name@#train", "hub:owner/na me#train"])
def test_invalid_name_error_shows_the_valid_form(hub: list[tuple[Any, ...]], name: str) -> None:
    with pytest.raises(DataError, match=r"write hub:OWNER/NAME\[@REVISION\]\[:CONFIGURATION\]#SPLIT"):
        list(read_dataset(name, FIELDS))
    assert hub == []


def test_missing_library_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install '\.\[hub\]'"):
        list(read_dataset(NAME, FIELDS))


def test_unknown_dataset_is_a_data_error(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, datasets.exceptions.DatasetNotFoundError("gone"))
    with pytest.raises(DataError, match="is not a dataset of the hub, or not accessible to you"):
        list(read_dataset(NAME, FIELDS))


def test_unknown_split_error_lists_the_existing_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, ValueError("Unknown split \"trian\". Should be one of ['train', 'test'].\nmore"))
    with pytest.raises(DataError, match=r"Should be one of \['train', 'test'\]\.$"):
        list(read_dataset(NAME, FIELDS))


@pytest.mark.parametrize("error", [ConnectionError("no route\nand more"), TimeoutError("too slow")])
def test_network_failure_is_a_hub_error(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    fail_with(monkeypatch, error)
    with pytest.raises(HubError, match=r"\((no route|too slow)\); try again"):
        list(read_dataset(NAME, FIELDS))
