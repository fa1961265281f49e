"""Datasets of the hub by id, row by row, with the names of labels in the place of their numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polyhead_training.errors import DataError, HubError, Problem

_NAME = re.compile(
    r"hub:(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?(:(?P<configuration>[\w.+-]+))?#(?P<split>[\w.]+)"
)


def read_dataset(name: str) -> Iterator[dict[str, object]]:
    """Reads a split of a dataset; no code of the dataset is run.

    Args:
        name: ``hub:OWNER/NAME[@REVISION][:CONFIGURATION]#SPLIT``.

    Yields:
        The rows; a number of a ClassLabel feature is its name, and None where it says that there is no label.

    Raises:
        DataError: The name is not of that form, there is no such dataset, configuration or split, or the library that
            reads datasets is not installed.
        HubError: The hub did not hand it over.
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
    for row in dataset:
        yield {field: _label(names[field], value) if field in names else value for field, value in row.items()}


def _load(name: str, match: re.Match[str]) -> Any:
    try:
        import datasets
    except ImportError:
        raise _error(name, "wants pip install '.[hub]' in polyhead's sources") from None
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return datasets.load_dataset(
            match["id"], match["configuration"], split=match["split"], revision=match["revision"]
        )
    except datasets.exceptions.DatasetNotFoundError:
        raise _error(name, "is no dataset of the hub, or is not open to you; check the spelling") from None
    except (ConnectionError, TimeoutError, HfHubHTTPError, OfflineModeIsEnabled) as error:
        mend = "try again, or download it elsewhere and give its files"
        raise HubError(name, f"the hub did not hand it over ({_first_line(error)}); {mend}") from error
    except RuntimeError as error:
        mend = "if it needs a script, which is never run, its revision refs/convert/parquet may have the rows"
        raise _error(name, f"cannot be read: {_first_line(error)}; {mend}") from error
    # An unknown configuration or split; the library's message lists those that there are.
    except (ValueError, datasets.exceptions.DatasetsError) as error:
        raise _error(name, f"cannot be read: {_first_line(error)}") from error


def _label(names: list[str], value: object) -> object:
    if isinstance(value, int):
        return names[value] if value >= 0 else None
    return value


def _error(name: str, reason: str) -> DataError:
    return DataError([Problem(Path(name), 0, reason)])


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
