"""Tables fit the terminal and show cells literally; progress bars appear on terminals only."""

from __future__ import annotations

import pytest
from polyhead_training.terminal import format_table, progress_bar


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


@pytest.mark.parametrize("enabled", [True, False])
def test_progress_bar_is_silent_without_a_terminal(capsys: pytest.CaptureFixture[str], enabled: bool) -> None:
    with progress_bar("stage [one]", "steps", 3, completed=1, enabled=enabled) as advance:
        advance("loss 0.5")
        advance("")
    assert capsys.readouterr() == ("", "")


def test_progress_bar_shows_description_count_and_detail_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with progress_bar("stage [one]", "steps", 3, completed=1) as advance:
        advance("loss 0.5")
    shown = capsys.readouterr().err
    assert "stage [one]" in shown
    assert "2/3" in shown
    assert "loss 0.5" in shown
