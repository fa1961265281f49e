"""Heads of every kind, with rows for them."""

from __future__ import annotations

from typing import Any

from polyhead_training.model_config import HeadConfig

from .tiny_training import ROWS

TAGS = HeadConfig(name="tags", kind="multilabel", labels=("late", "broken", "rude"), threshold="best")
STARS = HeadConfig(name="stars", kind="ordinal", labels=("1", "2", "3", "4"))
PRICE = HeadConfig(name="price", kind="regression")
HEADS = (
    HeadConfig(name="topic", kind="softmax", labels=("app", "billing", "support")),
    HeadConfig(name="sentiment", kind="sigmoid", labels=("negative", "positive")),
    TAGS,
    STARS,
    PRICE,
)
# Overrides of the small training configuration: a head of every kind.
OVERRIDE = (
    "model.heads=[{name='topic', kind='softmax', field='label'}, "
    "{name='sentiment', kind='sigmoid', labels=['negative', 'positive']}, "
    "{name='tags', kind='multilabel', threshold='best', class_weights='balanced'}, "
    "{name='stars', kind='ordinal'}, {name='price', kind='regression'}]"
)


def rows() -> list[dict[str, Any]]:
    """The small configuration's rows with answers of every kind."""
    tags: tuple[list[str], ...] = (["late"], ["broken", "rude"], [], ["late", "broken", "rude"])
    return [
        {**row, "tags": tags[number % 4], "stars": 1 + number % 4, "price": 1000 + 7.5 * (number % 6)}
        for number, row in enumerate(ROWS)
    ]
