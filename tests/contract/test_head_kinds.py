"""Training and the bundle know the same kinds of head, widths and values, although neither imports the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import polyhead_bundle
import polyhead_training.model_types
import pytest
from polyhead_bundle import Head
from polyhead_training.data.targets import label_values
from polyhead_training.model_types import SELECTION, output_width

KINDS = get_args(polyhead_bundle.HeadKind)


def test_kinds_are_the_same() -> None:
    assert get_args(polyhead_training.model_types.HeadKind) == KINDS
    assert set(SELECTION) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_widths_are_the_same(kind: polyhead_bundle.HeadKind) -> None:
    labels = {"sigmoid": ("a", "b"), "regression": ()}.get(kind, ("a", "b", "c"))
    assert Head("any", kind, "logits", labels).width == output_width(kind, len(labels))


@pytest.mark.parametrize(
    "labels", [("1", "2"), ("-1.5", "1e3"), ("a", "b"), ("1", "b"), ("1", "inf"), ("1", "nan"), ("1", "true")]
)
def test_values_of_ordered_labels_are_the_same(labels: Sequence[str]) -> None:
    assert list(Head("any", "ordinal", "logits", tuple(labels)).label_values) == label_values(labels)
