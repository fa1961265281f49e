from __future__ import annotations

import string

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from polyhead_server import wordpiece
from polyhead_server.wordpiece import PlainWords, suits
from tokenizers import AddedToken, normalizers, pre_tokenizers, processors

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = [*SPECIAL, *"abcdehlo09.,!?'[]~", *(f"##{one}" for one in "abcdehlo09"), "hello", "##ello", "HELLO", "bad"]
CLS, SEP = PIECES.index("[CLS]"), PIECES.index("[SEP]")


def bert(*, lowercase: bool = True, clean_text: bool = True) -> tokenizers.Tokenizer:
    vocabulary = {piece: number for number, piece in enumerate(PIECES)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, clean_text=clean_text)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", SEP), ("[CLS]", CLS))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.encode_special_tokens = True
    return tokenizer


def words_of(tokenizer: tokenizers.Tokenizer) -> PlainWords:
    return PlainWords(tokenizer, [CLS], [SEP])


LOWER, CASED = bert(), bert(lowercase=False)
KNOWN = {id(tokenizer): words_of(tokenizer) for tokenizer in (LOWER, CASED)}
TEXTS = st.one_of(
    st.text(string.printable, max_size=60),
    st.text(st.characters(max_codepoint=0x2FF), max_size=30),
    st.lists(st.sampled_from([*PIECES, "Hello", "\t", "\r\n", "\x0b", "x" * 120]), max_size=20).map(" ".join),
)


@settings(max_examples=400)
@given(TEXTS)
@pytest.mark.parametrize("tokenizer", [LOWER, CASED], ids=["uncased", "cased"])
def test_ids_are_those_of_the_library(tokenizer: tokenizers.Tokenizer, text: str) -> None:
    found = KNOWN[id(tokenizer)].encode(text)
    assert found is None or found == tokenizer.encode(text).ids


@settings(max_examples=200)
@given(TEXTS)
@pytest.mark.parametrize("tokenizer", [LOWER, CASED], ids=["uncased", "cased"])
def test_tokens_begin_where_the_library_says(tokenizer: tokenizers.Tokenizer, text: str) -> None:
    offsets = tokenizer.encode(text).offsets[1:-1]
    found = [KNOWN[id(tokenizer)].begin(text, number) for number in range(len(offsets))]
    assert all(begin in (None, offset[0]) for begin, offset in zip(found, offsets, strict=True))


def test_token_within_a_word_begins_there() -> None:
    words, text = words_of(LOWER), "Bad,  HELLOELLO!"
    assert words.begin(text, 2) is None
    words.encode(text)
    assert [words.begin(text, number) for number in range(6)] == [0, 3, 6, 11, 15, None]


@pytest.mark.parametrize("text", ["", "Hello, hello!", "a[b]~\t0 \r\n 9", "[CLS] [MASK]", "x" * 40])
def test_plain_text_is_looked_up(text: str) -> None:
    assert words_of(LOWER).encode(text) == LOWER.encode(text).ids


@pytest.mark.parametrize("text", ["h\u00e9llo", "a\x00b", "a\x0bb", "\x7f", "\u4f60", "x" * 41, "a " * 1001])
def test_all_else_is_left_to_the_library(text: str) -> None:
    assert words_of(LOWER).encode(text) is None


def test_some_words_are_learned_from_each_text() -> None:
    words = words_of(LOWER)
    text = " ".join(f"word{number}" for number in range(3 * wordpiece._MOST_NEW))
    found = [words.encode(text) for _ in range(4)]
    assert found == [None, None, LOWER.encode(text).ids, LOWER.encode(text).ids]


def test_no_more_words_are_known_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wordpiece, "_MOST_KNOWN", 20)
    words, most = words_of(LOWER), 0
    for number in range(100):
        assert words.encode(f"hello {number}") in (None, LOWER.encode(f"hello {number}").ids)
        most = max(most, len(words._known))
    assert 10 < most <= 20


def _added() -> tokenizers.Tokenizer:
    tokenizer = bert()
    tokenizer.add_tokens([AddedToken("hello world")])
    return tokenizer


def _byte_pairs() -> tokenizers.Tokenizer:
    tokenizer = bert()
    tokenizer.model = tokenizers.models.BPE()
    return tokenizer


def _whitespace() -> tokenizers.Tokenizer:
    tokenizer = bert()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def test_only_berts_tokenizer_suits() -> None:
    assert suits(bert())
    others = [
        bert(clean_text=False),
        _added(),
        _byte_pairs(),
        _whitespace(),
        tokenizers.Tokenizer(tokenizers.models.BPE()),
    ]
    assert not any(map(suits, others))
