"""What a job is: inputs, columns, output and shard, and which fragments one process computes."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from .errors import UsageError
from .layout import Layout
from .parts import Format, PartRecord
from .readers import Want
from .selection import Selection
from .sources import Source

# Rows of a part: a minute of work for two cores, which is all that a crash loses.
PART_ROWS = 65_536


@dataclass(frozen=True)
class Unit:
    """Fragments of one input that one worker makes: ``first``, ``first + step`` and so on; only ``first`` if step is 0.

    Attributes:
        source: Number of the input.
        first: Number of the first fragment.
        step: Distance between fragments.
    """

    source: int
    first: int
    step: int = 0

    def contains(self, source: int, fragment: int) -> bool:
        """Returns whether a fragment belongs to the unit."""
        if source != self.source:
            return False
        return (fragment - self.first) % self.step == 0 if self.step else fragment == self.first

    def is_before(self, source: int, fragment: int) -> bool:
        """Returns whether neither a fragment nor any later one of its input belongs to the unit."""
        return source != self.source or (not self.step and fragment > self.first)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A bulk job.

    Attributes:
        sources: The inputs, in order.
        selection: Columns to read.
        output: The output folder.
        output_format: ``parquet`` or ``jsonl``.
        part_rows: Largest number of rows of a part.
        limit: Number of rows to answer, of all inputs together; None for all.
        shard: Number of this process among ``shards``, which divide the fragments among them.
        shards: Number of processes.
        unit: The only fragments to make; None for all of the shard.
        on_error: ``null`` or ``fail``, as for ``Annotator``.
        column_types: Types of kept columns of JSON Lines and CSV.
    """

    sources: list[Source]
    selection: Selection
    output: Path
    output_format: Format = "parquet"
    part_rows: int = PART_ROWS
    limit: int | None = None
    shard: int = 0
    shards: int = 1
    unit: Unit | None = None
    on_error: Literal["null", "fail"] = "null"
    column_types: Mapping[str, pa.DataType] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Rejects options that contradict each other.

        Raises:
            UsageError: Names the flags.
        """
        if not 0 <= self.shard < self.shards:
            raise UsageError(f"--shard {self.shard}/{self.shards}: the first number is from 0 to {self.shards - 1}")
        if self.shards > 1 and self.limit is not None:
            raise UsageError("--shard and --limit exclude each other")
        if self.shards > 1 and any(source.is_stdin for source in self.sources):
            raise UsageError("standard input cannot be divided with --shard")

    def is_mine(self, source: int, fragment: int) -> bool:
        """Returns whether this process computes a fragment; which one does depends on these numbers alone."""
        if self.unit is not None and not self.unit.contains(source, fragment):
            return False
        return (source + fragment) % self.shards == self.shard


class Progress:
    """Which fragments have a part, and so which ones are still wanted.

    Threads: the thread that reads the inputs calls ``want`` and ``parts_of`` while the one that writes parts adds them.
    """

    def __init__(self, plan: Plan, records: Mapping[tuple[int, int], PartRecord]) -> None:
        """Args: the job, and the records of the complete parts by input and fragment."""
        self._plan = plan
        self._records: dict[int, dict[int, PartRecord]] = {}
        for record in records.values():
            self.add(record)

    def add(self, record: PartRecord) -> None:
        """Adds a complete part."""
        self._records.setdefault(record.source, {})[record.fragment] = record

    def records(self) -> list[PartRecord]:
        """Returns the records of all complete parts."""
        return [record for parts in list(self._records.values()) for record in parts.copy().values()]

    def parts_of(self, source: int) -> dict[int, PartRecord]:
        """Returns the records of an input's complete parts by fragment, as of now."""
        return self._records.get(source, {}).copy()

    def want(self, source: int) -> Want:
        """Returns the function that tells the reader of an input which fragments to read."""
        done = self.parts_of(source)
        last = _last_fragment(done)

        def want(fragment: int) -> bool | None:
            if self._plan.unit is not None and self._plan.unit.is_before(source, fragment):
                return None
            if last is not None and all(
                one in done or not self._plan.is_mine(source, one) for one in range(fragment, last + 1)
            ):
                return None
            return self._plan.is_mine(source, fragment) and fragment not in done

        return want

    def is_complete(self) -> bool:
        """Returns whether every fragment of every input has a part, of whichever process."""
        if self._plan.limit is not None and sum(record.rows for record in self.records()) >= self._plan.limit:
            return True
        for source in range(len(self._plan.sources)):
            done = self.parts_of(source)
            last = _last_fragment(done)
            if last is None or any(fragment not in done for fragment in range(last + 1)):
                return False
        return True


def _last_fragment(parts: Mapping[int, PartRecord]) -> int | None:
    """Returns the number of the last fragment of an input, where one of its parts states it."""
    return next((fragment for fragment, record in parts.items() if record.is_last), None)


def describe(plan: Plan, layout: Layout, fields: list[pa.Field], inputs: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the description of a job in its manifest.

    Args:
        plan: The job.
        layout: The model and its columns.
        fields: Ids and kept columns.
        inputs: Description of each input.
    """
    facts, options, selection = layout.facts, layout.options, plan.selection
    return {
        "polyhead_version": importlib.metadata.version("polyhead"),
        "model": {
            "model_id": facts.model_id,
            "variant": facts.variant,
            "embedding_space": facts.fingerprints.embedding_space,
            "heads": dict(facts.fingerprints.heads),
            "digest": facts.digest,
        },
        "options": {
            "text_column": selection.text,
            "id_column": selection.id,
            "keep": list(selection.keep),
            "tasks": sorted(options.tasks),
            "truncation": options.truncation,
            "prompt": options.prompt,
            "embedding_encoding": options.embedding_encoding,
            "dimensions": layout.dimensions if layout.has_embedding else None,
            "list_type": options.list_type,
            "max_windows": options.max_windows,
            "novelty": options.novelty,
            "prediction_sets": options.prediction_sets,
            "part_rows": plan.part_rows,
            "limit": plan.limit,
        },
        "output": {
            "format": plan.output_format,
            "columns": {one.name: str(one.type) for one in [*fields, *layout.fields]},
        },
        "inputs": inputs,
    }
