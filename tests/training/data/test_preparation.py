"""The prompt of the labelled rows is read as if it stood in the files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from polyhead_training.config import Config
from polyhead_training.data.dataset import read_data
from polyhead_training.data.preparation import prepare
from polyhead_training.errors import BackboneError, ConfigError

PROMPT = ("model.prompts={query='the parcel, ', passage='soup: '}", "data.prompt=query")


def test_rows_have_the_tokens_of_texts_with_the_prompt_written_out(
    configure: Callable[..., Config], rows: list[dict[str, Any]], write_jsonl: Callable[[str, Sequence[object]], Path]
) -> None:
    config = configure(*PROMPT)
    prompted = prepare(config, read_data(config))
    config = configure()
    plain = prepare(config, read_data(config))
    written_out = [{**row, "text": "the parcel, " + row["text"]} for row in rows]
    write_jsonl("train.jsonl", written_out)
    write_jsonl("test.jsonl", written_out[:6])
    expected = prepare(config, read_data(config))
    for split in ("train", "validation", "test"):
        assert prompted.splits[split].ids == expected.splits[split].ids
        assert prompted.splits[split].ids != plain.splits[split].ids
        assert prompted.splits[split].tokens == expected.splits[split].tokens
    assert prompted.digest() == expected.digest()


def test_known_words_of_a_prompt_do_not_hide_unknown_texts(
    configure: Callable[..., Config], rows: list[dict[str, Any]], write_jsonl: Callable[[str, Sequence[object]], Path]
) -> None:
    write_jsonl("train.jsonl", [{**row, "text": f"\u4f60\u597d {number}"} for number, row in enumerate(rows)])
    config = configure(*PROMPT)
    with pytest.raises(BackboneError, match="special and unknown tokens alone"):
        prepare(config, read_data(config))


def test_prompt_that_leaves_no_token_for_a_text_is_an_error(configure: Callable[..., Config]) -> None:
    config = configure(f"model.prompts={{query='{'parcel ' * 40}'}}")
    with pytest.raises(ConfigError, match=r"model.prompts.query: has 42 tokens, and model.max_tokens is 32"):
        prepare(config, read_data(config))
