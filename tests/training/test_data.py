from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from polyhead_training.config import Config, HeadConfig
from polyhead_training.data import Row, read_data, read_split, split_rows
from polyhead_training.errors import ConfigError, DataError

WriteJsonl = Callable[[str, Sequence[object]], Path]
HEADS = (
    HeadConfig(name="topic", kind="softmax", field="label", labels=("app", "billing")),
    HeadConfig(name="sentiment", kind="sigmoid", labels=("negative", "positive")),
)


def test_rows_may_miss_any_label(write_jsonl: WriteJsonl) -> None:
    rows = [
        {"text": "a", "label": "app", "sentiment": 1},
        {"text": "b", "label": None},
        {"text": "c", "sentiment": 0},
    ]
    found = read_split([write_jsonl("a.jsonl", rows)], "text", HEADS)
    assert found == [Row("a", ("app", "positive")), Row("b", (None, None)), Row("c", (None, "negative"))]


def test_bad_labels_are_collected_with_their_lines(write_jsonl: WriteJsonl) -> None:
    rows = [{"text": "a", "label": "ap"}, {"text": "b", "label": "app"}, {"text": "", "label": "app"}]
    path = write_jsonl("a.jsonl", rows)
    with pytest.raises(DataError) as caught:
        read_split([path], "text", HEADS)
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{path}:1: field 'label': 'ap' is no label of the head 'topic': did you mean 'app'?")
    assert second.startswith(f"{path}:3: field 'text': '' is no text")
    assert caught.value.complete


def test_half_a_surrogate_pair_is_told_by_line_and_field(write_jsonl: WriteJsonl) -> None:
    rows = [{"text": "\ud83d\ude42 whole"}, {"text": "half \ud83d"}, {"text": "a", "label": "\ude42"}]
    path = write_jsonl("a.jsonl", [*rows, {"text": "a", "note": "\ud83d"}])
    heads = (HeadConfig(name="topic", kind="softmax", field="label"),)
    with pytest.raises(DataError) as caught:
        read_split([path], "text", heads)
    first, second = str(caught.value).splitlines()
    assert first.startswith(rf"{path}:2: field 'text': '\ud83d' is half of a surrogate pair; write the whole")
    assert second.startswith(rf"{path}:3: field 'label': '\ude42' is half of a surrogate pair")


def test_problems_of_several_files_come_together(write_jsonl: WriteJsonl) -> None:
    paths = [write_jsonl(name, [{"text": "a", "label": "no"}]) for name in ("a.jsonl", "b.jsonl")]
    with pytest.raises(DataError) as caught:
        read_split(paths, "text", HEADS)
    assert [problem.path for problem in caught.value.problems] == paths


def test_reading_stops_after_twenty_problems(write_jsonl: WriteJsonl) -> None:
    path = write_jsonl("a.jsonl", [{"text": "a", "label": "no"}] * 50)
    with pytest.raises(DataError, match="these are the first ones") as caught:
        read_split([path], "text", HEADS)
    assert len(caught.value.problems) == 20
    assert not caught.value.complete


def test_wrong_text_field_is_said_once_with_the_fields_there_are(write_jsonl: WriteJsonl) -> None:
    path = write_jsonl("a.jsonl", [{"body": "a", "label": "app"}] * 5)
    with pytest.raises(DataError, match=r"no field 'text', only 'body', 'label': set data\.text") as caught:
        read_split([path], "text", HEADS)
    assert len(caught.value.problems) == 1


def test_row_without_the_text_field_is_told_by_line(write_jsonl: WriteJsonl) -> None:
    path = write_jsonl("a.jsonl", [{"text": "a"}, {"txt": "b"}, {"text": 3}])
    with pytest.raises(DataError) as caught:
        read_split([path], "text", HEADS)
    assert [problem.line for problem in caught.value.problems] == [2, 3]


def test_split_takes_its_share_of_every_combination_of_labels() -> None:
    rows = [Row(f"{label}{n}", (label,)) for label, count in (("a", 100), ("b", 40), (None, 20)) for n in range(count)]
    stay, taken = split_rows(rows, 0.1, seed=1)
    assert Counter(row.labels[0] for row in taken) == {"a": 10, "b": 4, None: 2}
    assert sorted(stay + taken, key=rows.index) == rows
    assert stay == sorted(stay, key=rows.index)


def test_split_depends_on_the_seed_alone() -> None:
    rows = [Row(str(n), ("a",)) for n in range(200)]
    assert split_rows(rows, 0.2, seed=1) == split_rows(rows, 0.2, seed=1)
    assert split_rows(rows, 0.2, seed=1) != split_rows(rows, 0.2, seed=2)


def test_labels_are_those_of_the_training_rows_sorted(configure: Callable[..., Config]) -> None:
    data = read_data(configure())
    assert data.heads[0].labels == ("account", "app", "billing", "delivery", "product", "support")
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 6, 6)


def test_validation_file_is_used_whole(configure: Callable[..., Config]) -> None:
    data = read_data(configure("data={train='train.jsonl', validation='test.jsonl'}"))
    assert (len(data.train), len(data.validation), len(data.test)) == (24, 6, 0)


def test_test_label_that_training_never_saw_is_an_error(
    configure: Callable[..., Config], write_jsonl: WriteJsonl
) -> None:
    write_jsonl("test.jsonl", [{"text": "a", "label": "appp"}])
    with pytest.raises(DataError, match=r"test\.jsonl:1: field 'label': 'appp'.*did you mean 'app'"):
        read_data(configure())


def test_missing_file_is_a_config_error(configure: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"data\.test: there is no file .*nowhere\.jsonl"):
        read_data(configure("data.test=nowhere.jsonl"))


@pytest.mark.parametrize(
    ("drop", "field"), [("label", r"model\.heads\.0\.field: 'label'"), ("sentiment", r"model\.heads\.1\.field")]
)
def test_head_without_any_label_is_a_config_error(
    configure: Callable[..., Config], rows: list[dict[str, Any]], write_jsonl: WriteJsonl, drop: str, field: str
) -> None:
    write_jsonl("train.jsonl", [{key: value for key, value in row.items() if key != drop} for row in rows])
    with pytest.raises(ConfigError, match=field + ".*no training row has a label there"):
        read_data(configure())


def test_single_label_is_a_config_error(
    configure: Callable[..., Config], rows: list[dict[str, Any]], write_jsonl: WriteJsonl
) -> None:
    write_jsonl("train.jsonl", [row | {"label": "app"} for row in rows])
    with pytest.raises(ConfigError, match="all training rows have the label 'app'"):
        read_data(configure())
