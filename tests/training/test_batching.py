from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from polyhead_training.batching import EncodedRows, encode_rows
from polyhead_training.config import HeadConfig
from polyhead_training.data import Row
from polyhead_training.loss import UNLABELLED
from polyhead_training.tokenization import load_tokenizer


@pytest.fixture
def encoded() -> EncodedRows:
    lengths = random.Random(3).choices(range(1, 60), k=1000)
    ids = [[number] * length for number, length in enumerate(lengths)]
    return EncodedRows(ids, torch.arange(1000).unsqueeze(-1), pad_token_id=0)


def padding(encoded: EncodedRows, batches: list[list[int]]) -> float:
    """Share of the tokens of all batches that is padding."""
    used = sum(len(encoded.ids[row]) for batch in batches for row in batch)
    return 1 - used / sum(len(batch) * max(len(encoded.ids[row]) for row in batch) for batch in batches)


def test_epoch_holds_every_row_once(encoded: EncodedRows) -> None:
    batches = encoded.shuffled(16, random.Random(0))
    assert sorted(row for batch in batches for row in batch) == list(range(1000))
    assert max(map(len, batches)) == 16


def test_epoch_puts_like_lengths_together_in_random_order(encoded: EncodedRows) -> None:
    batches = encoded.shuffled(16, random.Random(0))
    one_by_one = [list(range(start, min(start + 16, 1000))) for start in range(0, 1000, 16)]
    assert padding(encoded, batches) < 0.06
    assert padding(encoded, one_by_one) > 0.3
    longest = [max(len(encoded.ids[row]) for row in batch) for batch in batches]
    assert longest not in (sorted(longest), sorted(longest, reverse=True))


def test_epochs_differ_and_repeat_with_the_seed(encoded: EncodedRows) -> None:
    chooser = random.Random(5)
    first, second = encoded.shuffled(16, chooser), encoded.shuffled(16, chooser)
    assert first != second
    assert encoded.shuffled(16, random.Random(5)) == first


def test_by_length_holds_every_row_once_longest_first(encoded: EncodedRows) -> None:
    order = [row for batch in encoded.by_length(7) for row in batch]
    assert sorted(order) == list(range(1000))
    assert len(encoded.ids[order[0]]) == max(map(len, encoded.ids))


def test_batch_keeps_text_and_label_of_a_row_together(encoded: EncodedRows) -> None:
    batch = encoded.batch([17, 3], torch.device("cpu"))
    assert batch.input_ids[:, 0].tolist() == [17, 3]
    assert batch.labels[:, 0].tolist() == [17, 3]
    assert batch.attention_mask.sum(dim=1).tolist() == [len(encoded.ids[17]), len(encoded.ids[3])]


def test_encode_rows_turns_labels_into_indices(checkpoints: dict[str, Path]) -> None:
    heads = (
        HeadConfig(name="topic", kind="softmax", labels=("app", "billing")),
        HeadConfig(name="sentiment", kind="sigmoid", labels=("negative", "positive")),
    )
    rows = [Row("the parcel", ("billing", None)), Row("soup " * 90, (None, "negative"))]
    tokenizer = load_tokenizer(checkpoints["bert"] / "tokenizer.json")
    encoded = encode_rows(rows, heads, tokenizer, max_tokens=16, pad_token_id=0)
    assert encoded.labels.tolist() == [[1, UNLABELLED], [UNLABELLED, 0]]
    assert [len(ids) for ids in encoded.ids] == [4, 16]
