"""Sources of labelled rows: files and hub datasets.

::

    .jsonl .csv (.gz) .parquet --polyhead_rows--> RawRow (field -> value) or Problem --dataset.py--> Row
    hub:OWNER/NAME#SPLIT --hub_datasets.py----->
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from polyhead_rows import Problem, RawRow, read_rows

from polyhead_training.config import HUB_PREFIX

# Path of a file, or the name of a hub dataset.
Source = Path


def read_source(source: Source, fields: Collection[str]) -> Iterator[RawRow | Problem]:
    """Reads a file or hub dataset row by row. An unreadable row is yielded as a ``Problem`` in its position.

    Args:
        source: A file that ``polyhead_rows`` reads, or ``hub:...``.
        fields: The fields whose values are read.

    Raises:
        DataError: The name of a hub dataset is invalid, or there is no such dataset.
        HubError: The hub did not deliver the dataset.
    """
    if not str(source).startswith(HUB_PREFIX):
        yield from read_rows(source, fields)
        return
    from .hub_datasets import read_dataset

    yield from read_dataset(str(source), fields)
