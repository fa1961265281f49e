"""Hugging Face hub datasets by id, read row by row, with label names in place of ClassLabel numbers."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from polyhead_rows import Problem, RawRow

from polyhead_training.errors import DataError, HubError, first_line

_NAME = re.compile(
    r"hub:(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?(:(?P<configuration>[\w.+-]+))?#(?P<split>[\w.]+)"
)


def read_dataset(name: str, fields: Collection[str]) -> Iterator[RawRow]:
    """Reads one split of a dataset. Code that belongs to the dataset is never run.

    Args:
        name: ``hub:OWNER/NAME[@REVISION][:CONFIGURATION]#SPLIT``.
        fields: The fields whose values are read; the others, for example images, are not decoded.

    Yields:
        The rows. A ClassLabel number becomes the label's name, or None where it marks a missing label.

    Raises:
        DataError: The name has another form; the dataset, configuration or split does not exist; or the ``datasets``
            package is not installed.
        HubError: The hub did not deliver the dataset.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise _error(
            name, "write hub:OWNER/NAME[@REVISION][:CONFIGURATION]#SPLIT, for example hub:fancyzhx/ag_news#train"
        )
    dataset = _load(name, match)
    names = {
        field: feature.names for field, feature in dataset.features.items() if type(feature).__name__ == "ClassLabel"
    }
    every = tuple(dataset.column_names)
    for line, row in enumerate(dataset.select_columns([field for field in every if field in fields]), start=1):
        values = {field: _label(names[field], value) if field in names else value for field, value in row.items()}
        yield RawRow(Path(name), line, values, every)


def _load(name: str, match: re.Match[str]) -> Any:
    try:
        import datasets
    except ImportError:
        raise _error(name, "requires the extra 'hub': pip install '.[hub]' in polyhead's sources") from None
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return datasets.load_dataset(
            match["id"], match["configuration"], split=match["split"], revision=match["revision"]
        )
    except datasets.exceptions.DatasetNotFoundError:
        raise _error(name, "is not a dataset of the hub, or not accessible to you; check the spelling") from None
    except (ConnectionError, TimeoutError, HfHubHTTPError, OfflineModeIsEnabled) as error:
        hint = "try again, or download the dataset elsewhere and configure its files"
        raise HubError(name, f"the hub did not deliver it ({first_line(error)}); {hint}") from error
    except RuntimeError as error:
        hint = "if it requires a script, which is never run, its revision refs/convert/parquet may have the rows"
        raise _error(name, f"cannot be read: {first_line(error)}; {hint}") from error
    # Unknown configuration or split; the library's message lists the existing ones.
    except (ValueError, datasets.exceptions.DatasetsError) as error:
        raise _error(name, f"cannot be read: {first_line(error)}") from error


def _label(names: list[str], value: object) -> object:
    if isinstance(value, int):
        return names[value] if value >= 0 else None
    return value


def _error(name: str, reason: str) -> DataError:
    return DataError([Problem(Path(name), 0, reason)])
