"""Suggestions for misspelled names."""

from __future__ import annotations

import pytest
from polyhead_training.suggestions import closest


@pytest.mark.parametrize(
    ("name", "expected"),
    [("tset", "test"), ("txet", "text"), ("Train ", "train"), ("trian", "train"), ("tests", "test"), ("qqq", None)],
)
def test_most_similar_name_is_suggested(name: str, expected: str | None) -> None:
    assert closest(name, ["text", "train", "validation", "test"]) == expected
