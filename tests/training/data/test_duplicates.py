from __future__ import annotations

import random

import pytest
from polyhead_training.data.duplicates import exact_pairs, groups, near_pairs, normalize, signatures

WORDS = ["".join(random.Random(number).choices("abcdefghijklmnopqrstuvwxyz", k=6)) for number in range(400)]


def sentence(seed: int, words: int = 30) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def near(first: list[str], second: list[str]) -> list[tuple[int, int]]:
    return near_pairs(first, second, (signatures(first), signatures(second)))


@pytest.mark.parametrize("text", ["Caf\u00e9, au lait!", "cafe\u0301 AU  lait", "\tCAFE au-lait..."])
def test_normalize_ignores_case_accents_and_punctuation(text: str) -> None:
    assert normalize(text) == "cafe au lait"


def test_normalize_keeps_words_and_digits() -> None:
    assert len({normalize(text) for text in ("room 12", "room 13", "rooms 12", "12 room")}) == 4


def test_groups_contain_all_positions_of_repeated_texts_except_empty_ones() -> None:
    assert groups(["a", "b", "a", "", "", "c", "b", "a"]) == [[0, 2, 7], [1, 6]]


def test_exact_pair_refers_to_the_first_occurrence() -> None:
    assert exact_pairs(["x", "a", "a", ""], ["b", "a", "", "a"]) == [(1, 1), (1, 3)]


def test_text_with_one_changed_word_is_a_near_duplicate() -> None:
    text = sentence(1)
    assert near([sentence(2), text], [text.replace(text.split()[7], "zebra")]) == [(1, 0)]


def test_text_with_half_of_its_words_changed_is_not_a_near_duplicate() -> None:
    text = sentence(1)
    assert near([text], [" ".join([*text.split()[:15], *sentence(2).split()[:15]])]) == []


def test_texts_with_a_tenth_of_their_words_changed_are_not_near_duplicates() -> None:
    first = [sentence(seed) for seed in range(20)]
    # Three words of thirty: about 0.7 of the 5-grams are left.
    changed = [text.split() for text in first]
    second = [
        " ".join([*words[:5], "zebra", *words[6:15], "okapi", *words[16:25], "tapir", *words[26:]]) for words in changed
    ]
    assert near(first, second) == []


def test_equal_texts_are_not_near_duplicates() -> None:
    assert near([sentence(1)], [sentence(1)]) == []


def test_near_pairs_are_found_among_many_texts() -> None:
    first = [sentence(seed) for seed in range(500)]
    second = [f"{text} zebra" for text in first]
    # 98 % of the pairs at a similarity of exactly 0.8, more of these, which are closer to each other.
    assert len(near(first, second)) >= 495


@pytest.mark.parametrize(
    ("first", "second"), [([], [sentence(1)]), ([sentence(1)], []), (["ab"], ["abc"]), ([""], [""])]
)
def test_empty_and_short_texts_have_no_near_duplicates(first: list[str], second: list[str]) -> None:
    assert near(first, second) == []


def test_signature_does_not_depend_on_the_other_texts() -> None:
    texts = [sentence(seed) for seed in range(20)]
    assert (signatures(texts)[7] == signatures([texts[7]])[0]).all()


def test_texts_of_one_template_are_compared_with_a_bounded_number_of_candidates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[str] = []

    def count(first: str, second: str) -> bool:
        compared.append(first)
        return False

    monkeypatch.setattr("polyhead_training.data.duplicates._near", count)
    assert near([sentence(1)] * 1000, [f"{sentence(1)} zebra"]) == []
    assert len(compared) == 64
