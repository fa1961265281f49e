"""Configuration of a training run: one frozen object, read once from a TOML file and passed down.

::

    CONFIG.toml + --set key=value --read_config--> Config --> every other module
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, PrivateAttr, field_validator, model_validator

from .abstain_config import AbstainConfig
from .config_section import Section, one_path_is_a_list, require
from .embedding_config import EmbeddingSourceConfig, RetrievalConfig, faults_of_embedding
from .errors import ConfigError
from .model_config import DEFAULT_HEADS, ModelConfig
from .model_types import ABSTAINING_KINDS
from .recipes import contradictions, with_recipe
from .suggestions import did_you_mean, spelling_hint
from .training_config import TrainingConfig

# Prefix of the names of hub datasets among the sources of rows.
HUB_PREFIX = "hub:"


class DataConfig(Section):
    """The labelled data: .jsonl, .csv (either optionally .gz) or .parquet files, or hub datasets.

    Paths are relative to the configuration file; ``${VARIABLE}`` in a path is expanded from the environment. The name
    of a hub dataset has the form ``hub:OWNER/NAME[@REVISION][:CONFIGURATION]#SPLIT``.
    """

    train: tuple[str, ...] = ()
    """Path or list of paths of the training rows. Required unless model.heads is empty."""
    validation: tuple[str, ...] = ()
    """Path or list of paths of the rows for evaluation after each epoch. Default: a random part of train."""
    test: tuple[str, ...] = ()
    """Path or list of paths of the rows for evaluation at the end of the run."""
    text: str = "text"
    """Data field that contains the text."""
    prompt: str | None = None
    """Name of the prompt in model.prompts that is put before the text of every labelled row. Default: none."""
    validation_fraction: float | None = Field(default=None, ge=0, lt=1)
    """Share of train that becomes validation when validation is not set, 0 to 1; with 0, every row trains and nothing
    is measured on validation. Default: 0.1."""
    collected_holdout: float = Field(default=0.2, ge=0, lt=1)
    """Share of the labelled random texts of polyhead-serve --collect that is held out from training, 0 to 1: the report
    compares the model on them with the one that served."""
    similarity: tuple[str, ...] = ()
    """Path or list of paths of text pairs with a similarity score, as in STS-B. The sentence embedding is evaluated on
    them before and after training."""
    similarity_fields: tuple[str, str, str] = ("a", "b", "score")
    """Data fields of similarity that contain the first text, the second text and the score."""
    embedding: tuple[EmbeddingSourceConfig, ...] = ()
    """Sources of texts that train the sentence embedding."""
    retrieval: tuple[RetrievalConfig, ...] = ()
    """Retrieval tasks on which the sentence embedding is evaluated before and after training."""
    sampling: Literal["proportional", "temperature", "round_robin"] = "proportional"
    """How often rows of each source in train occur: proportional (every row once per epoch), temperature (a source of
    n rows in proportion to n ** (1 / sampling_temperature)), round_robin (every source equally often). An epoch has as
    many rows as train; rows of a source repeat only after all of its rows have occurred. The same rule applies to the
    sources of embedding, among themselves."""
    sampling_temperature: float = Field(default=2.0, ge=1)
    """Temperature of temperature sampling: 1 equals proportional; higher values favor small sources."""

    _paths_are_lists = field_validator("train", "validation", "test", "similarity", mode="before")(one_path_is_a_list)

    @model_validator(mode="after")
    def _validation_comes_from_one_place(self) -> Self:
        if self.validation and self.validation_fraction is not None:
            raise ValueError("validation and validation_fraction contradict each other: remove one of them")
        return self


class Config(Section):
    """The name of the model and the sections of the file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the model, and of the run directory unless --output-dir is given."""
    model: ModelConfig = ModelConfig()
    """Backbone, pooling and heads."""
    data: DataConfig
    """Files with labelled rows, and how they are sampled."""
    training: TrainingConfig = TrainingConfig()
    """Hyperparameters and stages."""
    _source: Path = PrivateAttr(default=Path("config"))
    _line_of: Callable[[str], int] | None = PrivateAttr(default=None)

    @property
    def source(self) -> Path:
        """The configuration file. Relative paths start at its folder."""
        return self._source

    def error(self, field: str, reason: str) -> ConfigError:
        """Builds an error about a field, for code that finds it inconsistent with the data or the backbone."""
        return ConfigError(self.source, field, reason, line=self._line_of(field) if self._line_of else 0)

    @property
    def prefix(self) -> str:
        """Text that is put before the text of every labelled row."""
        return "" if self.data.prompt is None else self.model.prompts[self.data.prompt]

    @property
    def abstentions(self) -> dict[str, AbstainConfig]:
        """What each head that abstains promises, by head name."""
        heads = [head for head in self.model.heads if head.kind in ABSTAINING_KINDS]
        found = {head.name: head.abstain or self.training.heads.abstain for head in heads}
        return {name: promise for name, promise in found.items() if promise is not None}

    @property
    def set_coverages(self) -> dict[str, float]:
        """Coverage of the prediction sets of each head that has them, by head name."""
        heads = [head for head in self.model.heads if head.kind == "softmax"]
        found = {head.name: head.prediction_sets or self.training.heads.prediction_sets for head in heads}
        return {name: one.coverage for name, one in found.items() if one is not None}

    def resolve(self, field: str, text: str) -> Path:
        """Resolves the path in a field: expands ``${VARIABLE}`` and anchors it at the configuration file's folder.

        Raises:
            ConfigError: Variables are not set.
        """
        unset = [name for name in re.findall(r"\$\{(\w+)\}", text) if name not in os.environ]
        if unset:
            names = " and ".join(dict.fromkeys(unset))
            raise self.error(field, f"{text!r} requires the environment variable {names}, which is not set")
        return self.source.parent / re.sub(r"\$\{(\w+)\}", lambda match: os.environ[match[1]], text)

    def sources(self) -> dict[str, list[Path]]:
        """Returns the files and hub datasets with rows, by field of the section ``data``.

        Raises:
            ConfigError: Variables in paths are not set, or files do not exist; the error lists all of them.
        """
        found: dict[str, list[Path]] = {}
        errors = []
        for field, texts in self._paths():
            found[field] = []
            for text in texts:
                try:
                    found[field].append(self._existing(f"data.{field}", text))
                except ConfigError as error:
                    errors.append(error)
        if errors:
            raise ConfigError.combine(errors)
        return found

    def _paths(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        for field in ("train", "validation", "test", "similarity"):
            yield field, getattr(self.data, field)
        for index, source in enumerate(self.data.embedding):
            yield f"embedding.{index}.files", source.files
        for index, task in enumerate(self.data.retrieval):
            for field in ("corpus", "queries", "qrels"):
                yield f"retrieval.{index}.{field}", getattr(task, field)

    def _existing(self, field: str, text: str) -> Path:
        if text.startswith(HUB_PREFIX):
            return Path(text)
        path = self.resolve(field, text)
        if path.is_dir():
            raise self.error(field, f"{path} is a folder: name the files in it")
        if not path.exists():
            siblings = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
            hint = did_you_mean(path.name, siblings) or "paths are relative to the configuration file"
            raise self.error(field, f"the file {path} does not exist; {hint}")
        return path

    def _doubt_faults(self) -> Iterator[str]:
        kinds = {head.kind for head in self.model.heads}
        for name, able, listed in (
            ("abstain", ABSTAINING_KINDS, "softmax, sigmoid or ordinal"),
            ("prediction_sets", {"softmax"}, "softmax"),
        ):
            if getattr(self.training.heads, name) and kinds.isdisjoint(able):
                yield f"training.heads.{name} has no effect: no head is {listed}; remove it"

    @model_validator(mode="before")
    @classmethod
    def _recipe_fills_defaults(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        require(values, contradictions(values))
        heads = [head.model_dump(exclude_unset=True) for head in DEFAULT_HEADS]
        return with_recipe(values, heads)

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        names = sorted(head.name for head in self.model.heads)
        references = [(f"training.loss_weights.{name}", name) for name in self.training.loss_weights]
        for index, stage in enumerate(self.training.stages):
            for field, parts in (("train", stage.train), ("learning_rates", stage.learning_rates)):
                heads = [part.removeprefix("head:") for part in parts if part.startswith("head:")]
                references += [(f"training.stages.{index}.{field}", name) for name in heads]
        reasons = []
        prompt, prompts = self.data.prompt, sorted(self.model.prompts)
        if prompt is not None and prompt not in prompts:
            known = f"only {', '.join(prompts)}" if prompts else "none"
            hint = spelling_hint(prompt, prompts)
            reasons.append(f"data.prompt is {prompt!r}, but model.prompts has {known}{hint}")
        for field, name in references:
            if name not in names:
                known = f"model.heads has only {', '.join(names)}" if names else "model.heads is empty"
                reasons.append(f"{field} refers to head {name!r}, but {known}{spelling_hint(name, names)}")
        reasons += self._doubt_faults()
        if self.data.text in [head.field for head in self.model.heads]:
            reasons.append(f"data.text and a head's field are both {self.data.text!r}: they must differ")
        if not names and (self.data.train or self.data.validation or self.data.test):
            reasons.append("data has labelled rows, but model.heads is empty: remove train, validation and test")
        reasons += faults_of_embedding(self.data.embedding, self.data.retrieval, self.model.prompts)
        if self.training.matryoshka and not self.data.embedding:
            reasons.append("training.matryoshka applies to data.embedding, which is empty: remove it")
        return require(self, reasons)
