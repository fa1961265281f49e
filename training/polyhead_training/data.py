"""Labelled rows for training, validation and test; a row that cannot be read is an error, never dropped in silence.

::

    files --rows.read_rows--> RawRow --labels.read_label--> Row --split--> Data
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .config import Config, HeadConfig
from .errors import DataError, Problem
from .labels import read_label
from .rows import RawRow, read_rows, require_unicode

# Enough to see a pattern, few enough to read.
_MAX_PROBLEMS = 20
_DEFAULT_VALIDATION_FRACTION = 0.1


@dataclass(frozen=True)
class Row:
    """A text and what is known about it.

    Attributes:
        text: The text, not empty.
        labels: For each head, in order, the name of its label, or None where the row has none.
    """

    text: str
    labels: tuple[str | None, ...]


@dataclass(frozen=True)
class Data:
    """The rows of a training run.

    Attributes:
        heads: The configured heads, each with its labels.
        train: Rows to learn from.
        validation: Rows that are evaluated after each epoch.
        test: Rows that are evaluated at the end.
    """

    heads: tuple[HeadConfig, ...]
    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    test: tuple[Row, ...]


def read_data(config: Config) -> Data:
    """Reads every file that a configuration names.

    Raises:
        ConfigError: A variable in a path is not set, a file does not exist, or a head has no labels to learn.
        DataError: Rows cannot be read.
    """
    heads, text = config.model.heads, config.data.text
    paths = {split: _paths(config, split) for split in ("train", "validation", "test")}
    train = read_split(paths["train"], text, heads)
    heads = tuple(_with_labels(config, index, train) for index in range(len(heads)))
    validation = read_split(paths["validation"], text, heads)
    if not paths["validation"]:
        fraction = config.data.validation_fraction or _DEFAULT_VALIDATION_FRACTION
        train, validation = split_rows(train, fraction, config.training.seed)
    return Data(heads, tuple(train), tuple(validation), tuple(read_split(paths["test"], text, heads)))


def read_split(paths: Sequence[Path], text_field: str, heads: Sequence[HeadConfig]) -> list[Row]:
    """Reads some files one after the other.

    Args:
        paths: The files.
        text_field: Field that holds the text.
        heads: The heads; one without labels accepts any.

    Returns:
        The rows, in order.

    Raises:
        DataError: Rows cannot be read; reading stops after 20 of them.
    """
    rows: list[Row] = []
    problems: list[Problem] = []
    for found in _check(paths, text_field, heads):
        if isinstance(found, Row):
            rows.append(found)
            continue
        problems.append(found)
        if len(problems) == _MAX_PROBLEMS:
            raise DataError(problems, complete=False)
    if problems:
        raise DataError(problems)
    return rows


def split_rows(rows: Sequence[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Splits rows so that every combination of labels is shared out alike.

    Args:
        rows: The rows.
        fraction: Share of the second part, 0 to 1.
        seed: Seed of the choice.

    Returns:
        The rows that stay and the rows that were taken, in their order.
    """
    strata: dict[tuple[str | None, ...], list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        strata[row.labels].append(index)
    chooser = random.Random(seed)  # noqa: S311
    order = [index for stratum in strata.values() for index in chooser.sample(stratum, len(stratum))]
    # Every 1/fraction-th place in an order by strata: as near to the fraction of each as whole rows allow.
    places = range(len(order))
    taken = {order[place] for place in places if math.floor((place + 1) * fraction) > math.floor(place * fraction)}
    return (
        [row for index, row in enumerate(rows) if index not in taken],
        [row for index, row in enumerate(rows) if index in taken],
    )


def _paths(config: Config, split: str) -> list[Path]:
    paths = []
    for text in getattr(config.data, split):
        path = config.resolve(f"data.{split}", text)
        if not path.is_file():
            raise config.error(
                f"data.{split}", f"there is no file {path}; paths are relative to the configuration file"
            )
        paths.append(path)
    return paths


def _check(paths: Sequence[Path], text_field: str, heads: Sequence[HeadConfig]) -> Iterator[Row | Problem]:
    for path in paths:
        for number, raw in enumerate(read_rows(path)):
            if isinstance(raw, Problem):
                yield raw
                continue
            if number == 0 and text_field not in raw.values:
                # The rest of the file would say the same.
                raise DataError([raw.problem(_no_text(raw, text_field))])
            yield _row(raw, text_field, heads)


def _row(raw: RawRow, text_field: str, heads: Sequence[HeadConfig]) -> Row | Problem:
    text = raw.values.get(text_field)
    if text_field not in raw.values:
        return raw.problem(_no_text(raw, text_field))
    if not isinstance(text, str) or not text.strip():
        return raw.problem(f"field {text_field!r}: {text!r} is no text; fill it in or remove the row")
    try:
        require_unicode(text_field, text)
        return Row(text, tuple(read_label(head, raw.values.get(head.field)) for head in heads))
    except ValueError as error:
        return raw.problem(str(error))


def _no_text(raw: RawRow, text_field: str) -> str:
    fields = ", ".join(map(repr, raw.values))
    return f"has no field {text_field!r}, only {fields}: set data.text to the field with the text"


def _with_labels(config: Config, index: int, train: Sequence[Row]) -> HeadConfig:
    """The head with its labels: the configured ones, or those that the training rows have."""
    head = config.model.heads[index]
    found = sorted({row.labels[index] or "" for row in train} - {""})
    if not found:
        reason = f"{head.field!r}: no training row has a label there; correct the name or remove the head"
        raise config.error(f"model.heads.{index}.field", reason)
    if head.labels is None and len(found) < 2:
        raise config.error(
            f"model.heads.{index}.field", f"{head.field!r}: all training rows have the label {found[0]!r}"
        )
    return head if head.labels is not None else head.model_copy(update={"labels": tuple(found)})
