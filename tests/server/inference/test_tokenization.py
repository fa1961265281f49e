from __future__ import annotations

import itertools
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from polyhead_server.inference.tokenization import Placement, Tokenizer
from polyhead_server.inference.types import Flow, TokenizedText

from tests.support.fake_engine import MAX_TOKENS, WORDS

CLS, SEP, UNK = 2, 3, 1


def ids(*words: str) -> list[int]:
    return [CLS, *(WORDS.index(word) for word in words), SEP]


def test_padding_and_truncation_of_the_file_are_ignored(tokenizer: Tokenizer) -> None:
    words = ["w1"] * 13
    assert tokenizer.encode(["w1", " ".join(words)]) == [
        TokenizedText((ids("w1"),), 3),
        TokenizedText((ids(*words),), 15),
    ]


def test_special_token_with_an_id_but_no_name_is_refused(tokenizer_file: Path, tmp_path: Path) -> None:
    document = json.loads(tokenizer_file.read_text())
    special = {"[CLS]": {"id": "[CLS]", "ids": [CLS], "tokens": []}}
    single = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    document["post_processor"] = {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": special}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="another number of ids than of tokens"):
        Tokenizer(path, MAX_TOKENS, 100)


def test_empty_text_has_only_the_special_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode([""]) == [TokenizedText(([CLS, SEP],), 2)]


def test_long_text_keeps_its_beginning_and_the_last_special_token(tokenizer: Tokenizer) -> None:
    words = [f"w{number}" for number in range(20)]
    (tokens,) = tokenizer.encode([" ".join(words)])
    assert tokens.windows == (ids(*words[: MAX_TOKENS - 2]),)
    assert tokens.seen == 22
    assert tokens.cut_at == len(" ".join(words[: MAX_TOKENS - 2])) + 1


def test_cut_is_counted_in_code_points(tokenizer: Tokenizer) -> None:
    (tokens,) = tokenizer.encode(["😀 " * 20])
    assert tokens.cut_at == 2 * (MAX_TOKENS - 2)


def test_text_beyond_the_limit_of_characters_is_cut_there(tokenizer_file: Path) -> None:
    tokenizer = Tokenizer(tokenizer_file, MAX_TOKENS, max_characters=5)
    assert tokenizer.encode(["w1 w2 w3"]) == [TokenizedText((ids("w1", "w2"),), 4, cut_at=5)]


def test_special_tokens_in_a_text_are_read_as_text(tokenizer: Tokenizer) -> None:
    (tokens,) = tokenizer.encode(["w1 [SEP] w2"])
    assert tokens.windows == ([CLS, WORDS.index("w1"), UNK, UNK, UNK, WORDS.index("w2"), SEP],)


@pytest.mark.parametrize("count", [1, 1000])
async def test_async_and_sync_agree(tokenizer: Tokenizer, count: int) -> None:
    texts = [f"w{number % 200}" for number in range(count)]
    made = await tokenizer.encode_async(texts, tokenizer.placement(texts), Flow())
    assert made.texts == tokenizer.encode(texts)


def words_of(window: list[int]) -> list[str]:
    assert (window[0], window[-1]) == (CLS, SEP)
    return [WORDS[number] for number in window[1:-1]]


@pytest.mark.parametrize("count", [15, 27, 28, 150])
def test_windows_cover_a_text_overlap_and_are_of_about_one_length(tokenizer: Tokenizer, count: int) -> None:
    words = [f"w{number}" for number in range(count)]
    (tokens,) = tokenizer.encode([" ".join(words)], max_windows=100)
    windows = [words_of(window) for window in tokens.windows]
    assert (tokens.seen, tokens.cut_at, tokens.used) == (count + 2, None, sum(map(len, tokens.windows)))
    assert list(dict.fromkeys(word for window in windows for word in window)) == words
    assert max(map(len, windows)) <= MAX_TOKENS - 2
    assert max(map(len, windows)) - min(map(len, windows)) <= 1
    for one, other in itertools.pairwise(windows):
        assert set(one) & set(other)


def test_text_beyond_the_last_window_is_cut(tokenizer: Tokenizer) -> None:
    words = [f"w{number}" for number in range(100)]
    (tokens,) = tokenizer.encode([" ".join(words)], max_windows=2)
    # 14 words and, after an overlap of one, 14 more.
    assert [words_of(window) for window in tokens.windows] == [words[:14], words[13:27]]
    assert tokens.seen == 102
    assert tokens.cut_at == len(" ".join(words[:27])) + 1


def test_texts_are_divided_into_chunks_of_limited_size(tokenizer: Tokenizer) -> None:
    # 1,000 code points of each text are read.
    texts = ["w1 " * 300, "w1 " * 3000, "w1"] * 20
    chunks = list(tokenizer.chunks(texts))
    assert [texts[chunk] for chunk in chunks] != [texts]
    assert [text for chunk in chunks for text in texts[chunk]] == texts
    assert all(sum(min(len(text), 1000) for text in texts[chunk]) <= 32_768 for chunk in chunks)
    assert list(tokenizer.chunks(["w1"])) == [slice(0, 1)]


@pytest.mark.parametrize(
    ("characters", "expected"),
    [(0, Placement.INLINE), (500, Placement.INLINE), (501, Placement.OFFLOADED), (10_000, Placement.OFFLOADED)],
)
def test_long_messages_are_offloaded(tokenizer: Tokenizer, characters: int, expected: Placement) -> None:
    assert tokenizer.placement(["w" * characters]) is expected
    assert tokenizer.placement(["w"] * characters) is expected


def test_characters_of_an_offloaded_message_count_up_to_the_limit(tokenizer: Tokenizer) -> None:
    texts = ["w" * 1001, "w" * 3]
    assert tokenizer.offloaded_characters(texts, Placement.OFFLOADED) == [1000, 3]
    assert tokenizer.offloaded_characters(texts, Placement.INLINE) == [0, 0]


@pytest.mark.parametrize("placement", Placement)
async def test_placement_decides_the_thread_and_not_the_tokens(
    tokenizer: Tokenizer, placement: Placement, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, threads, encode = ["w1 w2", "w3"], [], tokenizer.encode

    def record(*arguments: Any) -> list[TokenizedText]:
        threads.append(threading.current_thread())
        return encode(*arguments)

    monkeypatch.setattr(tokenizer, "encode", record)
    assert (await tokenizer.encode_async(texts, placement, Flow())).texts == encode(texts)
    inline = threads == [threading.current_thread()]
    assert inline == (placement is not Placement.OFFLOADED)
