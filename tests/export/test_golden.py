"""There are a dozen distinct golden texts, and one exceeds the model's token limit."""

from __future__ import annotations

import pytest
import tokenizers
from polyhead_export.golden import golden_texts


@pytest.mark.parametrize("max_tokens", [8, 48, 512, 8192])
def test_last_golden_text_exceeds_the_token_limit(tokenizer: tokenizers.Tokenizer, max_tokens: int) -> None:
    assert len(tokenizer.encode(golden_texts(max_tokens)[-1]).ids) > max_tokens


def test_prompts_are_put_before_a_golden_text() -> None:
    prompts = {f"p{number}": f"prompt {number}: " for number in range(9)}
    texts = golden_texts(48, prompts)
    assert texts[-1] == golden_texts(48)[-1]
    added = [text for text in texts if text not in golden_texts(48)]
    assert [text.partition(": ")[0] for text in added] == [f"prompt {number}" for number in range(4)]


def test_golden_texts_cover_difficult_input_for_tokenizers() -> None:
    texts = golden_texts(48)
    assert len(texts) == len(set(texts)) == 12
    assert "" in texts
    together = "".join(texts)
    for trap in ("[SEP]", "</s>", "\n", "\t", "\u200b", "\u200d", "é", "🙂", "快", "\u0648", "0"):
        assert trap in together, trap
