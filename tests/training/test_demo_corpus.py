"""The demo corpus matches its README: balanced, clean, and without duplicates across splits."""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

DEMO = Path(__file__).resolve().parents[2] / "training" / "demo"
SPLITS = ("train", "validation", "test")
TOPICS = ("account", "app", "billing", "delivery", "product", "support")
CELLS = tuple(itertools.product(TOPICS, (0, 1)))
MAX_JACCARD = 0.5
OPENING_CHARS = 40

PERSONAL_DATA = {
    "e-mail address": re.compile(r"\S+@\S+\.\w+"),
    "URL": re.compile(r"https?://|\bwww\.|\b[\w-]+\.(?:com|net|org|io|co\.uk|de)\b", re.IGNORECASE),
    # Eight digits or more, with the separators people put between them; invented order numbers are shorter.
    "phone number": re.compile(r"\+?\d(?:[ ().-]{0,2}\d){7,}"),
}

Row = dict[str, Any]


def read_split(split: str) -> list[Row]:
    return [json.loads(line) for line in (DEMO / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


@functools.cache
def normalize(text: str) -> str:
    """Lower case, words and digits only, one space between them."""
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


@functools.cache
def word_set(text: str) -> frozenset[str]:
    return frozenset(normalize(text).split())


def near_duplicates(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those with the same opening, or whose word sets have a Jaccard similarity of MAX_JACCARD or more."""
    found = []
    for text, other in pairs:
        words, other_words = word_set(text), word_set(other)
        shared = len(words & other_words)
        union = len(words) + len(other_words) - shared
        if shared >= MAX_JACCARD * union or normalize(text)[:OPENING_CHARS] == normalize(other)[:OPENING_CHARS]:
            found.append((text, other))
    return found


def personal_data(text: str) -> list[str]:
    """Names of the kinds of personal data that the text seems to hold."""
    return [kind for kind, pattern in PERSONAL_DATA.items() if pattern.search(text)]


@pytest.fixture(scope="module")
def corpus() -> dict[str, list[Row]]:
    return {split: read_split(split) for split in SPLITS}


def test_corpus_is_large_enough_to_train_on(corpus: dict[str, list[Row]]) -> None:
    assert sum(len(rows) for rows in corpus.values()) >= 1200


def test_splits_are_about_seventy_fifteen_fifteen_percent(corpus: dict[str, list[Row]]) -> None:
    total = sum(len(rows) for rows in corpus.values())
    shares = [len(corpus[split]) / total for split in SPLITS]
    assert shares == pytest.approx([0.70, 0.15, 0.15], abs=0.01)


@pytest.mark.parametrize("split", SPLITS)
def test_split_is_balanced_over_topic_and_sentiment(corpus: dict[str, list[Row]], split: str) -> None:
    cells = Counter((row["label"], row["sentiment"]) for row in corpus[split])
    assert set(cells) == set(CELLS)
    assert max(cells.values()) - min(cells.values()) <= 1


@pytest.mark.parametrize("split", SPLITS)
def test_rows_have_exactly_the_three_fields(corpus: dict[str, list[Row]], split: str) -> None:
    for row in corpus[split]:
        assert list(row) == ["text", "label", "sentiment"]
        assert isinstance(row["text"], str)
        assert row["text"] == row["text"].strip()
        assert len(row["text"].split()) >= 2
        assert "\n" not in row["text"]
        assert row["label"] in TOPICS
        assert type(row["sentiment"]) is int  # True == 1, and JSON has both
        assert row["sentiment"] in (0, 1)


def test_no_text_occurs_twice(corpus: dict[str, list[Row]]) -> None:
    texts = Counter(normalize(row["text"]) for rows in corpus.values() for row in rows)
    assert [text for text, count in texts.items() if count > 1] == []


@pytest.mark.parametrize(("left", "right"), list(itertools.combinations(SPLITS, 2)))
def test_no_near_duplicates_across_splits(corpus: dict[str, list[Row]], left: str, right: str) -> None:
    left_texts = [row["text"] for row in corpus[left]]
    right_texts = [row["text"] for row in corpus[right]]
    assert near_duplicates(itertools.product(left_texts, right_texts)) == []


@pytest.mark.parametrize("split", SPLITS)
def test_no_near_duplicates_within_a_split(corpus: dict[str, list[Row]], split: str) -> None:
    assert near_duplicates(itertools.combinations([row["text"] for row in corpus[split]], 2)) == []


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("charged twice for one coffee machine", "Charged twice, for one coffee grinder!"),
        (
            "The parcel was left in the rain again and nobody rang",
            "the parcel was left in the rain, again and once more all our winter seeds went straight to the bin",
        ),
    ],
    ids=["same words", "same opening"],
)
def test_near_duplicates_finds_a_planted_pair(text: str, other: str) -> None:
    pairs = itertools.product([text, "locked out again"], ["crashes all day", other])
    assert near_duplicates(pairs) == [(text, other)]


def test_texts_contain_no_personal_data(corpus: dict[str, list[Row]]) -> None:
    found = [(row["text"], kinds) for rows in corpus.values() for row in rows if (kinds := personal_data(row["text"]))]
    assert found == []


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to jo.bloggs@example.org please", "e-mail address"),
        ("see https://example.org/help", "URL"),
        ("see www.example.org", "URL"),
        ("call me on +44 (20) 7946 0958 today", "phone number"),
        ("call 020-7946-0958", "phone number"),
    ],
)
def test_personal_data_finds_a_planted_one(text: str, kind: str) -> None:
    assert kind in personal_data(text)
