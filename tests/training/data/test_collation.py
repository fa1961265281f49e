from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from polyhead_training.data.collation import EncodedRows, encode_rows
from polyhead_training.data.dataset import Row
from polyhead_training.data.labels import UNLABELLED
from polyhead_training.data.target_tensors import Targets
from polyhead_training.model_config import HeadConfig
from polyhead_training.tokenization import load_tokenizer


@pytest.fixture
def encoded() -> EncodedRows:
    lengths = random.Random(3).choices(range(1, 60), k=1000)
    ids = [[number] * length for number, length in enumerate(lengths)]
    return EncodedRows(ids, Targets((torch.arange(1000),), 1000), pad_token_id=0, sources=[0] * 1000, tokens=[])


def test_by_length_contains_every_row_once_longest_first(encoded: EncodedRows) -> None:
    order = [row for batch in encoded.by_length(7) for row in batch]
    assert sorted(order) == list(range(1000))
    assert len(encoded.ids[order[0]]) == max(map(len, encoded.ids))


def test_batch_keeps_text_and_label_of_a_row_together(encoded: EncodedRows) -> None:
    batch = encoded.batch([17, 3], torch.device("cpu"))
    assert batch.input_ids[:, 0].tolist() == [17, 3]
    assert batch.labels.heads[0].tolist() == [17, 3]
    assert batch.attention_mask.sum(dim=1).tolist() == [len(encoded.ids[17]), len(encoded.ids[3])]


def test_encode_rows_converts_labels_into_indices(checkpoints: dict[str, Path]) -> None:
    heads = (
        HeadConfig(name="topic", kind="softmax", labels=("app", "billing")),
        HeadConfig(name="sentiment", kind="sigmoid", labels=("negative", "positive")),
    )
    texts = {"the parcel": ("billing", None), "soup " * 90: (None, "negative")}
    rows = [Row(text, labels, Path("a.jsonl"), 1, source) for source, (text, labels) in enumerate(texts.items())]
    tokenizer = load_tokenizer(checkpoints["bert"] / "tokenizer.json")
    encoded = encode_rows(rows, heads, tokenizer, max_tokens=16, pad_token_id=0)
    assert [found.tolist() for found in encoded.labels.heads] == [[1, UNLABELLED], [UNLABELLED, 0]]
    assert [len(ids) for ids in encoded.ids] == [4, 16]
    assert encoded.tokens == [4, 92]
    assert encoded.sources == [0, 1]
    prefixed = encode_rows(rows, heads, tokenizer, max_tokens=16, pad_token_id=0, prefix="the box ")
    assert prefixed.tokens == [6, 94]
    assert [ids[1:3] for ids in prefixed.ids] == [tokenizer.encode("the box").ids[1:3]] * 2


def test_digest_depends_on_ids_labels_and_order() -> None:
    def digest(ids: list[list[int]], labels: list[int]) -> str:
        targets = Targets((torch.tensor(labels),), len(ids))
        return EncodedRows(ids, targets, pad_token_id=0, sources=[0] * len(ids), tokens=[]).digest()

    found = {
        digest([[1, 2], [3]], [0, 1]),
        digest([[1], [2, 3]], [0, 1]),
        digest([[3], [1, 2]], [0, 1]),
        digest([[1, 2], [3]], [1, 1]),
    }
    assert len(found) == 4
    assert digest([[1, 2], [3]], [0, 1]) in found
