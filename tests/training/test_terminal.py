"""Tables fit the terminal and show cells literally; progress bars appear on terminals only."""

from __future__ import annotations

import sys

import pytest
from polyhead_training.terminal import format_table, progress_bar
from polyhead_training.units import format_duration, format_size

SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"


def test_table_aligns_numeric_columns_to_the_right() -> None:
    lines = format_table(["name", "rows"], [["a", "5"], ["b", "1,000"]], numeric=["rows"]).splitlines()
    assert lines[0] == "name    rows"
    assert lines[2:] == ["a          5", "b      1,000"]


def test_table_folds_long_cells_to_the_terminal_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    table = format_table(["split", "labels"], [["train", "word " * 40]])
    assert max(map(len, table.splitlines())) <= 40
    assert table.count("word") == 40


def test_table_shows_markup_and_emoji_codes_literally() -> None:
    assert "[red]x[/red] :smile:" in format_table(["label"], [["[red]x[/red] :smile:"]])


def test_table_has_no_styles_where_colors_are_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b" not in format_table(["name"], [["a"]])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (125, "2 min 5 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (4 * 3600 + 12 * 60 + 29, "4 h 12 min"),
        (100 * 3600, "100 h 0 min"),
    ],
)
def test_durations_have_at_most_two_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1540, "1.54 kB"),
        (99_960, "100 kB"),
        (999_400, "999 kB"),
        (999_600, "1 MB"),
        (3_501_060, "3.5 MB"),
        (1_250_000_000, "1.25 GB"),
        (5_000_000_000_000_000, "5,000 TB"),
    ],
)
def test_sizes_have_a_decimal_unit(count: int, text: str) -> None:
    assert format_size(count) == text


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("color", ["", "1"])
def test_progress_bar_is_silent_without_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, color: str, enabled: bool
) -> None:
    monkeypatch.setenv("FORCE_COLOR", color)
    with progress_bar("stage [one]", "steps", 3, completed=1, enabled=enabled) as advance:
        advance("loss 0.5")
        advance("")
    assert capsys.readouterr() == ("", "")


def test_progress_bar_shows_description_count_and_detail_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    with progress_bar("stage [one]", "steps", 3, completed=1) as advance:
        advance("loss 0.5")
        shown = capsys.readouterr().err
        assert shown.rfind(SHOW_CURSOR) > shown.rfind(HIDE_CURSOR)
    shown += capsys.readouterr().err
    assert "stage [one]" in shown
    assert "2/3" in shown
    assert "loss 0.5" in shown
