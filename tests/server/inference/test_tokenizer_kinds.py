"""Texts have the ids of the library whatever the kind of the tokenizer, with the word cache where it suits."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polyhead_server.inference.tokenization import Tokenizer

from tests.support.tiny_tokenizers import SENTENCES, TOKENIZERS

WORDS = [word for sentence in SENTENCES for word in sentence.split()]
SPECIAL = ["[CLS]", "[SEP]", "</s>", "<pad>", "<unk>", "[MASK]"]
TEXTS = st.one_of(
    st.lists(st.sampled_from([*WORDS, *SPECIAL, "PARCEL", "  ", "\t", "x" * 120]), max_size=20).map(" ".join),
    st.text(string.printable, max_size=60),
    st.text(st.characters(max_codepoint=0x4FFF, exclude_categories=["Cs"]), max_size=30),
)


@pytest.fixture(scope="module", params=list(TOKENIZERS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def pair(kind: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Tokenizer]:
    """The tokenizer with and without its word cache."""
    path = tmp_path_factory.mktemp(kind) / "tokenizer.json"
    TOKENIZERS[kind]().save(str(path))
    made = [Tokenizer(path, max_tokens=24, max_characters=4000, word_cache=cached) for cached in (True, False)]
    return made[0], made[1]


def test_only_wordpiece_has_a_word_cache(kind: str, pair: tuple[Tokenizer, Tokenizer]) -> None:
    assert (pair[0]._words is not None) == (kind == "WordPiece")


@settings(max_examples=150)
@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_cached_ids_equal_those_of_the_library(kind: str, pair: tuple[Tokenizer, Tokenizer], texts: list[str]) -> None:
    library = TOKENIZERS[kind]()
    library.encode_special_tokens = True
    cached, uncached = pair
    # The first call may add words, the second one finds them.
    for _ in range(2):
        assert cached.encode(texts) == uncached.encode(texts)
    for text, tokens in zip(texts, uncached.encode(texts), strict=True):
        ids = library.encode(text).ids
        assert tokens.seen == len(ids)
        if len(ids) <= 24:
            assert tokens.windows == (ids,)
