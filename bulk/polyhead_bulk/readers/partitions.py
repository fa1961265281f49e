"""Columns that the folders of an input state, such as ``year=2026``."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from polyhead_bulk.sources import Source


def with_partitions(found: Any, source: Source) -> Any:
    """Adds the partition columns of an input, as strings, to a schema or a record batch that does not have them."""
    is_schema = isinstance(found, pa.Schema)
    for name, value in source.partitions:
        if (found if is_schema else found.schema).get_field_index(name) >= 0:
            continue
        field = pa.field(name, pa.string())
        if is_schema:
            found = found.append(field)
        else:
            found = found.append_column(field, pa.array([value] * found.num_rows, pa.string()))
    return found
