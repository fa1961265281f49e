from __future__ import annotations

from pathlib import Path

import pytest
from polyhead_rows import Problem, RawRow, read_rows

FIELDS = ("text", "label")
DEEP = "[" * 50_000 + "]" * 50_000
DIGITS = "9" * 10_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.jsonl"


def values(path: Path, fields: tuple[str, ...] | None = FIELDS) -> list[dict[str, object]]:
    found = list(read_rows(path, fields))
    assert all(isinstance(row, RawRow) for row in found)
    return [row.values for row in found if isinstance(row, RawRow)]


def test_line_and_paragraph_separators_are_part_of_a_text(path: Path) -> None:
    path.write_bytes('{"text": "one\u2028still one\\nand \x85 more"}\n\n{"text": "two"}'.encode())
    assert values(path) == [{"text": "one\u2028still one\nand \x85 more"}, {"text": "two"}]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_of_every_system_are_read(path: Path, end: str) -> None:
    path.write_bytes(end.join(['{"text": "one"}', "", ' {"text": "two"} ', "\t"]).encode("utf-8-sig"))
    assert [(row.line, isinstance(row, RawRow)) for row in read_rows(path, FIELDS)] == [(1, True), (3, True)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": ', "is not valid JSON: Expecting value"),
        (b'{"text": "one"},', "remove the comma at its end"),
        (b'{"text": "one",}', "is not valid JSON: "),
        (b"{'text': 'one'}", "is not valid JSON: Expecting property name enclosed in double quotes"),
        (b'{"text": "one"} {"text": "two"}', "write one object per line"),
        (b'{"text": "one\ttwo"}', "is not valid JSON: Invalid control character"),
        (b"[1]", 'is not a JSON object: write {"text": ..., ...}'),
        (b"null", "is not a JSON object"),
        (b'"text"', "is not a JSON object"),
        (b'{"text": "\xff"}', "is not UTF-8: save the file as UTF-8"),
        (b'{"text": "\xff}', "is not UTF-8"),
        (b'{"text": "\\ud83d"}', r"field 'text': '\ud83d' is a lone surrogate; write the complete character"),
        (b'{"text": "a", "text": "b"}', "has the key 'text' more than once"),
        (b'{"text": "a", "label": 1, "label": 1}', "has the key 'label' more than once"),
        (b'{"text": ' + DEEP.encode() + b"}", "field 'text': is nested too deeply"),
        (b'{"text": "a", "label": ' + DIGITS.encode() + b"}", "field 'label': has an integer with too many digits"),
        (b'{"note": ' + DEEP.encode() + b', "text": "a"', "is not valid JSON"),
        (b'{"note": ' + DEEP.encode() + b'} {"text": "a"}', "Extra data"),
        (b'{"note": ' + DEEP[:-1].encode() + b', "text": "a"}', "is not valid JSON: Expecting ','"),
        (b'{"note": ' + DEEP[:-1].encode(), "a bracket is not closed"),
        (b'{"note": ' + DIGITS.encode() + b', "text": a}', "is not valid JSON: Expecting value"),
        (DEEP.encode(), "is not valid JSON"),
        (b"\0" * 100, "is not valid JSON"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_invalid_line_is_a_problem_and_the_next_is_read(path: Path, line: bytes, message: str) -> None:
    path.write_bytes(b'{"text": "first"}\n' + line + b'\n{"text": "last"}\n')
    first, problem, last = read_rows(path, FIELDS)
    assert (first.line, last.line) == (1, 3)
    assert isinstance(problem, Problem)
    assert str(problem).startswith(f"{path}:2: ")
    assert message in problem.reason
    assert not problem.is_final
    assert "line 1" not in problem.reason


def test_depth_that_python_cannot_hold_is_a_problem_if_all_fields_are_read(path: Path) -> None:
    path.write_text(f'{{"note": {DEEP}}}\n{{"note": {DIGITS}}}\n')
    assert ["is nested too deeply" in str(row) or "too many digits" in str(row) for row in read_rows(path)] == [
        True
    ] * 2


@pytest.mark.parametrize(
    "note",
    [DEEP, DEEP.replace("[", '{"a":').replace("]", "}").replace(":}", ":1}"), DIGITS, f"[{DIGITS}]", '"]}\\""', "NaN"],
    ids=["deep list", "deep object", "digits", "digits in a list", "brackets in a string", "NaN"],
)
def test_values_of_unnamed_fields_have_no_influence(path: Path, note: str) -> None:
    path.write_text(
        f'{{"note": {note}, "text": "one", "note": {note} , "label": 1}}\n{{"text": "two", "note" : {note}}}\n'
    )
    assert values(path) == [{"text": "one", "label": 1}, {"text": "two"}]


@pytest.mark.parametrize("content", ['[{"text": "a"},\n{"text": "b"}]', "[\n", '{\n"text": "a"\n}', '[{"text": "a"}]'])
def test_json_document_is_one_problem(path: Path, content: str) -> None:
    path.write_text(f"\n{content}\n")
    (problem,) = read_rows(path, FIELDS)
    assert str(problem).startswith(f"{path}:2: is one JSON document, not JSON Lines: write one object per line")


def test_keys_of_nested_objects_may_repeat(path: Path) -> None:
    path.write_text('{"text": "one", "note": {"a": 1, "a": 2}}\n')
    assert values(path, None) == [{"text": "one", "note": {"a": 2}}]


def test_names_are_those_of_all_fields(path: Path) -> None:
    path.write_text('{"b": 1, "text": "one"}\n')
    (row,) = read_rows(path, FIELDS)
    assert isinstance(row, RawRow)
    assert row.names == ("b", "text")
