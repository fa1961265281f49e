from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from polyhead_rows import RawRow
from polyhead_training.config import Config
from polyhead_training.data.dataset import Data, Pair, Row, read_data
from polyhead_training.data.splitting import split_rows
from polyhead_training.errors import ConfigError, DataError

WriteJsonl = Callable[[str, Sequence[object]], Path]
Read = Callable[..., Data]
HEADS = """[
    {name = "topic", kind = "softmax", field = "label", labels = ["app", "billing"]},
    {name = "sentiment", kind = "sigmoid", labels = ["negative", "positive"]},
]""".replace("\n", "")
GOOD: list[dict[str, object]] = [
    {"text": "good", "label": "app", "sentiment": 1},
    {"text": "bad", "label": "billing", "sentiment": 0},
]


@pytest.fixture
def read(configure: Callable[..., Config], write_jsonl: WriteJsonl) -> Read:
    """Reads the splits that are given, as files or as what a list of them names; training rows are good by default."""

    def read(heads: str = HEADS, **splits: Sequence[str]) -> Data:
        write_jsonl("good.jsonl", GOOD)
        named = ", ".join(
            f"{split}={json.dumps(list(names))}" for split, names in ({"train": ["good.jsonl"]} | splits).items()
        )
        overrides = [f"model.heads={heads}"] if heads else []
        return read_data(configure(f"data={{{named}}}", *overrides))

    return read


def test_rows_may_lack_labels_and_have_their_location(read: Read, write_jsonl: WriteJsonl) -> None:
    rows = [{"text": "a", "label": "app", "sentiment": 1}, {"text": "b", "label": None}, {"text": "c", "sentiment": 0}]
    path = write_jsonl("a.jsonl", rows)
    assert list(read(test=["a.jsonl"]).test) == [
        Row("a", ("app", "positive"), path, 1, 0),
        Row("b", (None, None), path, 2, 0),
        Row("c", (None, "negative"), path, 3, 0),
    ]


def test_source_is_the_index_in_train_and_zero_elsewhere(read: Read, write_jsonl: WriteJsonl) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        write_jsonl(name, GOOD)
    data = read(train=["a.jsonl", "b.jsonl"], validation=["a.jsonl", "b.jsonl"], test=["good.jsonl", "b.jsonl"])
    assert [row.source for row in data.train] == [0, 0, 1, 1]
    assert {row.source for row in (*data.validation, *data.test)} == {0}


def test_rows_split_off_for_validation_keep_their_location(read: Read, write_jsonl: WriteJsonl) -> None:
    path = write_jsonl("a.jsonl", GOOD * 20)
    data = read(train=["good.jsonl", "a.jsonl"])
    assert sorted((row.path, row.line) for row in data.validation if row.source == 1) != []
    assert {row.source for row in (*data.train, *data.validation) if row.path == path} == {1}


def test_invalid_labels_are_collected_with_their_lines(read: Read, write_jsonl: WriteJsonl) -> None:
    rows = [{"text": "a", "label": "ap"}, {"text": "b", "label": "app"}, {"text": "", "label": "ap"}]
    path = write_jsonl("a.jsonl", rows)
    with pytest.raises(DataError) as caught:
        read(test=["a.jsonl"])
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{path}:1: field 'label': 'ap' is not a valid label of head 'topic': did you mean 'app'?")
    assert second.startswith(f"{path}:3: field 'text': '' is not a valid text")
    assert caught.value.found == 2


def test_lone_surrogate_is_reported_with_line_and_field(read: Read, write_jsonl: WriteJsonl) -> None:
    rows = [{"text": "\ud83d\ude42 whole"}, {"text": "half \ud83d"}, {"text": "a", "label": "\ude42"}]
    path = write_jsonl("a.jsonl", [*rows, {"text": "a", "note": "\ud83d"}])
    with pytest.raises(DataError) as caught:
        read('[{name = "topic", kind = "softmax", field = "label"}]', train=["good.jsonl", "a.jsonl"])
    first, second = str(caught.value).splitlines()
    assert first.startswith(rf"{path}:2: field 'text': '\ud83d' is a lone surrogate; write the complete")
    assert second.startswith(rf"{path}:3: field 'label': '\ude42' is a lone surrogate")


def test_problems_of_all_splits_are_collected_including_damaged_files(read: Read, write_jsonl: WriteJsonl) -> None:
    bad = [write_jsonl(name, [{"text": "a", "label": "no"}]) for name in ("train.jsonl", "test.jsonl")]
    damaged = bad[0].with_name("b.jsonl.gz")
    damaged.write_bytes(b"not gzip")
    pairs = write_jsonl("pairs.jsonl", [{"a": "x", "b": "y", "score": "high"}])
    with pytest.raises(DataError) as caught:
        read(
            train=["good.jsonl", "train.jsonl"],
            validation=["b.jsonl.gz"],
            test=["test.jsonl"],
            similarity=["pairs.jsonl"],
        )
    assert [problem.path for problem in caught.value.problems] == [bad[0], damaged, bad[1], pairs]


def test_first_hundred_problems_are_listed_and_all_are_counted(read: Read, write_jsonl: WriteJsonl) -> None:
    write_jsonl("a.jsonl", [{"text": "a", "label": "no"}] * 1234)
    with pytest.raises(DataError, match="1,234 rows are invalid; the first 100 are listed") as caught:
        read(validation=["a.jsonl"])
    assert (len(caught.value.problems), caught.value.found) == (100, 1234)


def test_invalid_training_rows_are_reported_before_missing_labels(read: Read, write_jsonl: WriteJsonl) -> None:
    write_jsonl("a.jsonl", [{"text": "", "label": "app", "sentiment": 1}])
    with pytest.raises(DataError, match=r"a\.jsonl:1: field 'text'"):
        read(train=["a.jsonl"])


def test_wrong_text_field_is_reported_once_per_file_with_the_existing_fields(
    read: Read, write_jsonl: WriteJsonl
) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        write_jsonl(name, [{"body": "a", "label": "app"}] * 5)
    with pytest.raises(DataError, match=r"no field 'text', only 'body', 'label': set data\.text") as caught:
        read(test=["a.jsonl", "b.jsonl"])
    assert [problem.path.name for problem in caught.value.problems] == ["a.jsonl", "b.jsonl"]


def test_row_without_the_text_field_is_reported_with_its_line(read: Read, write_jsonl: WriteJsonl) -> None:
    write_jsonl("a.jsonl", [{"text": "a"}, {"txt": "b"}, {"text": 3}])
    with pytest.raises(DataError) as caught:
        read(test=["a.jsonl"])
    assert [problem.line for problem in caught.value.problems] == [2, 3]


def test_fields_are_those_of_all_rows_of_a_source(read: Read, write_jsonl: WriteJsonl) -> None:
    path = write_jsonl("a.jsonl", [{"text": "a"}, {"text": "b", "lable": "app"}])
    assert set(read(test=["a.jsonl"]).fields[path]) == {"text", "lable"}


def test_pairs_accept_numbers_and_numeric_strings(read: Read, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b,score\none,two,4.5\nthree,four,0\n")
    assert read(similarity=["a.csv"]).similarity == (Pair("one", "two", 4.5), Pair("three", "four", 0.0))


@pytest.mark.parametrize("score", ["high", None, True, float("nan"), float("inf"), 10**400, [1]])
def test_score_that_is_not_finite_is_an_error(read: Read, write_jsonl: WriteJsonl, score: object) -> None:
    write_jsonl("a.jsonl", [{"a": "one", "b": "two", "score": score}])
    with pytest.raises(DataError, match=r"a\.jsonl:1: field 'score': .* is not a finite number"):
        read(similarity=["a.jsonl"])


def test_pair_without_a_field_names_the_setting(read: Read, write_jsonl: WriteJsonl) -> None:
    write_jsonl("a.jsonl", [{"a": "one", "c": "two", "score": 1}] * 3)
    with pytest.raises(DataError, match=r"no field 'b', only 'a', 'c', 'score': set data\.similarity_fields") as caught:
        read(similarity=["a.jsonl"])
    assert len(caught.value.problems) == 1


def test_hub_dataset_name_is_not_resolved_as_a_path(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_dataset(name: str, fields: Collection[str]) -> Iterator[RawRow]:
        for line, row in enumerate(GOOD, start=1):
            yield RawRow(Path(name), line, row, tuple(row))

    monkeypatch.setattr("polyhead_training.data.hub_datasets.read_dataset", read_dataset)
    data = read(train=["hub:owner/name#train"], validation=["good.jsonl"])
    assert [(str(row.path), row.line) for row in data.train] == [
        ("hub:owner/name#train", 1),
        ("hub:owner/name#train", 2),
    ]


def row(text: str, label: str | None) -> Row:
    return Row(text, (label,), Path("a.jsonl"), 1, 0)


def test_split_is_stratified_by_the_combination_of_labels() -> None:
    rows = [row(f"{label}{n}", label) for label, count in (("a", 100), ("b", 40), (None, 20)) for n in range(count)]
    stay, taken = split_rows(rows, 0.1, seed=1)
    assert Counter(found.labels[0] for found in taken) == {"a": 10, "b": 4, None: 2}
    assert sorted(stay + taken, key=rows.index) == rows
    assert stay == sorted(stay, key=rows.index)


def test_split_depends_on_the_seed_alone() -> None:
    rows = [row(str(n), "a") for n in range(200)]
    assert split_rows(rows, 0.2, seed=1) == split_rows(rows, 0.2, seed=1)
    assert split_rows(rows, 0.2, seed=1) != split_rows(rows, 0.2, seed=2)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_split_never_takes_the_last_row_of_a_label(fraction: float) -> None:
    rows = [
        row(f"{label}{n}", label) for label, count in (("a", 30), ("b", 1), ("c", 2), ("d", 3)) for n in range(count)
    ]
    for seed in range(10):
        stay, taken = split_rows(rows, fraction, seed)
        assert {found.labels[0] for found in stay} == {"a", "b", "c", "d"}
        assert len(stay) + len(taken) == len(rows)


def test_split_keeps_the_last_row_of_each_head() -> None:
    rows = [Row(str(n), ("a" if n % 2 else "b", "x" if n == 7 else "y"), Path("a.jsonl"), n, 0) for n in range(20)]
    assert all("x" in {found.labels[1] for found in split_rows(rows, 0.5, seed)[0]} for seed in range(20))


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", ""), ("a.csv", "text,label\n"), ("a.csv", "")])
def test_training_file_without_rows_is_an_error(read: Read, tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=rf"{name}: has no rows"):
        read(train=[name])


def test_split_without_rows_is_remembered(read: Read, tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("text,label\n")
    data = read(train=["good.jsonl", "empty.csv"], validation=["empty.csv"], test=["empty.csv"])
    assert data.empty == ("validation", "test")
    assert data.fields[tmp_path / "empty.csv"] == ()
    assert read(train=["good.jsonl"]).empty == ("validation",)


def test_equal_faults_of_a_file_are_one_line(read: Read, write_jsonl: WriteJsonl) -> None:
    path = write_jsonl("a.jsonl", [{"text": "a", "label": "ap" if n % 2 else "app"} for n in range(60)])
    with pytest.raises(DataError) as caught:
        read(test=["a.jsonl"])
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{path}:2: field 'label': 'ap' is not a valid label")
    assert line.endswith("(also in lines 4, 6, " + ", ".join(map(str, range(8, 43, 2))) + " and 9 more)")
    assert caught.value.found == 30


@pytest.mark.parametrize(
    "text",
    ["", " ", "\u200b\ufeff\xa0", "\x00", None, 3, 1.5, True, ["a"], {"a": 1}, json.loads("[" * 900 + "]" * 900)],
    ids=lambda text: repr(text)[:20],
)
def test_value_that_is_no_text_is_an_error(read: Read, write_jsonl: WriteJsonl, text: object) -> None:
    write_jsonl("a.jsonl", [{"text": text}])
    with pytest.raises(DataError, match=r"a\.jsonl:1: field 'text': .* is not a valid text"):
        read(test=["a.jsonl"])


def test_several_heads_without_labels_are_listed_with_suggestions(read: Read, write_jsonl: WriteJsonl) -> None:
    write_jsonl("a.jsonl", [{"text": "a", "lable": "app", "sentimnt": 1}])
    with pytest.raises(ConfigError) as caught:
        read(train=["a.jsonl"])
    first, second = str(caught.value).splitlines()
    assert "model.heads.0.field: 'label': no training row has a label in this field; did you mean 'lable'?" in first
    assert "model.heads.1.field: 'sentiment': no training row" in second
    assert "did you mean 'sentimnt'?" in second


def test_missing_text_field_has_a_suggestion(read: Read, write_jsonl: WriteJsonl) -> None:
    write_jsonl("a.jsonl", [{"Text ": "a", "label": "app"}])
    with pytest.raises(DataError, match=r"has no field 'text', only 'Text ', 'label': did you mean 'Text '\?"):
        read(test=["a.jsonl"])


def test_labels_are_those_of_the_training_rows_sorted(configure: Callable[..., Config]) -> None:
    data = read_data(configure())
    assert data.heads[0].labels == ("account", "app", "billing", "delivery", "product", "support")
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 6, 6)


def test_validation_file_is_used_completely(configure: Callable[..., Config]) -> None:
    data = read_data(configure("data={train='train.jsonl', validation='test.jsonl'}"))
    assert (len(data.train), len(data.validation), len(data.test)) == (24, 6, 0)


def test_test_label_missing_from_training_is_an_error(
    configure: Callable[..., Config], write_jsonl: WriteJsonl
) -> None:
    write_jsonl("test.jsonl", [{"text": "a", "label": "appp"}])
    with pytest.raises(DataError, match=r"test\.jsonl:1: field 'label': 'appp'.*did you mean 'app'"):
        read_data(configure())


def test_missing_file_is_a_config_error(configure: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"data\.test: the file .*nowhere\.jsonl does not exist"):
        read_data(configure("data.test=nowhere.jsonl"))


@pytest.mark.parametrize(
    ("drop", "field"), [("label", r"model\.heads\.0\.field: 'label'"), ("sentiment", r"model\.heads\.1\.field")]
)
def test_head_without_any_label_is_a_config_error(
    configure: Callable[..., Config], rows: list[dict[str, Any]], write_jsonl: WriteJsonl, drop: str, field: str
) -> None:
    write_jsonl("train.jsonl", [{key: value for key, value in row.items() if key != drop} for row in rows])
    with pytest.raises(ConfigError, match=field + ".*no training row has a label in this field"):
        read_data(configure())


def test_single_label_is_a_config_error(
    configure: Callable[..., Config], rows: list[dict[str, Any]], write_jsonl: WriteJsonl
) -> None:
    write_jsonl("train.jsonl", [row | {"label": "app"} for row in rows])
    with pytest.raises(ConfigError, match="all training rows have the label 'app'"):
        read_data(configure())
