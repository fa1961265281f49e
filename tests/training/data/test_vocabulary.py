"""Texts that the backbone's tokenizer does not know are reported, and refused where almost none is known."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from polyhead_training.config_file import read_config
from polyhead_training.data.dataset import read_data
from polyhead_training.data.preparation import Prepared, prepare
from polyhead_training.errors import BackboneError
from polyhead_training.train import dry_run

from tests.support import tiny_training

UNKNOWN = "你好 世界"


def _prepare(config_file: Path) -> Prepared:
    config = read_config(config_file)
    return prepare(config, read_data(config))


def _dry_run(config_file: Path) -> None:
    config = read_config(config_file)
    dry_run(config, read_data(config), tiny_training.ignore)


@pytest.fixture
def warnings_of(
    config_file: Path, rows: list[dict[str, Any]], write_jsonl: Callable[[str, Sequence[object]], Path]
) -> Callable[[int], list[str]]:
    """Returns a function that replaces so many training texts by unknown ones, and prepares the run."""

    def warnings(count: int) -> list[str]:
        changed = [{**row, "text": f"{UNKNOWN} {number}"} for number, row in enumerate(rows[:count])]
        write_jsonl("train.jsonl", [*changed, *rows[count:]])
        return _prepare(config_file).report.warnings

    return warnings


def test_known_texts_have_no_warning(warnings_of: Callable[[int], list[str]]) -> None:
    assert not [warning for warning in warnings_of(0) if "unknown to" in warning]


def test_some_unknown_texts_are_reported_with_a_place(warnings_of: Callable[[int], list[str]]) -> None:
    found = [warning for warning in warnings_of(12) if "unknown tokens alone" in warning]
    assert re.match(
        rf"train: texts of unknown tokens alone: \d+ of 18, for example .*train\.jsonl:\d+: '{UNKNOWN}", found[0]
    )


def test_unknown_tokens_among_known_ones_are_reported(
    config_file: Path, rows: list[dict[str, Any]], write_jsonl: Callable[[str, Sequence[object]], Path]
) -> None:
    write_jsonl("train.jsonl", [{**row, "text": f"late {UNKNOWN} {row['text'][:20]}"} for row in rows])
    found = [warning for warning in _prepare(config_file).report.warnings if "unknown to" in warning]
    assert [warning.partition(":")[0] for warning in found] == ["train", "validation"]
    assert "% of the tokens are unknown to the backbone; consider another model.backbone" in found[0]


def test_backbone_that_knows_almost_no_text_is_refused(warnings_of: Callable[[int], list[str]]) -> None:
    message = (
        r"reads 18 of 18 training texts as special and unknown tokens alone, for example .*train\.jsonl:\d.*choose"
    )
    with pytest.raises(BackboneError, match=message):
        warnings_of(24)


def test_dry_run_refuses_it_too(
    config_file: Path, rows: list[dict[str, Any]], write_jsonl: Callable[[str, Sequence[object]], Path]
) -> None:
    _dry_run(config_file)
    write_jsonl("train.jsonl", [{**row, "text": f"{UNKNOWN} {number}"} for number, row in enumerate(rows)])
    with pytest.raises(BackboneError, match="special and unknown tokens alone"):
        _dry_run(config_file)
