"""A prompt is read as if the client had written it before the text, and is no part of the text that the client sent."""

from __future__ import annotations

from pathlib import Path

import pytest
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.inference.tokenization import Placement, Tokenizer
from polyhead_server.inference.types import Flow, RequestOptions, Result, Truncation

from tests.support.fake_engine import MAX_TOKENS, WORDS, embedding_of
from tests.support.submissions import embedding, message, outcomes
from tests.support.tiny_tokenizers import SENTENCES, TOKENIZERS

CLS, SEP = 2, 3
PREFIX = "w7 w8: "


def words_of(window: list[int]) -> list[str]:
    assert (window[0], window[-1]) == (CLS, SEP)
    return [WORDS[number] for number in window[1:-1]]


def with_prompt(prompt: str, truncation: Truncation = Truncation.TRUNCATE) -> RequestOptions:
    return RequestOptions(prompt=prompt, truncation=truncation)


async def test_answer_is_that_of_the_text_with_the_prompt_written_out(pipeline: Pipeline) -> None:
    texts = ["w1", "", "w2 w3"]
    answers = await outcomes(pipeline, message(*texts, options=with_prompt("query")))
    assert [embedding(answer) for answer in answers] == [embedding_of("w7 " + text) for text in texts]
    plain = await outcomes(pipeline, message(*texts))
    assert [embedding(answer) for answer in plain] == [embedding_of(text) for text in texts]


async def test_prompt_counts_as_tokens_and_not_as_text(pipeline: Pipeline) -> None:
    words = [f"w{number}" for number in range(10, 30)]
    (answer,) = await outcomes(pipeline, message(" ".join(words), options=with_prompt("passage")))
    assert isinstance(answer, Result)
    read = MAX_TOKENS - 2 - len(["w8", "w9"])
    assert (answer.tokens.seen, answer.tokens.used) == (24, MAX_TOKENS)
    assert answer.tokens.cut_at == len(" ".join(words[:read])) + 1
    assert embedding(answer) == embedding_of(" ".join(["w8", "w9", *words[:read]]))


async def test_every_window_begins_with_the_prompt(pipeline: Pipeline) -> None:
    words = [f"w{number}" for number in range(10, 60)]
    options = with_prompt("passage", Truncation.WINDOW)
    (answer,) = await outcomes(pipeline, message(" ".join(words), options=options))
    assert isinstance(answer, Result)
    windows = [words_of(window) for window in answer.tokens.windows]
    assert [window[:2] for window in windows] == [["w8", "w9"]] * len(windows)
    assert list(dict.fromkeys(word for window in windows for word in window[2:])) == words
    assert max(map(len, answer.tokens.windows)) <= MAX_TOKENS
    assert (answer.tokens.seen, answer.tokens.cut_at) == (54, None)


def test_text_after_the_last_window_begins_at_its_own_code_point(tokenizer: Tokenizer) -> None:
    words = [f"w{number}" for number in range(10, 110)]
    text = " ".join(words)
    (tokens,) = tokenizer.encode([PREFIX + text], 2, len(PREFIX))
    # "w7", "w8" and ":", then 11 words and, after an overlap of one, 11 more.
    windows = [words_of(window) for window in tokens.windows]
    assert windows == [["w7", "w8", "[UNK]", *words[:11]], ["w7", "w8", "[UNK]", *words[10:21]]]
    assert tokens.cut_at == len(" ".join(words[:21])) + 1


def test_text_beyond_the_limit_of_characters_is_cut_at_its_own_code_point(tokenizer_file: Path) -> None:
    tokenizer = Tokenizer(tokenizer_file, MAX_TOKENS, max_characters=8)
    assert tokenizer.encode(["w7 " + "w1 w2 w3"], 1, 3)[0].cut_at == 5


@pytest.mark.parametrize("max_windows", [1, 4])
def test_prompt_that_fills_a_window_leaves_a_token_to_the_text(tokenizer: Tokenizer, max_windows: int) -> None:
    prefix = "w7 " * 40
    (tokens,) = tokenizer.encode([prefix + "w1 w2"], max_windows, len(prefix))
    assert max(map(len, tokens.windows)) <= MAX_TOKENS
    assert tokens.cut_at == 0


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("prefix", ["query: ", "thank", "Parcel", "t\u00e9 "])
def test_tokens_of_a_prompt_are_those_before_the_text(kind: str, prefix: str, tmp_path: Path) -> None:
    library = TOKENIZERS[kind]()
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", max_tokens=24, max_characters=4000)
    for text in (*SENTENCES, " ".join(SENTENCES), "you", ""):
        joined = library.encode(prefix + text)
        (whole,) = tokenizer.encode([prefix + text], 1, len(prefix))
        assert whole.seen == len(joined.ids)
        (tokens,) = tokenizer.encode([prefix + text], 100, len(prefix))
        special = joined.special_tokens_mask
        of_prompt = [
            number
            for number, (_, end), is_special in zip(joined.ids, joined.offsets, special, strict=True)
            if not is_special and end <= len(prefix)
        ]
        begin = special.index(0)
        for window in tokens.windows:
            assert window[begin : begin + len(of_prompt)] == of_prompt
            assert len(window) <= 24


async def test_expensive_text_is_tokenized_in_parts_like_the_whole(tmp_path: Path) -> None:
    TOKENIZERS["WordPiece"]().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", max_tokens=24, max_characters=100_000)
    prefix = "query: "
    texts = [prefix + f"{'thankyou' * 12} soup, " * 100, prefix + "soup"]
    made = await tokenizer.encode_async(texts, Placement.OFFLOADED, Flow(), 3, len(prefix))
    assert made.texts == tokenizer.encode(texts, 3, len(prefix))
    assert made.texts[0].cut_at is not None
    assert len(made.texts[0].windows) == 3
