from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from polyhead_training import tokenization
from polyhead_training.backbone import open_backbone
from polyhead_training.tokenization import chunks, encode, load_tokenizer, pad
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

TEXTS = ["", "soup", "The parcel came two days late and the box was wet. " * 3, "[CLS] [SEP] </s>", "a " * 200]


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("max_tokens", [3, 8, 17, 39])
def test_encode_truncates_like_transformers(checkpoints: dict[str, Path], family: str, max_tokens: int) -> None:
    path = checkpoints[family] / "tokenizer.json"
    theirs = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_file(str(path)))
    texts = [text for text in TEXTS if "[" not in text]
    expected = theirs(texts, truncation=True, max_length=max_tokens, padding=False)["input_ids"]
    assert list(encode(load_tokenizer(path), texts, max_tokens)) == expected
    assert max(map(len, expected)) == max_tokens


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_encode_reads_special_tokens_in_a_text_as_text(checkpoints: dict[str, Path], family: str) -> None:
    tokenizer = open_backbone(str(checkpoints[family]), None, Path()).tokenizer
    (first, last) = (ids := tokenizer.encode("").ids)[0], ids[-1]
    (found,) = encode(tokenizer, ["[CLS] <s> [SEP] </s>"], 64)
    assert (found[0], found[-1]) == (first, last)
    assert first not in found[1:-1]
    assert last not in found[1:-1]


def test_encode_keeps_the_order_of_many_texts(checkpoints: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(checkpoints["bert"] / "tokenizer.json")
    texts = [TEXTS[number % 3] for number in range(2500)]
    assert list(encode(tokenizer, texts, 32)) == [next(encode(tokenizer, [text], 32)) for text in texts]


def test_chunks_are_bounded_in_texts_and_characters() -> None:
    assert list(chunks(["aa", "b", "cccc", "d", "e", "f"], 2, 4)) == [["aa", "b"], ["cccc"], ["d", "e"], ["f"]]
    assert list(chunks(["a", "bbbbbb", "c"], 9, 4)) == [["a"], ["bbbbbb"], ["c"]]
    assert list(chunks([], 9, 4)) == []


def test_pad_pads_on_the_right() -> None:
    input_ids, attention_mask = pad([[5, 6, 7], [5]], pad_token_id=1)
    assert input_ids.tolist() == [[5, 6, 7], [5, 1, 1]]
    assert attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert {input_ids.dtype, attention_mask.dtype} == {np.dtype(np.int64)}


def test_pad_accepts_an_empty_list() -> None:
    assert pad([], pad_token_id=0)[0].shape == (0, 0)


@pytest.mark.parametrize(
    "damage",
    [
        {"model": {}},
        # The library panics on this input instead of raising an Exception.
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    ],
    ids=["no model", "panic"],
)
def test_invalid_tokenizer_file_is_a_value_error(
    checkpoints: dict[str, Path], tmp_path: Path, damage: dict[str, object]
) -> None:
    content = json.loads((checkpoints["bert"] / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(content | damage))
    with pytest.raises(ValueError, match=r"."):
        load_tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interruption_of_reading_a_tokenizer_is_not_swallowed(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    class Interrupted:
        @staticmethod
        def from_file(path: str) -> Tokenizer:
            raise error

    monkeypatch.setattr(tokenization, "Tokenizer", Interrupted)
    with pytest.raises(error):
        load_tokenizer(Path("tokenizer.json"))
