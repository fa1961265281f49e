from __future__ import annotations

import asyncio
import string
import threading
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from polyhead_server.errors import OverloadedError
from polyhead_server.inference import tokenization, word_cache
from polyhead_server.inference.fair_worker import FairWorker
from polyhead_server.inference.tokenization import Placement, Tokenizer
from polyhead_server.inference.types import Flow, TokenizedText
from polyhead_server.inference.word_boundaries import WordBoundaries
from polyhead_server.inference.word_cache import WordCache, is_cacheable
from tokenizers import AddedToken, normalizers, pre_tokenizers, processors

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = [*SPECIAL, *"abcdehlo09.,!?'[]~", *(f"##{one}" for one in "abcdehlo09"), "hello", "##ello", "HELLO", "bad"]
CLS, SEP = PIECES.index("[CLS]"), PIECES.index("[SEP]")


def bert(*, lowercase: bool = True, clean_text: bool = True, without: str = "") -> tokenizers.Tokenizer:
    vocabulary = {piece: number for number, piece in enumerate(PIECES) if piece not in without}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, clean_text=clean_text)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", SEP), ("[CLS]", CLS))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.encode_special_tokens = True
    return tokenizer


def words_of(tokenizer: tokenizers.Tokenizer) -> WordCache:
    return WordCache(tokenizer, [CLS], [SEP])


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
def test_ids_equal_those_of_the_library(tokenizer: tokenizers.Tokenizer, text: str) -> None:
    found = KNOWN[id(tokenizer)].encode(text, add=True)
    assert found is None or found == tokenizer.encode(text).ids


@settings(max_examples=200)
@given(TEXTS)
@pytest.mark.parametrize("tokenizer", [LOWER, CASED], ids=["uncased", "cased"])
def test_tokens_begin_at_the_offsets_of_the_library(tokenizer: tokenizers.Tokenizer, text: str) -> None:
    offsets = tokenizer.encode(text).offsets[1:-1]
    found = [KNOWN[id(tokenizer)].begin(text, number) for number in range(len(offsets))]
    assert all(begin in (None, offset[0]) for begin, offset in zip(found, offsets, strict=True))


def test_token_inside_a_word_begins_inside_it() -> None:
    words, text = words_of(LOWER), "Bad,  HELLOELLO!"
    assert words.begin(text, 2) is None
    words.encode(text, add=True)
    assert [words.begin(text, number) for number in range(6)] == [0, 3, 6, 11, 15, None]


@pytest.mark.parametrize("text", ["", "Hello, hello!", "a[b]~\t0 \r\n 9", "[CLS] [MASK]", "x" * 40])
def test_plain_text_is_encoded_from_the_cache(text: str) -> None:
    assert words_of(LOWER).encode(text, add=True) == LOWER.encode(text).ids


@pytest.mark.parametrize("text", ["h\u00e9llo", "a\x00b", "a\x0bb", "\x7f", "\u4f60", "x" * 41, "a " * 1001])
def test_any_other_text_is_left_to_the_library(text: str) -> None:
    assert words_of(LOWER).encode(text, add=True) is None


def test_each_text_adds_a_limited_number_of_words() -> None:
    words = words_of(LOWER)
    text = " ".join(f"word{number}" for number in range(3 * word_cache.MAX_NEW_WORDS))
    found = [words.encode(text, add=True) for _ in range(4)]
    assert found == [None, None, LOWER.encode(text).ids, LOWER.encode(text).ids]


def test_cache_does_not_grow_beyond_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_cache, "MAX_WORDS", 20)
    words, largest = words_of(LOWER), 0
    for number in range(100):
        assert words.encode(f"hello {number}", add=True) in (None, LOWER.encode(f"hello {number}").ids)
        largest = max(largest, words.size)
    assert 10 < largest <= 20


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


def test_only_a_bert_tokenizer_is_cacheable() -> None:
    assert is_cacheable(bert())
    others = [
        bert(clean_text=False),
        _added(),
        _byte_pairs(),
        _whitespace(),
        tokenizers.Tokenizer(tokenizers.models.BPE()),
    ]
    assert not any(map(is_cacheable, others))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Tokenizer]:
    """The server's tokenizer with and without its word cache."""
    path = tmp_path_factory.mktemp("bert") / "tokenizer.json"
    LOWER.save(str(path))
    cached = Tokenizer(path, max_tokens=8, max_characters=50)
    library = Tokenizer(path, max_tokens=8, max_characters=50, word_cache=False)
    assert (cached._words is None, library._words is None) == (False, True)
    return cached, library


@settings(max_examples=300)
@given(st.lists(TEXTS, max_size=5), st.integers(1, 3))
def test_windows_and_cuts_are_the_same_with_and_without_the_cache(
    pair: tuple[Tokenizer, Tokenizer], texts: list[str], max_windows: int
) -> None:
    cached, library = pair
    assert cached.encode(texts, max_windows) == library.encode(texts, max_windows)


@pytest.mark.parametrize("count", [1, 10, 100, 1000])
async def test_texts_keep_their_order_wherever_tokenized(pair: tuple[Tokenizer, Tokenizer], count: int) -> None:
    cached, library = pair
    texts = [("h\u00e9llo " if number % 3 else "hello ") * (number % 5) + f"0{number}" for number in range(count)]
    for _ in range(2):
        made = await cached.encode_async(texts, cached.placement(texts), Flow())
        assert made.texts == library.encode(texts)


def offloaded(tokenizer: Tokenizer, texts: list[str]) -> list[int]:
    return tokenizer.offloaded_characters(texts, tokenizer.placement(texts))


def test_only_texts_for_the_library_count_as_offloaded(pair: tuple[Tokenizer, Tokenizer]) -> None:
    cached, library = pair
    assert offloaded(cached, ["hello"] * 100) == [0] * 100
    assert offloaded(cached, ["hello"] * 150 + ["\u4f60"]) == [0] * 150 + [1]
    assert offloaded(library, ["hello"] * 150) == [5] * 150
    assert offloaded(cached, ["hello" * 20] * 100) == [50] * 100


@pytest.mark.parametrize(
    ("characters", "expected"), [(500, Placement.INLINE), (8192, Placement.LOOKUP), (8193, Placement.OFFLOADED)]
)
def test_messages_of_medium_size_are_looked_up_first(
    pair: tuple[Tokenizer, Tokenizer], characters: int, expected: Placement
) -> None:
    cached, library = pair
    assert cached.placement(["a"] * characters) is expected
    assert library.placement(["a"] * characters) is not Placement.LOOKUP


def test_long_plain_text_is_offloaded(tmp_path: Path) -> None:
    LOWER.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", 64, 4000)
    assert offloaded(tokenizer, ["a " * 1000]) == [0]
    assert offloaded(tokenizer, ["a " * 1001]) == [2002]


async def test_unknown_words_of_a_looked_up_message_are_not_added_on_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LOWER.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", 64, 4000)
    texts, threads, encode = [f"word{number} " * 40 for number in range(20)], [], tokenizer.encode

    def record(left: list[str], *limits: int) -> list[TokenizedText]:
        threads.append((len(left), threading.current_thread() is threading.main_thread()))
        return encode(left, *limits)

    monkeypatch.setattr(tokenizer, "encode", record)
    for _ in range(2):
        assert (await tokenizer.encode_async(texts, Placement.LOOKUP, Flow())).texts == encode(texts)
    # All texts were offloaded at first; later the cache knew all of them.
    assert threads == [(20, False), (0, True)]


@pytest.mark.parametrize("unknown", ["", "ab"])
@pytest.mark.parametrize("template", ["[CLS] $A [SEP] $A [SEP]", "$A $A [SEP]", "[CLS] $A $A"])
def test_tokenizer_that_repeats_the_text_is_left_to_the_library(template: str, unknown: str, tmp_path: Path) -> None:
    twice = bert(without=unknown)
    twice.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    twice.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", 64, 1000)
    expected = twice.encode("hello bad").ids
    assert len(expected) > len(bert(without=unknown).encode("hello bad").ids)
    for _ in range(2):
        assert tokenizer.encode(["hello bad"])[0].windows == (expected,)


@pytest.mark.parametrize("special", [True, False])
async def test_long_text_is_described_in_parts(special: bool, long_texts: Tokenizer) -> None:
    text = "hello, bad hello ~ " * 400
    tokens = await long_texts.describe(text, Flow(), special=special)
    whole = LOWER.encode(text, add_special_tokens=special)
    assert tokens
    assert [one.id for one in tokens] == whole.ids
    assert [one.span for one in tokens if not one.special] == whole.offsets[special : len(whole) - special]
    assert all(one.text == text[slice(*one.span)] for one in tokens if one.span)
    assert await long_texts.describe(text, Flow(), special=special, limit=len(tokens) - 1 - 2 * special) is None


async def test_calls_that_wait_to_be_described_are_bounded(
    long_texts: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenization, "_MAX_WAITING", 3)
    calls = [long_texts.describe("hello", Flow(), special=False) for _ in range(4)]
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(one, OverloadedError) for one in found] == [False, False, False, True]
    assert await long_texts.describe("hello", Flow(), special=False)


def test_words_are_not_added_without_being_asked() -> None:
    words = words_of(LOWER)
    assert words.encode("hello", add=False) is None
    assert words.encode("hello", add=True) == words.encode("hello", add=False)


@pytest.fixture(scope="module")
def long_texts(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer that reads long texts, of which words of many letters are expensive."""
    path = tmp_path_factory.mktemp("bert") / "tokenizer.json"
    LOWER.save(str(path))
    return Tokenizer(path, max_tokens=16, max_characters=100_000)


SEPARATORS = [
    *" \t\n-.,'[",
    "\u060c",
    "\u3000",
    "\u4e2d",
    "\u3400",
    "\u2028",
    "\U0002a700",
    "\u20ac",
    "\u0301",
    "\u200b",
]
PARTS = st.sampled_from([*PIECES, "hello" * 9, "b" * 99, "x" * 120, "h\u00e9llo", "\u00c5", "\U0001d400"])


@settings(max_examples=300)
@given(st.lists(st.tuples(PARTS, st.sampled_from(SEPARATORS)), max_size=60), st.integers(1, 40))
@pytest.mark.parametrize("tokenizer", [LOWER, CASED], ids=["uncased", "cased"])
def test_text_that_is_cut_at_boundaries_has_the_same_tokens(
    tokenizer: tokenizers.Tokenizer, parts: list[tuple[str, str]], size: int
) -> None:
    text = "".join(word + separator for word, separator in parts)
    cuts = BOUNDARIES[id(tokenizer)].cuts(text, size)
    assert "".join(text[begin:end] for begin, end in cuts) == text
    whole = tokenizer.encode(text, add_special_tokens=False)
    pieces = [tokenizer.encode(text[begin:end], add_special_tokens=False) for begin, end in cuts]
    assert [one for piece in pieces for one in piece.ids] == whole.ids
    assert [
        (begin + first, begin + last)
        for (begin, _), piece in zip(cuts, pieces, strict=True)
        for first, last in piece.offsets
    ] == whole.offsets


BOUNDARIES = {id(tokenizer): WordBoundaries.of_bert(tokenizer) for tokenizer in (LOWER, CASED)}


@pytest.mark.parametrize("separator", ["\u060c", "\u3000", "\u4e2d", "\U0002a6df", "-", "\n"])
def test_expensive_text_can_be_cut_at_every_kind_of_boundary(separator: str) -> None:
    boundaries = BOUNDARIES[id(LOWER)]
    text = ("b" * 99 + separator) * 300
    assert not boundaries.is_ordinary(text)
    assert max(end - begin for begin, end in boundaries.cuts(text, 1000)) < 1100


def test_text_without_long_words_is_ordinary() -> None:
    boundaries = BOUNDARIES[id(LOWER)]
    assert boundaries.is_ordinary("")
    assert boundaries.is_ordinary("b" * 24 + " " + "d" * 24 + "." + "\u4e2d" * 100 + "hello " * 10_000)
    assert not boundaries.is_ordinary("hello " * 10_000 + "b" * 25)
    assert not boundaries.is_ordinary("b" * 25 + "." * 10_000)


def test_ideographs_are_no_boundary_for_a_tokenizer_that_does_not_separate_them() -> None:
    tokenizer = bert()
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, handle_chinese_chars=False)
    boundaries = WordBoundaries.of_bert(tokenizer)
    assert not boundaries.is_ordinary("\u4e2d" * 25)
    assert boundaries.is_ordinary(("b" * 24 + "\u060c") * 3)


LONG_WORDS = ["b" * 99 + " ", "hello " * 300, "bad.", "h\u00e9llo\u060c", "x" * 5000]


@pytest.mark.parametrize("max_windows", [1, 3, 1000])
async def test_long_texts_are_tokenized_in_parts_like_the_library_does(long_texts: Tokenizer, max_windows: int) -> None:
    texts = ["".join(LONG_WORDS[(number + place) % 5] for place in range(20)) for number in range(5)] + ["hello", ""]
    made = await long_texts.encode_async(texts, Placement.OFFLOADED, Flow(), max_windows)
    assert made.texts == long_texts.encode(texts, max_windows)
    # What ordinary texts cost is measured with ordinary texts alone.
    assert made.characters == 5
    assert made.seconds > 0


async def test_expensive_texts_are_tokenized_in_steps_of_bounded_size(
    long_texts: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []

    async def run(self: FairWorker, flow: Flow, work: Any) -> Any:
        try:
            while True:
                next(work)
                steps.append(0)
        except StopIteration as end:
            return end.value

    monkeypatch.setattr(FairWorker, "run", run)
    text = ("b" * 99 + " ") * 10
    await long_texts.encode_async([text] * 10, Placement.OFFLOADED, Flow())
    assert len(steps) == 10
    steps.clear()
    await long_texts.encode_async(["hello " * 100] * 10, Placement.OFFLOADED, Flow())
    assert len(steps) == 1


def test_text_of_long_words_is_not_tokenized_on_the_event_loop(long_texts: Tokenizer) -> None:
    assert long_texts.placement(["hello " * 80]) is Placement.INLINE
    assert long_texts.placement(["b" * 100]) is not Placement.INLINE
    assert long_texts.placement(["hello", "b" * 100]) is not Placement.INLINE
    assert long_texts.placement(["b" * 24] * 20) is Placement.INLINE
