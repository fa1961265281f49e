"""Compares the output of a bulk job with the validation texts of its bundle, for ``polyhead drift``."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polyhead_bundle as bundle
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from polyhead_client.cli.drift_report import DriftBin, DriftMeasure, DriftReport
from polyhead_client.cli.failure import CommandError
from polyhead_server.drift.counting import Counter, Rows
from polyhead_server.drift.measures import measures_of
from polyhead_server.drift.report import MAX_P_VALUE, MeasureDrift, compare

from .manifest import NAME

_EXIT_USAGE = 2
# Blocks of consecutive rows, whose differences tell how much the texts vary without drift.
_BLOCKS = 24
_BATCH_ROWS = 1024
_TEXT_COLUMNS = ("tokens", "truncated", "novelty", "embedding", "error")


def compare_output(output: Path, bundle_path: Path, min_distance: float) -> DriftReport:
    """Compares the rows of a bulk job that have an answer.

    Args:
        output: Folder of the job.
        bundle_path: The bundle that answered.
        min_distance: Smallest distance that is drift.

    Raises:
        CommandError: The folder holds no job of this bundle, or the bundle has no reference.
        OSError: A file cannot be read.
    """
    job = _read_job(output)
    try:
        source = bundle.load(bundle_path)
    except bundle.BundleError as error:
        raise CommandError(_EXIT_USAGE, str(error)) from error
    if job["model"]["model_id"] != source.model_id:
        raise CommandError(_EXIT_USAGE, f"{output} was written with {job['model']['model_id']}, not {source.model_id}")
    manifest = source.manifest
    if manifest.reference is None:
        raise CommandError(_EXIT_USAGE, f"{source.model_id} has no reference to compare with")
    counter = Counter(manifest, measures_of(manifest))
    blocks = np.zeros((_BLOCKS, counter.width))
    begin = texts = 0
    for table in _tables(output, job, _answer_columns(manifest)):
        place = begin * _BLOCKS // job["rows"]
        begin += len(table)
        answered = table.filter(pc.is_null(table["error"]))
        if len(answered):
            blocks[place] += counter.count(_rows(answered, manifest))
            texts += len(answered)
    measures = tuple(map(_measure, compare(counter.measures, blocks, min_distance)))
    rows = manifest.reference.rows
    return DriftReport(source.model_id, 0.0, texts, 0, rows, min_distance, MAX_P_VALUE, measures)


def _read_job(output: Path) -> Mapping[str, Any]:
    path = output / NAME
    try:
        job: dict[str, Any] = json.loads(path.read_bytes())
        _ = job["model"]["model_id"], job["parts"], job["rows"], job["output"]["format"]
    except FileNotFoundError:
        raise CommandError(_EXIT_USAGE, f"{output} is not a folder that polyhead bulk has written: no {NAME}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise CommandError(_EXIT_USAGE, f"{path}: is not a manifest of polyhead bulk: {error}") from error
    return job


def _tables(output: Path, job: Mapping[str, Any], names: Collection[str]) -> Iterator[pa.Table]:
    """Yields named columns of the parts in the order of the input, so many rows that blocks are about equal."""
    size = max(1, min(_BATCH_ROWS, job["rows"] // _BLOCKS))
    is_parquet = job["output"]["format"] == "parquet"
    for part in sorted(job["parts"], key=lambda part: (part["source"], part["fragment"])):
        path = output / part["name"]
        yield from _parquet_tables(path, size, names) if is_parquet else _line_tables(path, size, names)


def _parquet_tables(path: Path, size: int, names: Collection[str]) -> Iterator[pa.Table]:
    with pq.ParquetFile(path) as file:
        columns = [name for name in file.schema_arrow.names if name in names]
        for batch in file.iter_batches(size, columns=columns):
            yield pa.Table.from_batches([batch])


def _line_tables(path: Path, size: int, names: Collection[str]) -> Iterator[pa.Table]:
    rows: list[dict[str, Any]] = []
    with path.open("rb") as file:
        for line in file:
            rows.append({name: value for name, value in orjson.loads(line).items() if name in names})
            if len(rows) == size:
                yield _table(rows)
                rows = []
    if rows:
        yield _table(rows)


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    table = pa.Table.from_pylist(rows)
    return table if "error" in table.schema.names else table.append_column("error", pa.nulls(len(rows), pa.string()))


def _answer_columns(manifest: bundle.Manifest) -> set[str]:
    """Returns the columns that are compared. Others are those of the input, of any names and types."""
    return {*_TEXT_COLUMNS, *map(_column, manifest.heads)}


def _column(head: bundle.Head) -> str:
    return f"{head.name}_value" if head.kind == "regression" else f"{head.name}_probabilities"


def _rows(table: pa.Table, manifest: bundle.Manifest) -> Rows:
    names = set(table.schema.names)
    numbers = {}
    for head in manifest.heads:
        column = _column(head)
        if column in names:
            values = _matrix(table[column])
            # The server has the probability of the positive label alone.
            numbers[head.name] = values[:, 1:] if head.kind == "sigmoid" else values
    embeddings = _matrix(table["embedding"]) if "embedding" in names else None
    if embeddings is not None and not _is_whole(embeddings, manifest):
        embeddings = None
    return Rows(
        numbers,
        table["tokens"].to_numpy(),
        table["truncated"].to_numpy(),
        None,
        embeddings,
        table["novelty"].to_numpy() if "novelty" in names else None,
    )


def _is_whole(embeddings: NDArray[Any], manifest: bundle.Manifest) -> bool:
    """Whether embeddings have all dimensions, as floating-point numbers: others have another mean."""
    return embeddings.shape[1] == manifest.embedding.dimensions and np.issubdtype(embeddings.dtype, np.floating)


def _matrix(column: pa.ChunkedArray) -> NDArray[Any]:
    """Returns a column of lists of equal length, or of numbers, as (N, length)."""
    is_list = pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type)
    values = column.combine_chunks()
    return np.asarray((values.flatten() if is_list else values).to_numpy(zero_copy_only=False)).reshape(len(column), -1)


def _measure(found: MeasureDrift) -> DriftMeasure:
    return DriftMeasure(
        found.measure.head,
        found.measure.name,
        found.texts,
        found.effective,
        found.distance,
        found.p_value,
        found.drifted,
        tuple(DriftBin(*one) for one in found.bins()),
    )
