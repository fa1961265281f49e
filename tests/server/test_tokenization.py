from __future__ import annotations

from pathlib import Path

import pytest
from polyhead_server.items import Tokens
from polyhead_server.tokenization import Tokenizer

from .conftest import MAX_TOKENS, WORDS

CLS, SEP, UNK = 2, 3, 1


def ids(*words: str) -> list[int]:
    return [CLS, *(WORDS.index(word) for word in words), SEP]


def test_padding_and_truncation_of_the_file_are_ignored(tokenizer: Tokenizer) -> None:
    words = ["w1"] * 13
    assert tokenizer.encode(["w1", " ".join(words)]) == [Tokens(ids("w1"), 3), Tokens(ids(*words), 15)]


def test_empty_text_has_the_special_tokens_alone(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode([""]) == [Tokens([CLS, SEP], 2)]


def test_long_text_keeps_its_beginning_and_the_last_special_token(tokenizer: Tokenizer) -> None:
    words = [f"w{number}" for number in range(20)]
    (tokens,) = tokenizer.encode([" ".join(words)])
    assert tokens.ids == ids(*words[: MAX_TOKENS - 2])
    assert tokens.seen == 22
    assert tokens.cut_at == len(" ".join(words[: MAX_TOKENS - 2])) + 1


def test_cut_is_counted_in_code_points(tokenizer: Tokenizer) -> None:
    (tokens,) = tokenizer.encode(["😀 " * 20])
    assert tokens.cut_at == 2 * (MAX_TOKENS - 2)


def test_text_beyond_the_limit_of_characters_is_cut_there(tokenizer_file: Path) -> None:
    tokenizer = Tokenizer(tokenizer_file, MAX_TOKENS, max_characters=5)
    assert tokenizer.encode(["w1 w2 w3"]) == [Tokens(ids("w1", "w2"), 4, cut_at=5)]


def test_special_tokens_in_a_text_are_text(tokenizer: Tokenizer) -> None:
    (tokens,) = tokenizer.encode(["w1 [SEP] w2"])
    assert tokens.ids == [CLS, WORDS.index("w1"), UNK, UNK, UNK, WORDS.index("w2"), SEP]


@pytest.mark.parametrize("count", [1, 1000])
async def test_async_and_sync_agree(tokenizer: Tokenizer, count: int) -> None:
    texts = [f"w{number % 200}" for number in range(count)]
    assert await tokenizer.encode_async(texts) == tokenizer.encode(texts)
