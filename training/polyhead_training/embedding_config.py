"""Sections of the training configuration about the sentence embedding as a task: its training data and evaluation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from .config_section import Section, one_path_is_a_list, require
from .suggestions import spelling_hint

EmbeddingKind = Literal["scored_pairs", "pairs", "triplets"]
EmbeddingLoss = Literal["cosent", "cosine", "ranking", "symmetric_ranking"]
# Data fields of each kind, in the order of the text columns, then the score.
DEFAULT_FIELDS: Mapping[EmbeddingKind, tuple[str, ...]] = {
    "scored_pairs": ("a", "b", "score"),
    "pairs": ("a", "b"),
    "triplets": ("anchor", "positive", "negative"),
}
# Losses of each kind, the default first.
LOSSES: Mapping[EmbeddingKind, tuple[EmbeddingLoss, ...]] = {
    "scored_pairs": ("cosent", "cosine"),
    "pairs": ("ranking", "symmetric_ranking"),
    "triplets": ("ranking", "symmetric_ranking"),
}
# The name of a source becomes a key of the metrics.
SourceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class EmbeddingSourceConfig(Section):
    """A source of texts that train the sentence embedding, in the formats of the labelled data.

    Paths are relative to the configuration file.
    """

    files: tuple[str, ...] = Field(min_length=1)
    """Path or list of paths."""
    kind: EmbeddingKind
    """Content of a row: scored_pairs (two texts and their similarity), pairs (two texts that belong together), triplets
    (an anchor, a text that belongs to it, and one that does not)."""
    name: SourceName | None = None
    """Name of the source in metrics and messages. Default: that of its first file, without its extension."""
    fields: tuple[str, ...] = ()
    """Data fields of the texts, and of the score. Default by kind: a, b, score; a, b; anchor, positive, negative."""
    loss: EmbeddingLoss | None = None
    """cosent (the order of the cosines follows that of the scores), cosine (the cosine equals the score), ranking (the
    anchor is closer to its positive than to the other texts of the batch), symmetric_ranking (also, the positive is
    closer to its anchor than to the other anchors). Default: cosent for scored_pairs, ranking for pairs and
    triplets."""
    weight: float = Field(default=1.0, gt=0)
    """Weight of the source's loss."""
    batch_size: int | None = Field(default=None, ge=2)
    """Rows per optimizer step, over all processes. More rows give ranking more texts to compare with; they cost no
    memory, as gradients are cached. Default: as many as labelled rows."""
    prompts: tuple[str, ...] = ()
    """Name of the prompt of each text field, one of model.prompts or an empty string. Default: no prompts."""
    score_range: tuple[float, float] | None = None
    """Lowest and highest score that a row may have; the loss cosine maps them to the cosines 0 and 1. Default: the
    lowest and the highest score of the source."""

    _files_are_a_list = field_validator("files", mode="before")(one_path_is_a_list)

    @property
    def text_fields(self) -> tuple[str, ...]:
        """Data fields of the texts, in order."""
        return self.all_fields[: 2 if self.kind == "scored_pairs" else None]

    @property
    def all_fields(self) -> tuple[str, ...]:
        """Data fields of the texts, then that of the score, if any."""
        return self.fields or DEFAULT_FIELDS[self.kind]

    @property
    def objective(self) -> EmbeddingLoss:
        """The loss, with its default filled in."""
        return self.loss or LOSSES[self.kind][0]

    @model_validator(mode="after")
    def _settings_fit_the_kind(self) -> Self:
        reasons = []
        expected = len(DEFAULT_FIELDS[self.kind])
        if len(self.all_fields) != expected or len(set(self.all_fields)) != expected:
            names = ", ".join(DEFAULT_FIELDS[self.kind])
            reasons.append(
                f"fields {list(self.fields)}: kind {self.kind!r} requires {expected} different ones: {names}"
            )
        if self.objective not in LOSSES[self.kind]:
            allowed = " or ".join(map(repr, LOSSES[self.kind]))
            reasons.append(f"loss {self.loss!r} does not apply to kind {self.kind!r}: use {allowed}")
        if self.prompts and len(self.prompts) != len(self.text_fields):
            count = len(self.text_fields)
            reasons.append(f"prompts {list(self.prompts)}: name {count}, one for each text field, '' for none")
        if self.score_range is not None:
            if self.kind != "scored_pairs":
                reasons.append(f"score_range applies to kind 'scored_pairs' alone, not {self.kind!r}: remove it")
            elif not self.score_range[0] < self.score_range[1]:
                reasons.append(f"score_range {list(self.score_range)}: the first value must be below the second")
        return require(self, reasons)


class RetrievalConfig(Section):
    """A retrieval task: documents, queries, and which documents are relevant to which query.

    Files have the formats of the labelled data; paths are relative to the configuration file.
    """

    corpus: tuple[str, ...] = Field(min_length=1)
    """Path or list of paths of the documents, with the fields id, text and optionally title."""
    queries: tuple[str, ...] = Field(min_length=1)
    """Path or list of paths of the queries, with the fields id and text."""
    qrels: tuple[str, ...] = Field(min_length=1)
    """Path or list of paths of the relevance judgements, with the fields query and doc (ids) and score (above 0 for a
    relevant document). A document without a judgement is not relevant."""
    name: SourceName | None = None
    """Name of the task in the evaluation. Default: that of the first corpus file, without ``_corpus`` and extension."""
    split: str | None = None
    """Value of the field split of the queries to evaluate. Default: every query."""
    prompts: tuple[str, ...] = ()
    """Names of the prompts of the queries and of the documents, from model.prompts or an empty string. Default: no
    prompts."""

    @field_validator("prompts")
    @classmethod
    def _prompts_are_two(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        if prompts and len(prompts) != 2:
            raise ValueError(f"prompts {list(prompts)}: name two, of the queries and of the documents, '' for none")
        return prompts

    _files_are_lists = field_validator("corpus", "queries", "qrels", mode="before")(one_path_is_a_list)


def source_names(sources: tuple[EmbeddingSourceConfig, ...]) -> list[str]:
    """Returns a different name of each source of training data."""
    return _distinct([source.name or _stem(source.files[0]) for source in sources])


def task_names(tasks: tuple[RetrievalConfig, ...]) -> list[str]:
    """Returns a different name of each retrieval task."""
    return _distinct([task.name or _stem(task.corpus[0]).removesuffix("_corpus") for task in tasks])


def faults_of_embedding(
    sources: Sequence[EmbeddingSourceConfig], tasks: Sequence[RetrievalConfig], prompts: Mapping[str, str]
) -> Iterator[str]:
    """Yields a reason for each prompt of a source or a task that ``model.prompts`` lacks."""
    sections: Mapping[str, Sequence[EmbeddingSourceConfig | RetrievalConfig]]
    sections = {"embedding": sources, "retrieval": tasks}
    for section, parts in sections.items():
        for index, part in enumerate(parts):
            for name in part.prompts:
                if name and name not in prompts:
                    known = f"model.prompts has only {', '.join(prompts)}" if prompts else "model.prompts is empty"
                    field = f"data.{section}.{index}.prompts"
                    yield f"{field} names {name!r}, but {known}{spelling_hint(name, prompts)}"


def _stem(path: str) -> str:
    """Returns the name of a file without its folder and extensions; of a hub dataset, its name without the owner."""
    return re.split(r"[#@.:]", path.rpartition("/")[2])[0] or "source"


def _distinct(names: list[str]) -> list[str]:
    """Appends the place of each name that occurs several times, and again while that is the name of another."""
    found: list[str] = []
    for number, name in enumerate(names, start=1):
        new = name
        while names.count(new) > (new == name) or new in found:
            new = f"{new}-{number}"
        found.append(new)
    return found
