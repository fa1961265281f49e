from __future__ import annotations

import string
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from polyhead_server.inference import word_cache
from polyhead_server.inference.tokenization import Tokenizer
from polyhead_server.inference.word_cache import PlainWords, suits
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
    found = KNOWN[id(tokenizer)].encode(text, learn=True)
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
    words.encode(text, learn=True)
    assert [words.begin(text, number) for number in range(6)] == [0, 3, 6, 11, 15, None]


@pytest.mark.parametrize("text", ["", "Hello, hello!", "a[b]~\t0 \r\n 9", "[CLS] [MASK]", "x" * 40])
def test_plain_text_is_looked_up(text: str) -> None:
    assert words_of(LOWER).encode(text, learn=True) == LOWER.encode(text).ids


@pytest.mark.parametrize("text", ["h\u00e9llo", "a\x00b", "a\x0bb", "\x7f", "\u4f60", "x" * 41, "a " * 1001])
def test_all_else_is_left_to_the_library(text: str) -> None:
    assert words_of(LOWER).encode(text, learn=True) is None


def test_some_words_are_learned_from_each_text() -> None:
    words = words_of(LOWER)
    text = " ".join(f"word{number}" for number in range(3 * word_cache._MOST_NEW))
    found = [words.encode(text, learn=True) for _ in range(4)]
    assert found == [None, None, LOWER.encode(text).ids, LOWER.encode(text).ids]


def test_no_more_words_are_known_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_cache, "_MOST_KNOWN", 20)
    words, most = words_of(LOWER), 0
    for number in range(100):
        assert words.encode(f"hello {number}", learn=True) in (None, LOWER.encode(f"hello {number}").ids)
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


def _twice() -> tokenizers.Tokenizer:
    tokenizer = bert()
    template = processors.TemplateProcessing(
        single="[CLS] $A [SEP] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    tokenizer.post_processor = template
    return tokenizer


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Tokenizer]:
    """The server's tokenizer, and the same without looking up."""
    path = tmp_path_factory.mktemp("bert") / "tokenizer.json"
    LOWER.save(str(path))
    made, library = (Tokenizer(path, max_tokens=8, max_characters=50) for _ in range(2))
    assert made._words
    library._words = None
    return made, library


@settings(max_examples=300)
@given(st.lists(TEXTS, max_size=5), st.integers(1, 3))
def test_server_reads_windows_and_cuts_as_with_the_library(
    pair: tuple[Tokenizer, Tokenizer], texts: list[str], max_windows: int
) -> None:
    made, library = pair
    assert made.encode(texts, max_windows) == library.encode(texts, max_windows)


@pytest.mark.parametrize("count", [1, 10, 100, 1000])
async def test_texts_keep_their_places_wherever_they_are_read(pair: tuple[Tokenizer, Tokenizer], count: int) -> None:
    made, library = pair
    texts = [("h\u00e9llo " if number % 3 else "hello ") * (number % 5) + f"0{number}" for number in range(count)]
    for _ in range(2):
        assert await made.encode_async(texts) == library.encode(texts)


def test_only_what_the_library_reads_counts_as_read_apart(pair: tuple[Tokenizer, Tokenizer]) -> None:
    made, library = pair
    assert made.apart(["hello"] * 100) == [0] * 100
    assert made.apart(["hello"] * 150 + ["\u4f60"]) == [0] * 150 + [1]
    assert library.apart(["hello"] * 150) == [5] * 150
    assert made.apart(["hello" * 20] * 100) == [50] * 100


def test_long_plain_text_is_read_apart(tmp_path: Path) -> None:
    LOWER.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", 64, 4000)
    assert tokenizer.apart(["a " * 1000]) == [0]
    assert tokenizer.apart(["a " * 1001]) == [2002]


def test_text_that_is_there_twice_is_left_to_the_library(tmp_path: Path) -> None:
    _twice().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", 64, 1000)
    assert tokenizer.encode(["hello"])[0].windows == (_twice().encode("hello").ids,)


def test_what_is_not_to_be_learned_is_only_looked_up() -> None:
    words = words_of(LOWER)
    assert words.encode("hello", learn=False) is None
    assert words.encode("hello", learn=True) == words.encode("hello", learn=False)
