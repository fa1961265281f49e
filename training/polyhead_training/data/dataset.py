"""Labelled rows for training, validation and test. An invalid row is an error; no row is dropped silently.

::

    files, hub datasets --readers.read_source--> RawRow --labels.read_label--> Row --split--> Data
                                                        --------------------> Pair --------->
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TypeVar

from polyhead_rows import Problem, RawRow

from polyhead_training.config import Config, HeadConfig
from polyhead_training.errors import ConfigError, DataError
from polyhead_training.suggestions import did_you_mean, folded, listed, shown

from .labels import read_label
from .readers import Source, read_source

# Problems in one error message: enough to show a pattern, few enough to read.
_MAX_PROBLEMS = 100
_DEFAULT_VALIDATION_FRACTION = 0.1
# Field names of a source that are remembered, for suggestions.
_MAX_FIELDS = 1000
# Characters at the start of a text of which one is almost always visible.
_MAX_BLANK_CHARACTERS = 100

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Row:
    """A labelled text.

    Attributes:
        text: The text, not empty.
        labels: For each head, in order, the name of its label; None for a row without one.
        path: The file that contains the row, or the hub dataset under its name in the configuration.
        line: Line of the file on which the row begins, or row of a Parquet file or hub dataset, counted from 1.
        source: Index of the row's source in ``data.train``; 0 in the other splits.
    """

    text: str
    labels: tuple[str | None, ...]
    path: Path
    line: int
    source: int


@dataclass(frozen=True)
class Pair:
    """Two texts with a human similarity score.

    Attributes:
        first: The first text, not empty.
        second: The second text, not empty.
        score: Similarity, a finite number on the scale of its file.
    """

    first: str
    second: str
    score: float


@dataclass(frozen=True)
class Data:
    """The rows of a training run.

    Attributes:
        heads: The configured heads, each with its labels.
        train: Training rows.
        validation: Rows for evaluation after each epoch.
        test: Rows for evaluation at the end of the run.
        similarity: Pairs for evaluation of the sentence embedding.
        fields: For each source of rows, the fields that occur in any of them; none for a source without rows.
        empty: The splits that the configuration names sources for, but that have no rows.
    """

    heads: tuple[HeadConfig, ...]
    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    test: tuple[Row, ...]
    similarity: tuple[Pair, ...]
    fields: Mapping[Source, tuple[str, ...]]
    empty: tuple[str, ...] = ()


def read_data(config: Config) -> Data:
    """Reads every file and dataset that a configuration names.

    Raises:
        ConfigError: Variables in paths are not set, files do not exist, or heads have no labels to learn.
        DataError: Rows are invalid; the error counts those of all files and lists the first 100.
        HubError: The hub did not deliver a dataset.
    """
    text = config.data.text
    sources = config.sources()
    reader = _Reader()
    train = reader.rows(sources["train"], text, config.model.heads, is_train=True)
    try:
        heads = _heads_with_labels(config, train, reader.fields)
    except (ConfigError, DataError):
        # Invalid rows may be the ones that contain the labels, so report them first.
        reader.raise_problems()
        raise
    validation = reader.rows(sources["validation"], text, heads)
    test = reader.rows(sources["test"], text, heads)
    similarity = reader.pairs(sources["similarity"], config.data.similarity_fields)
    reader.raise_problems()
    empty = []
    if not sources["validation"]:
        fraction = config.data.validation_fraction or _DEFAULT_VALIDATION_FRACTION
        train, validation = split_rows(train, fraction, config.training.seed)
    if not validation:
        empty.append("validation")
    if sources["test"] and not test:
        empty.append("test")
    fields = {source: tuple(names) for source, names in reader.fields.items()}
    return Data(heads, tuple(train), tuple(validation), tuple(test), tuple(similarity), fields, tuple(empty))


def read_labelled(paths: Sequence[Source], text: str, heads: Sequence[HeadConfig]) -> list[Row]:
    """Reads labelled files for heads with known labels.

    Args:
        paths: The files.
        text: Field that contains the text.
        heads: The heads with their labels.

    Raises:
        DataError: Rows are invalid; the error counts those of all files and lists the first 100.
    """
    reader = _Reader()
    rows = reader.rows(paths, text, heads)
    reader.raise_problems()
    return rows


def split_rows(rows: Sequence[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Splits rows into two parts, stratified by the combination of labels.

    The second part never takes the last row of a label: a label that occurs once stays in the first part.

    Args:
        rows: The rows.
        fraction: Share of the second part, 0 to 1.
        seed: Seed of the random choice.

    Returns:
        The first and the second part, each in the order of ``rows``.
    """
    strata: dict[tuple[str | None, ...], list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        strata[row.labels].append(index)
    rng = random.Random(seed)  # noqa: S311
    order = [index for stratum in strata.values() for index in rng.sample(stratum, len(stratum))]
    # Taking every 1/fraction-th row of an order by strata comes as close to the fraction in each as whole rows allow.
    wanted = [row for n, row in enumerate(order) if math.floor((n + 1) * fraction) > math.floor(n * fraction)]
    left = Counter(label for row in rows for label in enumerate(row.labels))
    taken = set()
    for index in wanted:
        labels = [label for label in enumerate(rows[index].labels) if label[1] is not None]
        if all(left[label] > 1 for label in labels):
            left.subtract(labels)
            taken.add(index)
    return (
        [row for index, row in enumerate(rows) if index not in taken],
        [row for index, row in enumerate(rows) if index in taken],
    )


class _Reader:
    """Reads sources one after the other and collects their problems."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.found = 0
        self.fields: dict[Source, dict[str, None]] = {}

    def rows(
        self, sources: Sequence[Source], text_field: str, heads: Sequence[HeadConfig], *, is_train: bool = False
    ) -> list[Row]:
        def make(raw: RawRow, source: int) -> Row:
            names = self.fields[raw.path]
            if len(names) < _MAX_FIELDS:
                names.update(dict.fromkeys(raw.names))
            text = _text(raw, text_field)
            labels = tuple(read_label(head, raw.values.get(head.field)) for head in heads)
            return Row(text, labels, raw.path, raw.line, source if is_train else 0)

        for source in sources:
            self.fields.setdefault(source, {})
        return self._read(sources, {text_field: "data.text"}, make, [head.field for head in heads])

    def pairs(self, sources: Sequence[Source], fields: tuple[str, str, str]) -> list[Pair]:
        first, second, score = fields

        def make(raw: RawRow, _: int) -> Pair:
            return Pair(_text(raw, first), _text(raw, second), _number(raw, score))

        return self._read(sources, dict.fromkeys(fields, "data.similarity_fields"), make)

    def raise_problems(self) -> None:
        if self.problems:
            raise DataError(self.problems, self.found)

    def _read(
        self,
        sources: Sequence[Source],
        required: Mapping[str, str],
        make: Callable[[RawRow, int], _Item],
        optional: Sequence[str] = (),
    ) -> list[_Item]:
        items = []
        for index, source in enumerate(sources):
            for number, raw in enumerate(_raw_rows(source, {*required, *optional})):
                if isinstance(raw, Problem):
                    self._add(raw)
                    continue
                try:
                    _require(raw, required)
                    items.append(make(raw, index))
                except ValueError as error:
                    self._add(raw.problem(str(error)))
                    if number == 0 and not required.keys() <= raw.values.keys():
                        # Every other row of the source would report the same problem.
                        break
        return items

    def _add(self, problem: Problem) -> None:
        self.found += 1
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(problem)


def _raw_rows(source: Source, fields: Collection[str]) -> Iterator[RawRow | Problem]:
    """Yields the rows of a source; an unreadable source yields a problem instead."""
    try:
        yield from read_source(source, fields)
    except DataError as error:
        yield from error.problems


def _require(raw: RawRow, required: Mapping[str, str]) -> None:
    for field, setting in required.items():
        if field not in raw.values:
            names = listed(raw.names) or "none at all"
            hint = did_you_mean(field, raw.names)
            fix = f"set {setting} to one of these"
            raise ValueError(f"has no field {field!r}, only {names}: {f'{hint} {fix}' if hint else fix}")


def _text(raw: RawRow, field: str) -> str:
    text = raw.values[field]
    if not isinstance(text, str):
        kind = "" if text is None else f" of type {type(text).__name__}"
        raise ValueError(f"field {field!r}: {shown(text)}{kind} is not a valid text; write a string or remove the row")  # noqa: TRY004
    # Invisible characters alone are no text either.
    if not folded(text[:_MAX_BLANK_CHARACTERS]) and not folded(text):
        raise ValueError(f"field {field!r}: {shown(text)} is not a valid text; fill it in or remove the row")
    return text


def _number(raw: RawRow, field: str) -> float:
    value = raw.values[field]
    try:
        # Numbers of a CSV file are strings.
        is_number = isinstance(value, str | int | float | Decimal) and not isinstance(value, bool)
        number = float(value) if is_number else math.nan  # type: ignore[arg-type]
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"field {field!r}: {shown(value)} is not a finite number; correct it or remove the row")
    return number


def _heads_with_labels(
    config: Config, train: Sequence[Row], fields: Mapping[Source, Collection[str]]
) -> tuple[HeadConfig, ...]:
    """Returns the heads with their labels.

    Raises:
        ConfigError: Heads have no labels to learn; the error lists all of them.
        DataError: There are no training rows.
    """
    if not train:
        raise DataError([Problem(source, 0, "has no rows") for source in config.sources()["train"]])
    names = {name: None for found in fields.values() for name in found}
    heads, errors = [], []
    for index in range(len(config.model.heads)):
        try:
            heads.append(_with_labels(config, index, train, list(names)))
        except ConfigError as error:
            errors.append(error)
    if errors:
        raise ConfigError.combine(errors)
    return tuple(heads)


def _with_labels(config: Config, index: int, train: Sequence[Row], names: Sequence[str]) -> HeadConfig:
    """Returns the head with its labels: the configured ones, or those of the training rows."""
    head = config.model.heads[index]
    found = sorted({row.labels[index] or "" for row in train} - {""})
    if not found:
        others = {config.data.text, *(other.field for other in config.model.heads)}
        hint = did_you_mean(head.field, [name for name in names if name not in others])
        fix = f"{hint} Correct the name or remove the head" if hint else "correct the name or remove the head"
        reason = f"{head.field!r}: no training row has a label in this field; {fix}"
        raise config.error(f"model.heads.{index}.field", reason)
    if head.labels is None and len(found) < 2:
        reason = (
            f"{head.field!r}: all training rows have the label {found[0]!r}; add rows with another, or remove the head"
        )
        raise config.error(f"model.heads.{index}.field", reason)
    if head.labels is not None:
        return head
    if isinstance(head.class_weights, dict) and (unexpected := sorted(head.class_weights.keys() - set(found))):
        hint = did_you_mean(unexpected[0], found)
        reason = f"no training row has the label {unexpected[0]!r}; {hint} the labels are {', '.join(found)}"
        raise config.error(f"model.heads.{index}.class_weights", reason)
    return head.model_copy(update={"labels": tuple(found)})
