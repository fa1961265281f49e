from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from polyhead_training.sweep.toml_text import toml_text

from tests.support.demo import ROOT

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = st.one_of(TEXT, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=8,
)


@given(st.dictionaries(TEXT, VALUES, max_size=4))
def test_written_values_are_read_again(values: dict[str, object]) -> None:
    assert tomllib.loads(toml_text(values)) == values


@pytest.mark.parametrize("path", sorted((ROOT / "training").rglob("*.toml")), ids=lambda path: path.stem)
def test_configurations_are_written_as_tables(path: Path) -> None:
    values = tomllib.loads(path.read_text())
    text = toml_text(values)
    assert tomllib.loads(text) == values
    assert text.startswith("name = ")
    assert "\n[[training.stages]]\n" in text
