from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from polyhead_training.config import Config
from polyhead_training.data.dataset import read_data
from polyhead_training.data.embedding_data import EmbeddingRow, EmbeddingSource
from polyhead_training.errors import DataError

WriteJsonl = Callable[[str, Sequence[object]], Path]
Read = Callable[..., tuple[EmbeddingSource, ...]]
SCORED = [{"a": "one", "b": "two", "score": 0}, {"a": "three", "b": "four", "score": 5}]


@pytest.fixture
def read(configure: Callable[..., Config], write_jsonl: WriteJsonl) -> Read:
    """Writes rows as one source, x.jsonl, and reads it with further settings."""

    def read(rows: Sequence[object], kind: str, **settings: object) -> tuple[EmbeddingSource, ...]:
        write_jsonl("x.jsonl", rows)
        values = {"files": ["x.jsonl"], "kind": kind, **settings}
        table = ", ".join(f"{key} = {json.dumps(value)}" for key, value in values.items())
        return read_data(configure(f"data.embedding=[{{{table}}}]")).embedding

    return read


def test_rows_of_each_kind_have_their_texts_scores_and_location(read: Read, tmp_path: Path) -> None:
    (scored,) = read(SCORED, "scored_pairs")
    assert scored.rows == (
        EmbeddingRow(("one", "two"), 0.0, tmp_path / "x.jsonl", 1),
        EmbeddingRow(("three", "four"), 5.0, tmp_path / "x.jsonl", 2),
    )
    assert (scored.name, scored.score_range, scored.config.objective) == ("x", (0.0, 5.0), "cosent")
    (pairs,) = read([{"q": "one", "d": "two"}], "pairs", fields=["q", "d"])
    assert [row.texts for row in pairs.rows] == [("one", "two")]
    (triplets,) = read([{"anchor": "a", "positive": "b", "negative": "c"}], "triplets", name="mine")
    assert [row.texts for row in triplets.rows] == [("a", "b", "c")]
    assert (triplets.name, triplets.config.objective) == ("mine", "ranking")


def test_csv_and_jsonl_give_the_same_rows(configure: Callable[..., Config], write_jsonl: WriteJsonl) -> None:
    path = write_jsonl("x.jsonl", SCORED)
    path.with_name("x.csv").write_text("a,b,score\none,two,0\nthree,four,5.0\n")
    found = read_data(
        configure("data.embedding=[{files='x.csv', kind='scored_pairs'}, {files='x.jsonl', kind='scored_pairs'}]")
    ).embedding
    assert [source.name for source in found] == ["x-1", "x-2"]
    first, second = found
    expected = [(("one", "two"), 0.0, 2), (("three", "four"), 5.0, 3)]
    assert [(row.texts, row.score, row.line) for row in first.rows] == expected
    assert [(row.texts, row.score) for row in second.rows] == [row[:2] for row in expected]


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("scored_pairs", {"a": "x", "b": None, "score": 1}, r"x\.jsonl:3: field 'b': None is not a valid text"),
        ("scored_pairs", {"a": "x", "score": 1}, r"x\.jsonl:3: has no field 'b', only 'a', 'score'"),
        ("pairs", {"a": "x"}, r"x\.jsonl:3: has no field 'b', only 'a': add it, or remove the row"),
        ("pairs", {"a": "x", "b": {"c": "y"}}, r"x\.jsonl:3: field 'b': {'c': 'y'} of type dict is not a valid text"),
        ("scored_pairs", {"a": " \u200b", "b": "y", "score": 1}, r"x\.jsonl:3: field 'a': .* is not a valid text"),
        ("scored_pairs", {"a": "x", "b": "y", "score": "high"}, r"x\.jsonl:3: field 'score': 'high' is not a finite"),
        ("scored_pairs", {"a": "x", "b": "y", "score": 6}, r"x\.jsonl:3: .*6 is outside of score_range, 0 to 5"),
        ("pairs", {"a": "Same  text", "b": "same TEXT"}, r"x\.jsonl:3: fields 'a' and 'b' have the same text"),
        ("triplets", {"anchor": "x", "positive": "x", "negative": "z"}, "fields 'anchor' and 'positive' have the same"),
        ("triplets", {"anchor": "x", "positive": "y", "negative": "x"}, "fields 'anchor' and 'negative' have the same"),
        ("triplets", {"anchor": "x", "positive": "y", "negative": "y"}, "'positive' and 'negative' have the same text"),
    ],
)
def test_invalid_rows_are_errors_with_file_and_line(read: Read, kind: str, row: object, message: str) -> None:
    good: list[object] = {
        "scored_pairs": SCORED,
        "pairs": [{"a": "one", "b": "two"}] * 2,
        "triplets": [{"anchor": "a", "positive": "b", "negative": "c"}] * 2,
    }[kind]  # type: ignore[assignment]
    settings = {"score_range": [0, 5]} if kind == "scored_pairs" else {}
    with pytest.raises(DataError, match=message):
        read([*good, row], kind, **settings)


def test_equal_scores_and_files_without_rows_are_errors(read: Read) -> None:
    with pytest.raises(
        DataError, match=r"x\.jsonl: field 'score': the score of every row is 3, which teaches no order"
    ):
        read([{**row, "score": 3} for row in SCORED], "scored_pairs")
    with pytest.raises(DataError, match=r"x\.jsonl: has no rows"):
        read([], "pairs")


def test_invalid_scores_do_not_make_the_others_equal(read: Read) -> None:
    with pytest.raises(DataError) as caught:
        read([SCORED[0], {"a": "three", "b": "four", "score": "high"}], "scored_pairs")
    assert caught.value.found == 1


def test_equal_texts_may_be_scored(read: Read) -> None:
    assert len(read([*SCORED, {"a": "x", "b": "x", "score": 5}], "scored_pairs")[0].rows) == 3


def test_all_faults_are_reported_at_once(read: Read) -> None:
    with pytest.raises(DataError) as caught:
        read([{"a": "x", "b": ""}, {"a": "x", "b": "y"}, {"a": "", "b": "z"}], "pairs")
    assert caught.value.found == 2
