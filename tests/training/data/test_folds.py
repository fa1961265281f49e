from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from polyhead_training.data.dataset import Row
from polyhead_training.data.duplicates import duplicate_sets
from polyhead_training.data.folds import assign_folds, fold_warnings, require_sets
from polyhead_training.model_config import HeadConfig

HEAD = HeadConfig(name="topic", kind="softmax", labels=("a", "b", "c"))
SENTENCE = "The parcel with the green ribbon came two days before the party"


def rows(labels: str) -> list[Row]:
    return [Row(f"text {n}", (label,), Path("x.jsonl"), n + 1, 0) for n, label in enumerate(labels)]


def test_every_fold_has_the_same_share_of_each_label() -> None:
    found = rows("aaaaaaaaaabbbbbc")
    folds = assign_folds(range(16), found, 5, seed=0)
    counts = Counter((fold, row.labels[0]) for fold, row in zip(folds, found, strict=True))
    assert [counts[fold, "a"] for fold in range(5)] == [2] * 5
    assert [counts[fold, "b"] for fold in range(5)] == [1] * 5
    assert max(Counter(folds).values()) - min(Counter(folds).values()) <= 1


def test_rows_of_a_set_share_a_fold() -> None:
    sets = [0, 1, 2, 3, 0, 1, 6, 7]
    folds = assign_folds(sets, rows("abababab"), 3, seed=1)
    assert folds[0] == folds[4]
    assert folds[1] == folds[5]


def test_folds_depend_on_the_seed_alone() -> None:
    found = rows("ab" * 20)
    assert assign_folds(range(40), found, 4, seed=3) == assign_folds(range(40), found, 4, seed=3)
    assert assign_folds(range(40), found, 4, seed=3) != assign_folds(range(40), found, 4, seed=4)


def test_exact_and_near_duplicates_form_a_set() -> None:
    texts = ["Other words", SENTENCE, SENTENCE.upper() + "!", "Nothing alike at all", SENTENCE + "s", "other  words"]
    assert duplicate_sets(texts) == [0, 1, 1, 3, 1, 0]


def test_short_texts_and_texts_without_letters_are_no_duplicates_of_each_other() -> None:
    assert duplicate_sets(["a", "b", "!", "?", "a"]) == [0, 1, 2, 3, 0]


def test_warnings_name_labels_that_folds_cannot_measure() -> None:
    found = rows("aaaaabbc")
    warnings = list(fold_warnings(range(8), found, [HEAD], 4))
    assert len(warnings) == 2
    assert "label 'b' has 2 different texts, fewer than 4 folds; 2 of the folds do not measure it" in warnings[0]
    assert "label 'c' has a single text" in warnings[1]


def test_copies_of_one_text_count_once() -> None:
    assert any("'a' has a single text" in warning for warning in fold_warnings([0, 0, 2, 3], rows("aabb"), [HEAD], 2))


def test_warning_of_a_head_with_a_single_label() -> None:
    (warning,) = fold_warnings(range(4), rows("aaaa"), [HEAD], 2)
    assert "every labelled row has the label 'a'" in warning


@pytest.mark.parametrize(("sets", "message"), [([0, 1, 1], "choose at most 2"), ([0, 0, 0], "has 1; add rows")])
def test_more_folds_than_texts_are_rejected(sets: list[int], message: str) -> None:
    assert message in (require_sets(sets, 3) or "")
    assert require_sets([0, 1, 2], 3) is None
