"""Fixtures: an annotator with a fake engine, whose answers prove which text they belong to, and jobs on it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from polyhead_bulk import annotator as annotator_module
from polyhead_bulk.annotator import Annotator
from polyhead_bulk.job import Job, Summary
from polyhead_bulk.layout import Layout
from polyhead_bulk.local import facts
from polyhead_bulk.options import AnswerOptions
from polyhead_bulk.plan import Plan
from polyhead_bulk.selection import Selection
from polyhead_bulk.sources import find_sources
from polyhead_server.inference.model import Model

from tests.support.fake_engine import embedding_of
from tests.support.fake_model import engine, manifest, model, tokenizer, tokenizer_file

__all__ = ["engine", "manifest", "model", "tokenizer", "tokenizer_file"]

MakeLayout = Callable[..., Layout]
MakeAnnotator = Callable[..., Annotator]
RunJob = Callable[..., Summary]


def words(count: int, seed: int = 0) -> list[str]:
    """Returns texts of 1 to 13 known words, none of which resembles those beside it."""
    chosen = random.Random(seed)
    return [" ".join(f"w{chosen.randrange(200)}" for _ in range(chosen.randrange(1, 14))) for _ in range(count)]


def expected_embeddings(texts: Iterable[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Returns the embeddings of the fake engine."""
    return np.array([embedding_of(text) for text in texts], np.float32).reshape(-1, 2)


def embeddings(table: pa.Table) -> np.ndarray[Any, Any]:
    """Returns the embeddings of a table without nulls as a matrix."""
    column = table.column("embedding").combine_chunks()
    return np.asarray(column.flatten()).reshape(len(column), -1)


def write_parquet(path: Path, texts: list[str | None], first: int = 0, **options: Any) -> Path:
    """Writes a Parquet file of texts with ids and stars."""
    ids = list(range(first, first + len(texts)))
    table = pa.table(
        {
            "id": pa.array(ids, pa.int64()),
            "text": pa.array(texts, pa.string()),
            "stars": pa.array([one / 2 for one in ids], pa.float64()),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path


@pytest.fixture
def make_layout(model: Model) -> MakeLayout:
    """Makes the layout of the fake model: ``make_layout(**options)``."""
    return lambda **options: Layout(facts(model), AnswerOptions(**options))


@pytest.fixture
def make_annotator(model: Model, monkeypatch: pytest.MonkeyPatch) -> MakeAnnotator:
    """Makes an annotator with the fake engine: ``make_annotator(**arguments)``."""
    monkeypatch.setattr(annotator_module, "load_model", lambda _: model)
    return lambda **arguments: Annotator("fake", **{"threads": 2, **arguments})


@pytest.fixture
def run_job(make_annotator: MakeAnnotator, tmp_path: Path) -> RunJob:
    """Runs a job with the fake engine on inputs: ``run_job(*inputs, **fields_of_the_plan)``, into ``tmp_path/out``."""

    def run(*inputs: Path | str, text: str = "text", keep: tuple[str, ...] = (), **fields: Any) -> Summary:
        return make_job(make_annotator(), tmp_path / "out", *inputs, text=text, keep=keep, **fields).run()

    return run


def make_job(
    annotator: Any, output: Path, *inputs: Path | str, text: str = "text", keep: tuple[str, ...] = (), **fields: Any
) -> Job:
    """Returns a job with small parts."""
    selection = Selection(text, fields.pop("id", "id"), keep)
    sources = find_sources([str(one) for one in inputs], output)
    return Job(Plan(sources=sources, selection=selection, output=output, **{"part_rows": 100, **fields}), annotator)
