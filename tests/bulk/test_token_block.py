from __future__ import annotations

import numpy as np
import pytest
from polyhead_bulk.token_block import TokenBlock
from polyhead_server.engines.collate import pad
from polyhead_server.inference.tokenization import Tokenizer

from .conftest import words


@pytest.mark.parametrize("max_windows", [1, 4])
def test_windows_are_those_of_the_tokenizer(tokenizer: Tokenizer, max_windows: int) -> None:
    texts = [*words(700), "", "w1 " * 50, "w2 " * 400, "w3"]
    block = TokenBlock.encode(tokenizer, texts, max_windows)
    expected = tokenizer.encode(texts, max_windows)
    windows = [
        (row, block.ids[start : start + length].tolist())
        for row, start, length in zip(block.rows.tolist(), block.starts, block.lengths, strict=True)
    ]
    assert windows == [(row, window) for row, text in enumerate(expected) for window in text.windows]
    assert block.seen.tolist() == [text.seen for text in expected]
    assert block.truncated.tolist() == [text.cut_at is not None for text in expected]
    assert block.truncated.any()


def test_windows_of_a_prompt_are_those_of_the_tokenizer(tokenizer: Tokenizer) -> None:
    texts = ["w9 " + text for text in ("w1 " * 50, "w2")]
    block = TokenBlock.encode(tokenizer, texts, 4, 3)
    expected = tokenizer.encode(texts, 4, 3)
    assert block.lengths.tolist() == [len(window) for text in expected for window in text.windows]
    assert {block.ids[start + 1] for start in block.starts} == {expected[0].windows[0][1]}


def test_batches_hold_every_window_once_within_the_limit(tokenizer: Tokenizer) -> None:
    block = TokenBlock.encode(tokenizer, words(1000), 1)
    batches = list(block.batches(np.arange(1000), 64))
    assert sorted(np.concatenate(batches).tolist()) == list(range(1000))
    longest = [int(block.lengths[batch].max()) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    assert all(len(batch) * width <= 64 or len(batch) == 1 for batch, width in zip(batches, longest, strict=True))
    padded = sum(len(batch) * width for batch, width in zip(batches, longest, strict=True))
    assert padded < 1.05 * block.lengths.sum()


def test_a_few_texts_of_different_lengths_share_a_batch_rather_than_be_alone(tokenizer: Tokenizer) -> None:
    block = TokenBlock.encode(tokenizer, ["w1", "w1 w2 w3 w4 w5 w6 w7", "w1 w2 w3"], 1)
    assert len(list(block.batches(np.arange(3), 256))) == 1


def test_texts_far_shorter_than_the_longest_are_left_to_the_next_batch(tokenizer: Tokenizer) -> None:
    block = TokenBlock.encode(tokenizer, ["w1 " * 13] * 20 + ["w1"] * 20, 1)
    widths = [set(block.lengths[batch].tolist()) for batch in block.batches(np.arange(40), 10_000)]
    assert widths == [{15}, {3}]


def test_padding_is_that_of_the_server(tokenizer: Tokenizer) -> None:
    texts = ["w1 w2", "", "w3 w4 w5 w6"]
    block = TokenBlock.encode(tokenizer, texts, 1)
    expected = pad([list(text.windows[0]) for text in tokenizer.encode(texts)], 7)
    for values, wanted in zip(block.pad(np.arange(3), 7), expected, strict=True):
        np.testing.assert_array_equal(values, wanted)
        assert values.dtype == np.int64


def test_no_texts_make_no_batches(tokenizer: Tokenizer) -> None:
    block = TokenBlock.encode(tokenizer, [], 1)
    assert list(block.batches(np.arange(0), 64)) == []
