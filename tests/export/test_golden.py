"""The golden texts are a dozen, all different, and one is longer than the model reads."""

from __future__ import annotations

import pytest
import tokenizers
from polyhead_export.golden import golden_texts


@pytest.mark.parametrize("max_tokens", [8, 48, 512, 8192])
def test_last_golden_text_is_longer_than_the_model_reads(tokenizer: tokenizers.Tokenizer, max_tokens: int) -> None:
    assert len(tokenizer.encode(golden_texts(max_tokens)[-1]).ids) > max_tokens


def test_golden_texts_meet_what_breaks_tokenizers() -> None:
    texts = golden_texts(48)
    assert len(texts) == len(set(texts)) == 12
    assert "" in texts
    together = "".join(texts)
    for trap in ("[SEP]", "</s>", "\n", "\t", "\u200b", "\u200d", "é", "🙂", "快", "\u0648", "0"):
        assert trap in together, trap
