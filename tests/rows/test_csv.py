from __future__ import annotations

import csv
from pathlib import Path

import pytest
from polyhead_rows import Problem, RawRow, limits, read_rows

FIELDS = ("text", "label")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.csv"


def values(path: Path, fields: tuple[str, ...] | None = FIELDS) -> list[dict[str, object]]:
    found = list(read_rows(path, fields))
    assert all(isinstance(row, RawRow) for row in found)
    return [row.values for row in found if isinstance(row, RawRow)]


def test_na_is_text_and_empty_cells_are_missing(path: Path) -> None:
    path.write_bytes(b'\xef\xbb\xbftext,label\nNA,nan\n"one, two\nthree",\n')
    assert values(path) == [{"text": "NA", "label": "nan"}, {"text": "one, two\nthree", "label": None}]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_of_every_system_are_read(path: Path, end: str) -> None:
    path.write_bytes(end.join(["text,label", "one,x", "", '"two', 'lines",y', "three,z"]).encode())
    rows = [row for row in read_rows(path, FIELDS) if isinstance(row, RawRow)]
    assert [row.values["text"] for row in rows] == ["one", f"two{end}lines", "three"]
    assert [row.line for row in rows] == [2, 4, 6]


def test_row_with_a_wrong_cell_count_is_reported_with_its_line(path: Path) -> None:
    path.write_text('text,label\n"one\ntwo",x\nthree, four,x\nfive\n')
    _, *problems = read_rows(path, FIELDS)
    assert [str(problem).removeprefix(str(path)) for problem in problems] == [
        ":4: has 3 cells but the header has 2: quote texts that contain a comma",
        ":5: has 1 cells but the header has 2: quote texts that contain a comma",
    ]


def test_cell_longer_than_the_limit_of_the_csv_module_is_read(path: Path) -> None:
    text = "long text, " * 20_000
    path.write_text(f'text,label\n"{text}",x\n')
    limit = csv.field_size_limit()
    assert len(text) > 131_072
    assert values(path) == [{"text": text, "label": "x"}]
    assert csv.field_size_limit() >= limit


@pytest.mark.parametrize(
    ("content", "line", "part"),
    [
        ('text,label\none,x\n"two,y\nthree,z\n', 3, "the quoted cell that starts here is never closed"),
        ('text,label\n"one\nmore",x\ntwo,"y\nthree,z\n', 4, "never closed"),
        ('text,label\n"one ""quoted"" word",x\ntwo,"y""\nthree,z\n', 3, "never closed"),
        ('text,label\n"two\nlines","three\n', 3, "never closed"),
        ('text,label\n"two,y\n"three",z\n', 2, "is followed by text after its closing quote on line 3"),
        ('text,label\none,x\n"a" word,y\n', 3, "is followed by text after its closing quote"),
        ('text,"label\none,x\n', 1, "never closed"),
    ],
)
def test_quote_that_is_not_closed_is_named_where_it_opens(path: Path, content: str, line: int, part: str) -> None:
    path.write_text(content)
    *_, problem = read_rows(path, FIELDS)
    assert isinstance(problem, Problem)
    assert (problem.line, problem.is_final) == (line, True)
    assert part in problem.reason
    assert 'write each double quote inside a quoted cell twice ("")' in problem.reason


def test_quote_that_is_never_closed_in_a_large_file_is_named_where_it_opens(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polyhead_rows.csv.MAX_ROW_CHARACTERS", 1000)
    path.write_text('text,label\none,x\n"two,y\n' + "three,z\n" * 1000)
    first, problem = read_rows(path, FIELDS)
    assert isinstance(first, RawRow)
    assert isinstance(problem, Problem)
    assert (problem.line, problem.is_final) == (3, True)
    assert "makes its row exceed 1,000 characters: close the quote" in problem.reason


def test_quotes_inside_unquoted_cells_are_ordinary_characters(path: Path) -> None:
    path.write_text('text,label\n5" screen,x\n')
    assert values(path) == [{"text": '5" screen', "label": "x"}]


@pytest.mark.parametrize("separator", [";", "\t", "|"])
@pytest.mark.parametrize("header", ["text{}label", '"text"{}"label"', "id,no{}text{}label"])
def test_other_separators_are_named_once(path: Path, separator: str, header: str) -> None:
    path.write_text(header.replace("{}", separator) + f"\none, really{separator}x\n" * 3)
    (problem,) = read_rows(path, FIELDS)
    assert isinstance(problem, Problem)
    assert (problem.line, problem.is_final) == (1, True)
    assert problem.reason.startswith(f"cells are separated by {'tabs' if separator == chr(9) else repr(separator)}")


def test_name_with_a_semicolon_is_a_name_if_it_is_requested(path: Path) -> None:
    path.write_text("text;label\none\n")
    assert values(path, ("text;label",)) == [{"text;label": "one"}]


@pytest.mark.parametrize("line", ["sep=", 'sep="', '"sep="'])
def test_separator_line_without_a_separator_is_an_error(path: Path, line: str) -> None:
    path.write_bytes(f"{line}\r\ntext,label\r\none,x\r\n".encode())
    (problem,) = read_rows(path, FIELDS)
    assert str(problem).startswith(f"{path}:1: declares no separator")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("line", ["sep={}", '"sep={}"', "SEP={}"])
def test_separator_line_of_excel_is_read(path: Path, separator: str, line: str) -> None:
    content = f"{line.format(separator)}\r\ntext{separator}label\r\none{separator}x\r\ntwo\r\n"
    path.write_bytes(content.encode("utf-8-sig"))
    row, problem = read_rows(path, FIELDS)
    assert isinstance(row, RawRow)
    assert (row.line, row.values) == (3, {"text": "one", "label": "x"})
    assert str(problem).startswith(f"{path}:4: has 1 cells")


def test_bytes_that_are_not_utf8_are_named_with_their_line(path: Path) -> None:
    path.write_bytes("text,label\none,x\ncafé,y\nthree,z\n".encode("cp1252"))
    first, problem, last = read_rows(path, FIELDS)
    assert (first.line, last.line) == (2, 4)
    assert str(problem) == (
        f"{path}:3: is not UTF-8: save the file as UTF-8 (spreadsheet programs call this format 'CSV UTF-8')"
    )


@pytest.mark.parametrize("header", ["text,label,label", "text,label,text", "text,text"])
def test_named_column_that_occurs_twice_is_a_problem(path: Path, header: str) -> None:
    path.write_text(f"{header}\n1,2,3\n")
    (problem,) = read_rows(path, FIELDS)
    assert str(problem).startswith(f"{path}:1: has more than one column ")


def test_unnamed_columns_have_no_influence(path: Path) -> None:
    path.write_bytes(b"note,text,note,,label,\n\xff,one,2,,x,\n")
    (row,) = read_rows(path, FIELDS)
    assert isinstance(row, RawRow)
    assert (row.values, row.names) == (
        {"text": "one", "label": "x"},
        ("note", "text", "note", "", "label", ""),
    )


def test_row_that_is_too_long_is_skipped(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyhead_rows.csv.MAX_ROW_CHARACTERS", 1000)
    path.write_text("text,label\none,x\n" + "a" * 5000 + ",x\ntwo,x\n")
    first, problem, last = read_rows(path, FIELDS)
    assert (first.line, problem.line, last.line) == (2, 3, 4)
    assert isinstance(problem, Problem)
    assert f"more than the limit of {limits.MAX_ROW_CHARACTERS:,} characters of a row" in problem.reason


def test_blank_lines_above_the_header_are_skipped(path: Path) -> None:
    path.write_text("\n\ntext,label\none,x\n")
    (row,) = read_rows(path, FIELDS)
    assert (row.line, isinstance(row, RawRow)) == (4, True)


def test_null_characters_are_kept(path: Path) -> None:
    path.write_bytes(b"text,label\none\0two,x\n")
    assert values(path) == [{"text": "one\0two", "label": "x"}]
