from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from polyhead_bulk import UsageError
from polyhead_bulk.texts import NOT_UTF8, NULL, from_arrow, from_values


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a", None, "é🙂"]),
        pa.array(["a", None, "é🙂"], pa.large_string()),
        pa.array(["a", None, "é🙂"], pa.string_view()),
        pa.array(["a", None, "é🙂"]).dictionary_encode(),
        pa.chunked_array([["a"], [None, "é🙂"]]),
    ],
)
def test_every_string_layout_is_read(column: pa.Array) -> None:
    texts = from_arrow(column, "text")
    assert texts.values == ["a", "", "é🙂"]
    assert texts.errors == {1: NULL}


@pytest.mark.parametrize("kind", [pa.int64(), pa.binary(), pa.list_(pa.string())])
def test_a_column_of_another_type_is_refused_with_its_name_and_type(kind: pa.DataType) -> None:
    with pytest.raises(UsageError, match=rf"'body' has type .*{str(kind)[:4]}"):
        from_arrow(pa.nulls(2, kind), "body")


def test_bytes_that_are_not_utf8_are_an_error_of_their_row_alone() -> None:
    column = pa.array([b"good", b"\xff\xfe", None, "é".encode()]).view(pa.string())
    texts = from_arrow(column, "text")
    assert texts.values == ["good", "", "", "é"]
    assert texts.errors == {1: NOT_UTF8, 2: NULL}


def test_values_that_are_no_strings_say_what_they_are() -> None:
    pd = pytest.importorskip("pandas")
    values = ["a", None, 5, 1.5, True, {"x": 1}, ["y"], math.nan, np.nan, pd.NA, pd.NaT, "\ud800", b"b"]
    texts = from_values(values)
    assert texts.values == ["a", *[""] * 12]
    reasons = [texts.errors.get(row) for row in range(len(values))]
    assert reasons[0] is None
    assert [reasons[row] for row in (1, 7, 8, 9, 10)] == [NULL] * 5
    assert reasons[11] == NOT_UTF8
    for row, name in {
        2: "a number",
        3: "a number",
        4: "a boolean",
        5: "an object",
        6: "an array",
        12: "a bytes",
    }.items():
        assert reasons[row] == f"the text is {name}, not a string"


def test_a_null_in_the_values_of_a_dictionary_is_null() -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int32()), pa.array(["a", None]))
    assert column.null_count == 0
    texts = from_arrow(column, "text")
    assert (texts.values, texts.errors) == (["a", ""], {1: NULL})
