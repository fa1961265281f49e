"""A bundle in the process and a server give the same answers, and so do a job of either kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from polyhead_bulk import Annotator, EngineError
from polyhead_bulk.options import AnswerOptions
from polyhead_bulk.remote import RemoteAnnotator
from polyhead_bulk.texts import Texts, from_values
from polyhead_client import Client

from bench.harness.servers import serving
from tests.support.tiny_model import SENTENCES

from .conftest import Command

pytestmark = pytest.mark.model

TEXTS: list[object] = [
    *(f"{sentence} {number}" for number in range(300) for sentence in SENTENCES),
    "",
    None,
    "🙂 [SEP] é",
    *(" ".join(SENTENCES * repeat) for repeat in (3, 9, 400)),
    7,
]


@pytest.fixture(scope="module")
def target(bundle_dir: Path) -> Iterator[str]:
    with serving(bundle_dir) as address:
        yield address


@pytest.fixture
def client(target: str) -> Iterator[Client]:
    with Client(target) as connected:
        yield connected


def groups(size: int) -> Iterator[Texts]:
    for begin in range(0, len(TEXTS), size):
        yield from_values(TEXTS[begin : begin + size])
        yield from_values([None], payload="without a text")
        yield from_values([], payload="empty")


def table_of(annotator: Any, size: int) -> pa.Table:
    answered = list(annotator.stream(groups(size)))
    assert [len(part) for part, _ in answered] == [len(part) for part in groups(size)]
    return pa.concat_tables([pa.table(answers.columns()) for _, answers in answered])


def require_close(found: pa.Table, expected: pa.Table) -> None:
    assert found.schema.equals(expected.schema)
    for field in expected.schema:
        one, other = (table[field.name].combine_chunks() for table in (found, expected))
        if not pa.types.is_fixed_size_list(field.type):
            assert one.to_pylist() == pytest.approx(other.to_pylist(), abs=1e-6), field.name
            continue
        assert one.is_valid().equals(other.is_valid())
        np.testing.assert_allclose(np.asarray(one.flatten()), np.asarray(other.flatten()), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, 5),
        ({}, 1000),
        ({"truncation": "window"}, 1000),
        ({"truncation": "error"}, 1000),
        ({"dimensions": 7, "tasks": ("embedding",)}, 1000),
        ({"tasks": ("sentiment", "classification")}, 1000),
        ({"embedding_encoding": "float16"}, 1000),
    ],
)
def test_answers_of_a_server_are_those_of_the_bundle(
    client: Client, bundle_dir: Path, options: dict[str, Any], size: int
) -> None:
    local = Annotator(bundle_dir, **options)
    remote = RemoteAnnotator(client, AnswerOptions(**options))
    expected = table_of(local, size)
    errors = [error for error in expected["error"].to_pylist() if error]
    assert {"the text is null", "the text is a number, not a string"} <= set(errors)
    assert any("tokens; the limit is" in error for error in errors) == (options.get("truncation") == "error")
    require_close(table_of(remote, size), expected)


@pytest.mark.parametrize("encoding", ["int8", "binary"])
def test_small_encodings_differ_by_a_step_at_most(client: Client, bundle_dir: Path, encoding: Any) -> None:
    local = table_of(Annotator(bundle_dir, embedding_encoding=encoding), 1000)
    remote = table_of(RemoteAnnotator(client, AnswerOptions(embedding_encoding=encoding)), 1000)
    one, other = (np.asarray(table["embedding"].combine_chunks().flatten()).astype(int) for table in (local, remote))
    # A number on the border between two steps may fall to either side.
    steps = np.unpackbits((one ^ other).astype(np.uint8)) if encoding == "binary" else np.abs(one - other)
    assert steps.max() <= 1
    assert steps.mean() < 0.001


def test_a_job_with_a_server_writes_what_a_job_with_the_bundle_writes(
    start: Callable[..., Command], target: str, bundle_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "in.parquet"
    texts = [text for text in TEXTS if isinstance(text, str) or text is None]
    pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), path)
    arguments = ("--id-column", "id", "--part-rows", "300")
    for name, flags in {"local": ("--bundle", bundle_dir), "remote": ("--target", target)}.items():
        code, _, errors = start(path, tmp_path / name, *flags, *arguments).result()
        assert code == 0, errors
    local, remote = (pa.dataset.dataset(tmp_path / name, format="parquet").to_table() for name in ("local", "remote"))
    require_close(remote.replace_schema_metadata(), local.replace_schema_metadata())


def test_a_server_that_goes_away_ends_the_stream(bundle_dir: Path) -> None:
    with serving(bundle_dir) as address:
        client = Client(address)
        remote = RemoteAnnotator(client, AnswerOptions())
        client.close()
    with pytest.raises(EngineError):
        list(remote.stream(groups(5)))
