from __future__ import annotations

import gzip
import itertools
from collections import Counter
from pathlib import Path

from bench.harness.texts import (
    DEMO_TEXTS,
    MARK_TOKENS,
    distinct_texts,
    first_turn,
    read,
    read_texts,
    with_long_texts,
    write_texts,
    zipf_texts,
)
from tests.support import tiny_tokenizers


def test_written_texts_are_read_back(tmp_path: Path) -> None:
    texts = ["one\ntwo", 'say "three"', "vier\u2028fünf"]
    assert read_texts(write_texts(tmp_path / "texts.jsonl", texts)) == texts


def test_plain_and_gzipped_lines_are_texts(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("one\ntwo\n")
    (tmp_path / "lines.txt.gz").write_bytes(gzip.compress(b"one\ntwo\n"))
    assert read(tmp_path / "lines.txt") == read(tmp_path / "lines.txt.gz") == [{"text": "one"}, {"text": "two"}]


def test_demo_texts_have_labels() -> None:
    assert {"text", "label"} <= set(read(DEMO_TEXTS)[0])


def test_every_tenth_text_is_concatenated_with_the_next_three() -> None:
    texts = [str(number) for number in range(12)]
    changed = with_long_texts(texts)
    assert changed[0] == "0 1 2 3"
    assert changed[10] == "10 11 0 1"
    assert changed[1:10] == texts[1:10]


def test_sent_texts_differ_from_each_other_and_from_those_of_other_seeds() -> None:
    sent = [list(itertools.islice(distinct_texts(["a", "b", "b"], seed), 5000)) for seed in (0, 1)]
    assert len({text for texts in sent for text in texts}) == 10_000
    assert sent[0][:4] == ["a a a a a", "a a a b b", "a a a c b", "a a a d a"]
    assert first_turn(["a", "b", "b"]) == sent[0][:3]


def test_sent_texts_have_a_fixed_number_of_tokens_more() -> None:
    texts = read_texts(DEMO_TEXTS)[:50]
    tokenizer = tiny_tokenizers.wordpiece()
    for text, sent in zip(texts, first_turn(texts), strict=True):
        assert len(tokenizer.encode(sent).ids) == len(tokenizer.encode(text).ids) + MARK_TOKENS


def test_popularity_of_texts_follows_zipf() -> None:
    drawn = list(itertools.islice(zipf_texts(["a", "b"], 1.0, 5, seed=0), 100_000))
    counts = Counter(drawn)
    assert set(counts) == {"a", "b", "a 1", "b 1", "a 2"}
    harmonic = sum(1 / rank for rank in range(1, 6))
    for rank, text in enumerate(("a", "b", "a 1", "b 1", "a 2"), 1):
        assert abs(counts[text] / 100_000 - 1 / rank / harmonic) < 0.01
    assert drawn[:100] == list(itertools.islice(zipf_texts(["a", "b"], 1.0, 5, seed=0), 100))
    assert drawn[:100] != list(itertools.islice(zipf_texts(["a", "b"], 1.0, 5, seed=1), 100))
