from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from polyhead_training.config import Config
from polyhead_training.data.dataset import read_data
from polyhead_training.data.embedding_report import describe_embedding
from polyhead_training.data.preparation import Prepared, prepare

from tests.support.tiny_tokenizers import SENTENCES
from tests.support.tiny_training import write_jsonl

A, B, C, D = SENTENCES[:4]


@pytest.fixture
def prepared(configure: Callable[..., Config], config_file: Path) -> Prepared:
    """Two sources with faults, and evaluations that share a text with them."""
    folder = config_file.parent
    scored = [(A, B, 1), (B, f"{A} ", 4), (C, D, 2)]
    write_jsonl(folder / "scored.jsonl", [{"a": a, "b": b, "score": score} for a, b, score in scored])
    triplets = [(A, B, C), (A.upper(), D, B), (A, B, C)]
    write_jsonl(
        folder / "triplets.jsonl", [dict(zip(("anchor", "positive", "negative"), row, strict=True)) for row in triplets]
    )
    write_jsonl(folder / "pairs.jsonl", [{"a": D, "b": SENTENCES[4], "score": 1}])
    sources = (
        "{files='scored.jsonl', kind='scored_pairs', prompts=['q', '']}, {files='triplets.jsonl', kind='triplets'}"
    )
    config = configure(f"data.embedding=[{sources}]", "data.similarity=pairs.jsonl", "model.prompts={q='The parcel: '}")
    return prepare(config, read_data(config))


def test_statistics_of_each_source(prepared: Prepared) -> None:
    scored, triplets = prepared.report.embedding
    assert (scored.name, scored.kind, scored.loss, scored.rows, scored.texts) == (
        "scored",
        "scored_pairs",
        "cosent",
        3,
        4,
    )
    assert scored.scores == pytest.approx((1, 7 / 3, 4))
    # A scored pair repeats another in any order, a triplet only in the same one.
    assert (scored.duplicates, scored.conflicting) == (1, 1)
    assert (triplets.rows, triplets.texts, triplets.scores) == (3, 4, None)
    assert (triplets.duplicates, triplets.conflicting) == (1, 1)
    assert "embedding scored: 3 scored pairs of 4 texts, loss cosent, scores 1 to 4, mean 2.33" in "\n".join(
        prepared.report.lines()
    )


def test_warnings_name_the_rows(prepared: Prepared, config_file: Path) -> None:
    folder = config_file.parent
    found = "\n".join(prepared.report.warnings)
    assert f"embedding scored: rows with another score: 1: {folder}/scored.jsonl:1 = {folder}/scored.jsonl:2" in found
    assert f"embedding triplets: rows whose negative is a positive elsewhere: 1: {folder}/triplets.jsonl:3" in found
    assert (
        f"embedding scored: rows with a text of data.similarity inflate its scores: 1: {folder}/scored.jsonl:3" in found
    )
    assert "embedding scored: has only 3 rows" in found


def test_embedding_that_selects_no_epoch_is_a_warning(prepared: Prepared) -> None:
    _, warnings = describe_embedding(replace(prepared.data, similarity=()), prepared.embedding, 32)
    expected = "data.similarity is not set, so the embedding has no part in the selection of the best epoch"
    assert expected in warnings
    assert expected not in prepared.report.warnings


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([], "similarity: has no rows, so the embedding is not evaluated on it"),
        ([3], "similarity: has a single pair, with the score 3, so its correlation with the cosines is undefined"),
        ([3, 3], "similarity: the score of every pair is 3, so its correlation with the cosines is undefined"),
        ([3, 4], ""),
    ],
)
def test_similarity_without_a_correlation_is_a_warning(
    configure: Callable[..., Config], config_file: Path, scores: list[int], expected: str
) -> None:
    write_jsonl(config_file.with_name("x.jsonl"), [{"a": A, "b": B, "score": score} for score in scores])
    write_jsonl(config_file.with_name("y.jsonl"), [{"a": A, "b": B}, {"a": C, "b": D}])
    config = configure("data.similarity=x.jsonl", "data.embedding=[{files='y.jsonl', kind='pairs'}]")
    found = [line for line in prepare(config, read_data(config)).report.warnings if "similarity" in line]
    found = [line for line in found if "inflate" not in line]
    assert len(found) == bool(expected)
    assert all(line.startswith(expected) for line in found)


@pytest.mark.parametrize(
    ("kind", "rows", "expected"),
    [
        ("pairs", [(A, B), (f" {A.upper()}", C)], "every row has the same 'a', so no text counts as a negative"),
        ("pairs", [(A, B), (C, B)], "every row has the same 'b', so"),
        ("pairs", [(A, B)], "every row has the same 'a' and 'b', so"),
        ("pairs", [(A, B), (C, D)], ""),
        ("triplets", [(A, B, C)], ""),
    ],
)
def test_pairs_without_negatives_are_a_warning(
    configure: Callable[..., Config], config_file: Path, kind: str, rows: list[tuple[str, ...]], expected: str
) -> None:
    write_jsonl(config_file.with_name("x.jsonl"), [dict(zip("abc", row, strict=False)) for row in rows])
    fields = ", ".join(map(repr, "abc"[: len(rows[0])]))
    config = configure(f"data.embedding=[{{files='x.jsonl', kind='{kind}', fields=[{fields}]}}]")
    found = [line for line in prepare(config, read_data(config)).report.warnings if "as a negative" in line]
    assert len(found) == bool(expected)
    assert all(expected in line for line in found)


def test_texts_are_encoded_once_with_their_prompts_and_grouped_without(prepared: Prepared) -> None:
    scored, triplets = prepared.embedding.sources
    # A with the prompt is another input than A without, but the same text; so is A in capitals.
    assert scored.texts[0, 0] != triplets.texts[0, 0]
    assert scored.groups[0, 0] == scored.groups[1, 1] == triplets.groups[0, 0] == triplets.groups[1, 0]
    assert triplets.texts[0, 0] == triplets.texts[2, 0]
    assert (
        len(prepared.embedding.texts)
        == len(prepared.embedding.rows)
        == len({row.text for row in prepared.embedding.rows})
    )
    assert prepared.embedding.rows[0].text == f"The parcel: {A}"
    assert scored.scores.tolist() == pytest.approx([0, 1, 1 / 3])
