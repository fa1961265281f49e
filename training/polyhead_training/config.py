"""The configuration of a training run: one frozen object, read from a TOML file once, at the edge.

::

    CONFIG.toml + --set key=value --read_config--> Config --everything else
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator
from torch import nn

from .errors import ConfigError
from .model import EmbeddingPoolingKind, HeadKind, PolyheadConfig, PoolingKind

PartName = Annotated[str, Field(pattern=r"^(heads|head:.+|pooling|layers:[1-9][0-9]*|embeddings|backbone|all)$")]
# A head's name becomes part of an ONNX output's name and a key of JSON.
HeadName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class HeadConfig(_Section):
    """One answer of the model."""

    name: HeadName
    """Name of the head, in lower case: its output, its metrics and its label are called after it."""
    kind: HeadKind
    """softmax (one label of many) or sigmoid (yes or no)."""
    field: str = ""
    """Field of the data that holds the label; the head's name when absent."""
    labels: tuple[str, ...] | None = None
    """Labels in the order of the logits; a softmax head's are taken from the training data, sorted, when absent.
    A sigmoid head names two: the one of 0, then the one of 1."""
    hidden_size: int | None = Field(default=None, ge=1)
    """Width of the head's hidden layer, in units; the backbone's hidden size when absent."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of the units that dropout zeroes while the head trains, 0 to 1."""
    class_weights: Literal["none", "balanced"] | dict[str, Annotated[float, Field(gt=0)]] = "none"
    """Factor of a row's loss by its label: none (1 for all), balanced (inversely as often as the label occurs in the
    training rows), or a table of labels and factors, 1 for those that it does not name."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread over all labels, 0 to 1."""
    threshold: Annotated[float, Field(gt=0, lt=1)] | Literal["best"] = 0.5
    """Probability from which on a sigmoid head answers its second label; best is the one that gives the highest
    macro-F1 on validation."""

    @model_validator(mode="before")
    @classmethod
    def _field_is_the_name_by_default(cls, values: object) -> object:
        return {"field": values.get("name", ""), **values} if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _labels_fit_the_kind(self) -> Self:
        labels = self.labels
        if self.kind == "sigmoid" and (labels is None or len(labels) != 2):
            raise ValueError(f"kind 'sigmoid' and labels {labels}: name two labels, the one of 0 and the one of 1")
        if labels is not None and (len(labels) < 2 or len(set(labels)) < len(labels) or "" in labels):
            raise ValueError(f"labels {labels}: name at least two, all different, none of them empty")
        if self.kind == "softmax" and self.threshold != 0.5:
            raise ValueError(f"threshold {self.threshold}: a softmax head answers its likeliest label: remove it")
        if isinstance(self.class_weights, dict) and labels is not None:
            for label in self.class_weights:
                if label not in labels:
                    raise ValueError(f"class_weights names the label {label!r}, labels has only {', '.join(labels)}")
        return self


_DEFAULT_HEADS = (
    HeadConfig(name="topic", kind="softmax", field="label"),
    HeadConfig(name="sentiment", kind="sigmoid", labels=("negative", "positive")),
)


class ModelConfig(_Section):
    """The backbone and what stands on it."""

    backbone: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Folder of a checkpoint, relative to the configuration file, or a hub id."""
    revision: str | None = None
    """Revision of the hub id, a commit or a tag; the pinned or newest one when absent."""
    pooling: PoolingKind = "cls_mean"
    """How the heads' features are made from the token vectors: cls, mean or cls_mean."""
    embedding_pooling: EmbeddingPoolingKind = "mean"
    """How the sentence embedding is made from them: cls, mean, or shared (the heads' features)."""
    normalize: bool = True
    """Whether the sentence embedding is scaled to Euclidean length 1."""
    max_tokens: int = Field(default=256, ge=8)
    """Tokens of a text that the model reads, special tokens included; the rest is cut off."""
    heads: tuple[HeadConfig, ...] = Field(default=_DEFAULT_HEADS, min_length=1)
    """The heads, in order."""

    @field_validator("heads")
    @classmethod
    def _names_can_be_told_apart(cls, heads: tuple[HeadConfig, ...]) -> tuple[HeadConfig, ...]:
        names = [head.name for head in heads]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two heads have the name {name!r}: rename one")
            if hasattr(nn.ModuleDict, name):
                raise ValueError(f"a head cannot have the name {name!r}, torch uses it itself: choose another")
        outputs = PolyheadConfig(heads=[{"name": head.name, "kind": head.kind} for head in heads]).output_names()
        if len(set(outputs.values())) < len(heads):
            raise ValueError(f"heads {names}: two would have the same output in a graph: rename the head 'sentiment'")
        return heads


class DataConfig(_Section):
    """The labelled files: .jsonl, .csv (either also .gz) or .parquet; or hub datasets.

    Paths are relative to the configuration file; ``${VARIABLE}`` in one is expanded from the environment. A hub
    dataset is written ``hub:OWNER/NAME[@REVISION][:CONFIGURATION]#SPLIT``.
    """

    train: tuple[str, ...] = Field(min_length=1)
    """Path, or list of paths, of the training rows."""
    validation: tuple[str, ...] = ()
    """Path, or list of paths, of the rows that are evaluated after each epoch; a part of train when absent."""
    test: tuple[str, ...] = ()
    """Path, or list of paths, of the rows that are evaluated at the end."""
    text: str = "text"
    """Field that holds the text."""
    validation_fraction: float | None = Field(default=None, gt=0, lt=1)
    """Share of train that becomes validation when there is no validation file, 0 to 1; 0.1 when absent."""
    similarity: tuple[str, ...] = ()
    """Path, or list of paths, of pairs of texts with a score of how alike they are, as in STS-B: what the sentence
    embedding is worth is measured on them, before and after training."""
    similarity_fields: tuple[str, str, str] = ("a", "b", "score")
    """Fields of similarity that hold the first text, the second text and the score."""
    sampling: Literal["proportional", "temperature", "round_robin"] = "proportional"
    """How often rows of each entry of train come: proportional (every row once an epoch), temperature (an entry of n
    rows in proportion to n ** (1 / sampling_temperature)), round_robin (all entries equally often). An epoch has as
    many rows as train; rows of an entry repeat only after all of its rows came."""
    sampling_temperature: float = Field(default=2.0, ge=1)
    """Temperature of sampling: 1 is proportional, more raises small entries."""

    @field_validator("train", "validation", "test", "similarity", mode="before")
    @classmethod
    def _one_path_is_a_list(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _validation_comes_from_one_place(self) -> Self:
        if self.validation and self.validation_fraction is not None:
            raise ValueError("validation and validation_fraction contradict each other: remove one of them")
        return self


class StageConfig(_Section):
    """Some epochs that train some parts, with a learning rate that warms up and decays of its own."""

    name: str
    """Name of the stage in the metrics and on the terminal."""
    train: tuple[PartName, ...] = Field(min_length=1)
    """Parts that train: heads, head:NAME, pooling, layers:N (the top N), embeddings, backbone, all.
    The rest is frozen."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the training rows."""
    learning_rate: float = Field(gt=0)
    """Highest learning rate of the stage, reached after the warmup."""
    learning_rates: dict[PartName, Annotated[float, Field(gt=0)]] = {}
    """Highest learning rate of single parts of the stage, by part; learning_rate for the others."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor of the learning rate from one layer of the backbone to the one below it; the embeddings are below the
    first layer. 1 for the same everywhere, about 0.9 for 6 layers, 0.95 for 12."""
    unfreeze_over: float = Field(default=0.0, ge=0, le=1)
    """Share of the stage's steps over which its layers join one after the other, from the top, the embeddings last;
    0 lets all of them train from the first step."""


_DEFAULT_STAGES = (
    StageConfig(name="heads", train=("heads",), epochs=1, learning_rate=1e-3),
    StageConfig(name="top", train=("pooling", "heads", "layers:2"), epochs=2, learning_rate=1e-4),
)


class TrainingConfig(_Section):
    """How the model is trained."""

    seed: int = Field(default=0, ge=0)
    """Seed of the heads' first weights, of dropout, of the order of rows and of the validation split."""
    batch_size: int = Field(default=32, ge=1)
    """Texts in one pass of one process."""
    gradient_accumulation: int = Field(default=1, ge=1)
    """Passes of each process in a step."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's weight decay; biases and LayerNorm have none."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Euclidean norm to which a larger gradient is scaled down."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of a stage's steps in which its learning rate rises from 0, 0 to 1."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Number format of the matrix products while training; fp16 needs a GPU."""
    loss_weights: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Factor of a head's loss by the head's name; 1 when absent."""
    loss_weighting: Literal["fixed", "uncertainty"] = "fixed"
    """fixed (loss_weights alone), or uncertainty (a learned factor for each head, Kendall et al., arXiv 1705.07115)."""
    distillation: float = Field(default=0.2, ge=0)
    """Weight of the loss that keeps the sentence embedding where the backbone had it before training, 1 - cosine; it
    counts in stages that train something the embedding is made of. 0 for none."""
    select: Literal["best", "last"] = "best"
    """Which weights the run keeps: those of the epoch with the best mean of the heads' macro-F1 on validation, or the
    last ones."""
    checkpoint_steps: int = Field(default=500, ge=1)
    """Steps between two checkpoints; the end of an epoch and a signal write one as well."""
    trackers: tuple[str, ...] = ()
    """Trackers that the metrics go to besides metrics.jsonl, by accelerate's names: tensorboard, wandb, mlflow, ..."""
    stages: tuple[StageConfig, ...] = _DEFAULT_STAGES
    """The stages, in order; none leaves the whole model as it is, a feature extractor."""

    @field_validator("stages")
    @classmethod
    def _stages_have_their_own_names(cls, stages: tuple[StageConfig, ...]) -> tuple[StageConfig, ...]:
        names = [stage.name for stage in stages]
        if len(set(names)) < len(names):
            raise ValueError(f"names {names}: give each stage its own")
        return stages


class Config(_Section):
    """A training run.

    ``read_config`` makes it; ``source`` then says which file it came from.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the model, and of the run directory when none is given."""
    model: ModelConfig = ModelConfig()
    data: DataConfig
    training: TrainingConfig = TrainingConfig()
    _source: Path = PrivateAttr(default=Path("config"))

    @property
    def source(self) -> Path:
        """The file that the configuration was read from; its folder is what relative paths start at."""
        return self._source

    def error(self, field: str, reason: str) -> ConfigError:
        """An error about one of the fields, to be raised by whoever finds out that it does not fit."""
        return ConfigError(self.source, field, reason)

    def resolve(self, field: str, text: str) -> Path:
        """The path that a field's text means, with ``${VARIABLE}`` expanded, anchored at the file's folder.

        Raises:
            ConfigError: A variable is not set.
        """

        def value(match: re.Match[str]) -> str:
            if match[1] not in os.environ:
                raise self.error(field, f"{text!r} needs the environment variable {match[1]}, which is not set: set it")
            return os.environ[match[1]]

        return self.source.parent / re.sub(r"\$\{(\w+)\}", value, text)

    @model_validator(mode="after")
    def _heads_exist(self) -> Self:
        names = {head.name for head in self.model.heads}
        asked = {f"training.loss_weights.{name}": name for name in self.training.loss_weights}
        for index, stage in enumerate(self.training.stages):
            parts = [part for part in (*stage.train, *stage.learning_rates) if part.startswith("head:")]
            asked |= {f"training.stages.{index}.train": part.removeprefix("head:") for part in parts}
        for field, name in asked.items():
            if name not in names:
                raise ValueError(f"{field} names the head {name!r}, model.heads has only {', '.join(sorted(names))}")
        return self

    @model_validator(mode="after")
    def _fields_hold_one_thing(self) -> Self:
        fields = [head.field for head in self.model.heads]
        if self.data.text in fields:
            raise ValueError(
                f"data.text and a head's field are both {self.data.text!r}: the text cannot be its own label"
            )
        return self
