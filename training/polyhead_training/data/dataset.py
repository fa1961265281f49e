"""Labelled rows for training, validation and test. An invalid row is an error; no row is dropped silently.

::

    files, hub datasets --row_reader.RowReader--> RawRow --targets.read_target--> Row --split_rows--> Data
                                                         ----------------------> Pair -------------->
                                                         --embedding_data, retrieval_data--> sources, tasks -->
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from polyhead_rows import Problem, RawRow

from polyhead_training.config import Config
from polyhead_training.errors import ConfigError, DataError
from polyhead_training.model_config import HeadConfig
from polyhead_training.suggestions import did_you_mean

from .collected import META, TEXT, Collected, CollectedRows, hold_out, is_selected, named_as_configured, read_collected
from .embedding_data import EmbeddingSource, read_embedding
from .readers import Source
from .retrieval_data import RetrievalTask, read_retrieval
from .row_reader import RowReader, read_number, read_text
from .splitting import split_rows
from .targets import Target, label_numbers, read_target, target_labels

_DEFAULT_VALIDATION_FRACTION = 0.1
# Field names of a source that are remembered, for suggestions.
_MAX_FIELDS = 1000
# Characters of a row's text in a message.
_MAX_SHOWN_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class Row:
    """A labelled text.

    Attributes:
        text: The text, not empty.
        labels: For each head, in order, the true answer: the name of a label, those of several labels, or a number;
            None for a row without one.
        path: The file that contains the row, or the hub dataset under its name in the configuration.
        line: Line of the file on which the row begins, or row of a Parquet file or hub dataset, counted from 1.
        source: Index of the row's source in ``data.train``; 0 in the other splits.
        collected: What a server wrote about the row; None for a row that none has collected.
    """

    text: str
    labels: tuple[Target | None, ...]
    path: Path
    line: int
    source: int
    collected: Collected | None = None

    @property
    def location(self) -> str:
        """File and line."""
        return f"{self.path}:{self.line}"

    @property
    def excerpt(self) -> str:
        """Location and beginning of the text, for a message."""
        text = self.text if len(self.text) <= _MAX_SHOWN_CHARACTERS else self.text[:_MAX_SHOWN_CHARACTERS] + "..."
        return f"{self.location}: {text!r}"


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
        empty: The splits, and the pairs of similarity, that the configuration names sources for, but that have no rows.
        embedding: Sources of texts that train the sentence embedding.
        retrieval: Retrieval tasks for evaluation of the sentence embedding.
        collected: The rows that a server has collected, some of which are held out of ``train``; None without any.
    """

    heads: tuple[HeadConfig, ...]
    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    test: tuple[Row, ...]
    similarity: tuple[Pair, ...]
    fields: Mapping[Source, tuple[str, ...]]
    empty: tuple[str, ...] = ()
    embedding: tuple[EmbeddingSource, ...] = ()
    retrieval: tuple[RetrievalTask, ...] = ()
    collected: CollectedRows | None = None

    def rows_sha256(self) -> str:
        """Computes the hash of the texts and answers of all labelled rows."""
        rows = [(row.text, row.labels) for part in (self.train, self.validation, self.test) for row in part]
        return hashlib.sha256(repr(rows).encode("utf-8", "surrogatepass")).hexdigest()


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
    train = reader.labelled_rows(sources["train"], text, config.model.heads, is_train=True)
    try:
        heads = _heads_with_labels(config, train, reader.fields)
    except (ConfigError, DataError):
        # Invalid rows may be the ones that contain the labels, so report them first.
        reader.raise_problems()
        raise
    validation = reader.labelled_rows(sources["validation"], text, heads)
    test = reader.labelled_rows(sources["test"], text, heads)
    similarity = reader.pairs(sources["similarity"], config.data.similarity_fields)
    embedding = read_embedding(config, sources, reader)
    retrieval = read_retrieval(config, sources, reader)
    reader.raise_problems()
    train, collected = hold_out(train, test, reader.unlabelled, config.data.collected_holdout)
    empty = []
    if heads and not sources["validation"]:
        fraction = config.data.validation_fraction
        fraction = _DEFAULT_VALIDATION_FRACTION if fraction is None else fraction
        # Texts that were chosen because the model is unsure of them would spoil what is fitted on validation.
        _, validation = split_rows([row for row in train if not is_selected(row)], fraction, config.training.seed)
        taken = set(map(id, validation))
        train = [row for row in train if id(row) not in taken]
    if heads and not validation:
        empty.append("validation")
    if sources["test"] and not test:
        empty.append("test")
    if sources["similarity"] and not similarity:
        empty.append("similarity")
    fields = {source: tuple(names) for source, names in reader.fields.items()}
    return Data(
        heads,
        tuple(train),
        tuple(validation),
        tuple(test),
        tuple(similarity),
        fields,
        tuple(empty),
        tuple(embedding),
        tuple(retrieval),
        collected,
    )


def read_labelled(
    paths: Sequence[Source], text: str, heads: Sequence[HeadConfig], setting: str = "data.text"
) -> list[Row]:
    """Reads labelled files for heads with known labels.

    Args:
        paths: The files.
        text: Field that contains the text.
        heads: The heads with their labels.
        setting: What a user changes to name another field for the text.

    Raises:
        DataError: Rows are invalid; the error counts those of all files and lists the first 100.
    """
    reader = _Reader()
    rows = reader.rows(paths, text, heads, setting=setting)
    reader.raise_problems()
    return rows


class _Reader(RowReader):
    """Reads sources one after the other and collects their problems."""

    def __init__(self) -> None:
        super().__init__()
        self.fields: dict[Source, dict[str, None]] = {}
        # Number of collected rows without a label.
        self.unlabelled = 0

    def rows(
        self,
        sources: Sequence[Source],
        text_field: str,
        heads: Sequence[HeadConfig],
        *,
        is_train: bool = False,
        setting: str = "data.text",
    ) -> list[Row]:
        def make(raw: RawRow, source: int) -> Row:
            names = self.fields[raw.path]
            if len(names) < _MAX_FIELDS:
                names.update(dict.fromkeys(raw.names))
            text = read_text(raw, text_field)
            labels = tuple(read_target(head, raw.values.get(head.field)) for head in heads)
            return Row(text, labels, raw.path, raw.line, source if is_train else 0, read_collected(raw))

        for source in sources:
            self.fields.setdefault(source, {})
        names = [name for head in heads for name in (head.field, head.name)]
        return self.read(
            sources,
            {text_field: setting},
            make,
            [*names, META, TEXT],
            lambda raw: named_as_configured(raw, text_field, heads),
        )

    def labelled_rows(
        self, sources: Sequence[Source], text_field: str, heads: Sequence[HeadConfig], *, is_train: bool = False
    ) -> list[Row]:
        """Reads rows without the collected ones that have no label, which are only counted."""
        rows = self.rows(sources, text_field, heads, is_train=is_train)
        kept = [row for row in rows if not row.collected or any(answer is not None for answer in row.labels)]
        self.unlabelled += len(rows) - len(kept)
        return kept

    def pairs(self, sources: Sequence[Source], fields: tuple[str, str, str]) -> list[Pair]:
        first, second, score = fields

        def make(raw: RawRow, _: int) -> Pair:
            return Pair(read_text(raw, first), read_text(raw, second), read_number(raw, score))

        return self.read(sources, dict.fromkeys(fields, "data.similarity_fields"), make)


def _heads_with_labels(
    config: Config, train: Sequence[Row], fields: Mapping[Source, Collection[str]]
) -> tuple[HeadConfig, ...]:
    """Returns the heads with their labels.

    Raises:
        ConfigError: Heads have no labels to learn; the error lists all of them.
        DataError: There are no training rows.
    """
    if config.model.heads and not config.data.train:
        fix = "name the files with labelled rows, or set model.heads = [] to train the embedding alone"
        raise config.error("data.train", f"is missing: {fix}")
    if config.model.heads and not train:
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
    answers = {row.labels[index]: row for row in reversed(train) if row.labels[index] is not None}
    if not answers:
        others = {config.data.text, *(other.field for other in config.model.heads)}
        hint = did_you_mean(head.field, [name for name in names if name not in others])
        fix = f"{hint} Correct the name or remove the head" if hint else "correct the name or remove the head"
        reason = f"{head.field!r}: no training row has a label in this field; {fix}"
        raise config.error(f"model.heads.{index}.field", reason)
    if len(answers) < 2:
        ((answer, row),) = answers.items()
        kind = {"multilabel": "labels", "regression": "number"}.get(head.kind, "label")
        shown_answer = list(answer) if isinstance(answer, tuple) else answer
        reason = f"{head.field!r}: all training rows have the {kind} {shown_answer!r} (first: {row.location})"
        raise config.error(f"model.heads.{index}.field", f"{reason}; add rows with another, or remove the head")
    if head.kind == "ordinal" and head.labels is not None:
        numbers = label_numbers(head.labels) or []
        if len(set(numbers)) < len(numbers):
            reason = f"{', '.join(head.labels)}: two of them are the same number; remove one"
            raise config.error(f"model.heads.{index}.labels", reason)
    if head.labels is not None or head.kind == "regression":
        return head
    return _with_found_labels(config, index, sorted({label for answer in answers for label in target_labels(answer)}))


def _with_found_labels(config: Config, index: int, found: list[str]) -> HeadConfig:
    """Returns the head with the sorted labels of the training rows; those of an ordinal head are sorted as numbers."""
    head = config.model.heads[index]
    if len(found) < 2:
        fix = "name all labels in labels, add rows with another, or use a sigmoid head"
        reason = f"{head.field!r}: the lists of the training rows name a single label, {found[0]!r}; {fix}"
        raise config.error(f"model.heads.{index}.field", reason)
    if isinstance(head.class_weights, dict) and (unexpected := sorted(head.class_weights.keys() - set(found))):
        hint = did_you_mean(unexpected[0], found)
        reason = f"no training row has the label {unexpected[0]!r}; {hint} the labels are {', '.join(found)}"
        raise config.error(f"model.heads.{index}.class_weights", reason)
    if head.kind == "ordinal":
        found = [label for _, label in sorted(zip(label_numbers(found) or [], found, strict=True))]
    return head.model_copy(update={"labels": tuple(found)})
