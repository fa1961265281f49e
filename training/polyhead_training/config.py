"""Configuration of a training run: one frozen object, read once from a TOML file and passed down.

::

    CONFIG.toml + --set key=value --read_config--> Config --> every other module
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from .errors import ConfigError
from .model_types import RESERVED_HEAD_NAMES, EmbeddingPoolingKind, HeadKind, PoolingKind, output_names
from .suggestions import did_you_mean, folded

PartName = Annotated[str, Field(pattern=r"^(heads|head:.+|pooling|layers:[1-9][0-9]*|embeddings|backbone|all)$")]
# Prefix of the names of hub datasets among the sources of rows.
HUB_PREFIX = "hub:"
# The name of a head becomes part of an ONNX output name and a JSON key.
HeadName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


_Value = TypeVar("_Value")


def _require(value: _Value, reasons: Sequence[str]) -> _Value:
    """Returns a valid value.

    Raises:
        ValueError: There are reasons against it, one per line of the message.
    """
    if reasons:
        raise ValueError("\n".join(reasons))
    return value


class HeadConfig(_Section):
    """A classification head."""

    name: HeadName
    """Name of the head, in lower case; its ONNX output and its metrics carry this name."""
    kind: HeadKind
    """softmax (one of several labels) or sigmoid (binary)."""
    field: str = ""
    """Data field that contains the label. Default: the head's name."""
    labels: tuple[str, ...] | None = None
    """Labels in the order of the logits. Default for a softmax head: the sorted labels of the training data. A sigmoid
    head requires two: the label for 0, then the label for 1."""
    hidden_size: int | None = Field(default=None, ge=1)
    """Width of the head's hidden layer, in units. Default: the backbone's hidden size."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout probability while the head trains, 0 to 1."""
    class_weights: Literal["none", "balanced"] | dict[str, Annotated[float, Field(gt=0)]] = "none"
    """Weight of a row's loss by its label: none (1 for every label), balanced (inversely proportional to the label's
    frequency in the training rows), or a table of labels and weights (1 for labels that it omits)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target probability that is spread evenly over all labels, 0 to 1."""
    threshold: Annotated[float, Field(gt=0, lt=1)] | Literal["best"] = 0.5
    """Minimum probability at which a sigmoid head predicts its second label; best selects the threshold with the
    highest macro-F1 on validation."""

    @model_validator(mode="before")
    @classmethod
    def _field_is_the_name_by_default(cls, values: object) -> object:
        return {"field": values.get("name", ""), **values} if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _labels_fit_the_kind(self) -> Self:
        labels = self.labels
        reasons = []
        if self.kind == "sigmoid" and (labels is None or len(labels) != 2):
            reasons.append(f"kind 'sigmoid' and labels {labels}: name two labels, the label for 0 and the label for 1")
        elif labels is not None and (len(labels) < 2 or len(set(labels)) < len(labels) or not all(map(folded, labels))):
            reasons.append(f"labels {labels}: a head requires at least two labels, all different, none of them blank")
        if self.kind == "softmax" and self.threshold != 0.5:
            reasons.append(
                f"threshold {self.threshold}: a softmax head predicts its most probable label: remove threshold"
            )
        if isinstance(self.class_weights, dict) and labels is not None:
            for label in self.class_weights:
                if label not in labels:
                    hint = did_you_mean(label, labels)
                    known = f"labels has only {', '.join(labels)}{'; ' if hint else ''}{hint}"
                    reasons.append(f"class_weights has the label {label!r}, but {known}")
        return _require(self, reasons)


_DEFAULT_HEADS = (
    HeadConfig(name="topic", kind="softmax", field="label"),
    HeadConfig(name="sentiment", kind="sigmoid", labels=("negative", "positive")),
)


class ModelConfig(_Section):
    """The backbone, the pooling and the heads."""

    backbone: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Folder of a checkpoint, relative to the configuration file, or a Hugging Face hub id."""
    revision: str | None = None
    """Revision of the hub id, a commit or a tag. Default: the pinned revision of a known id, else the newest."""
    pooling: PoolingKind = "cls_mean"
    """Pooling of the token vectors into the heads' features: cls, mean or cls_mean."""
    embedding_pooling: EmbeddingPoolingKind = "mean"
    """Pooling of the token vectors into the sentence embedding: cls, mean, or shared (the heads' features)."""
    normalize: bool = True
    """Whether to scale the sentence embedding to Euclidean length 1."""
    max_tokens: int = Field(default=256, ge=8)
    """Maximum tokens per text, special tokens included; longer texts are truncated."""
    heads: tuple[HeadConfig, ...] = Field(default=_DEFAULT_HEADS, min_length=1)
    """The heads, in order."""

    @field_validator("heads")
    @classmethod
    def _names_are_distinct(cls, heads: tuple[HeadConfig, ...]) -> tuple[HeadConfig, ...]:
        names = [head.name for head in heads]
        reasons = [
            f"two heads have the name {name!r}: rename one" for name in sorted(set(names)) if names.count(name) > 1
        ]
        reasons += [
            f"{name!r} is not a valid name of a head: torch reserves it; choose another"
            for name in names
            if name in RESERVED_HEAD_NAMES
        ]
        outputs = output_names((head.name, head.kind) for head in heads)
        if len(set(outputs.values())) < len(set(names)):
            reasons.append(f"heads {names}: two of them would share an ONNX output name: rename the head 'sentiment'")
        return _require(heads, reasons)


class DataConfig(_Section):
    """The labelled data: .jsonl, .csv (either optionally .gz) or .parquet files, or hub datasets.

    Paths are relative to the configuration file; ``${VARIABLE}`` in a path is expanded from the environment. The name
    of a hub dataset has the form ``hub:OWNER/NAME[@REVISION][:CONFIGURATION]#SPLIT``.
    """

    train: tuple[str, ...] = Field(min_length=1)
    """Path or list of paths of the training rows."""
    validation: tuple[str, ...] = ()
    """Path or list of paths of the rows for evaluation after each epoch. Default: a random part of train."""
    test: tuple[str, ...] = ()
    """Path or list of paths of the rows for evaluation at the end of the run."""
    text: str = "text"
    """Data field that contains the text."""
    validation_fraction: float | None = Field(default=None, gt=0, lt=1)
    """Share of train that becomes validation when validation is not set, 0 to 1. Default: 0.1."""
    similarity: tuple[str, ...] = ()
    """Path or list of paths of text pairs with a similarity score, as in STS-B. The sentence embedding is evaluated on
    them before and after training."""
    similarity_fields: tuple[str, str, str] = ("a", "b", "score")
    """Data fields of similarity that contain the first text, the second text and the score."""
    sampling: Literal["proportional", "temperature", "round_robin"] = "proportional"
    """How often rows of each source in train occur: proportional (every row once per epoch), temperature (a source of
    n rows in proportion to n ** (1 / sampling_temperature)), round_robin (every source equally often). An epoch has as
    many rows as train; rows of a source repeat only after all of its rows have occurred."""
    sampling_temperature: float = Field(default=2.0, ge=1)
    """Temperature of temperature sampling: 1 equals proportional; higher values favor small sources."""

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
    """A training stage: some epochs that train some parts, with its own learning-rate schedule."""

    name: str
    """Name of the stage in metrics and messages."""
    train: tuple[PartName, ...] = Field(min_length=1)
    """Parts to train: heads, head:NAME, pooling, layers:N (the top N), embeddings, backbone, all. Every other part is
    frozen."""
    epochs: int = Field(default=1, ge=1)
    """Number of epochs over the training rows."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate of the stage, reached at the end of the warmup."""
    learning_rates: dict[PartName, Annotated[float, Field(gt=0)]] = {}
    """Peak learning rates of individual parts, by part. Default: learning_rate."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor of the learning rate from each backbone layer to the one below it; the embeddings are below the first
    layer. 1 trains every layer at the same rate; 0.9 suits 6 layers, 0.95 suits 12."""
    unfreeze_over: float = Field(default=0.0, ge=0, le=1)
    """Share of the stage's steps over which its layers are unfrozen one after the other, from the top, the embeddings
    last; 0 trains all of them from the first step."""


_DEFAULT_STAGES = (
    StageConfig(name="heads", train=("heads",), epochs=1, learning_rate=1e-3),
    StageConfig(name="top", train=("pooling", "heads", "layers:2"), epochs=2, learning_rate=1e-4),
)


class TrainingConfig(_Section):
    """Training hyperparameters."""

    seed: int = Field(default=0, ge=0)
    """Seed of the heads' initial weights, of dropout, of the order of the rows and of the validation split."""
    batch_size: int = Field(default=32, ge=1)
    """Texts per forward pass of a process."""
    gradient_accumulation: int = Field(default=1, ge=1)
    """Forward and backward passes of each process per optimizer step."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Weight decay of AdamW; biases and LayerNorm are exempt."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Maximum Euclidean norm of the gradient; larger gradients are scaled down to it."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of a stage's steps in which its learning rate rises linearly, 0 to 1."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Number format of matrix products during training; fp16 requires a GPU."""
    loss_weights: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Weight of a head's loss, by head name. Default: 1."""
    loss_weighting: Literal["fixed", "uncertainty"] = "fixed"
    """fixed (loss_weights only), or uncertainty (a learned weight per head, Kendall et al., arXiv 1705.07115)."""
    distillation: float = Field(default=0.2, ge=0)
    """Weight of the distillation loss, 1 - cosine between the sentence embedding and the backbone's embedding before
    training. It applies in stages that train parts of the embedding; 0 disables it."""
    select: Literal["best", "last"] = "best"
    """Weights that the run keeps: best (of the epoch with the highest mean macro-F1 of the heads on validation) or
    last."""
    feature_cache_mb: int = Field(default=4096, ge=0)
    """Maximum size, in MB (10^6 bytes), of the files in which stages with a frozen backbone keep its vectors of the
    training and validation texts, so that it computes each text only once; 0 disables them."""
    checkpoint_steps: int = Field(default=500, ge=1)
    """Steps between checkpoints; the end of an epoch and a signal also write one."""
    trackers: tuple[str, ...] = ()
    """Experiment trackers that receive the metrics, by their names in accelerate: tensorboard, wandb, mlflow, ..."""
    stages: tuple[StageConfig, ...] = _DEFAULT_STAGES
    """The stages, in order; an empty list leaves the model untrained, a feature extractor."""

    @field_validator("stages")
    @classmethod
    def _stages_have_their_own_names(cls, stages: tuple[StageConfig, ...]) -> tuple[StageConfig, ...]:
        names = [stage.name for stage in stages]
        if len(set(names)) < len(names):
            raise ValueError(f"names {names}: stages must have distinct names")
        return stages


class Config(_Section):
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
        for field in ("train", "validation", "test", "similarity"):
            found[field] = []
            for text in getattr(self.data, field):
                try:
                    found[field].append(self._existing(f"data.{field}", text))
                except ConfigError as error:
                    errors.append(error)
        if errors:
            raise ConfigError.combine(errors)
        return found

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

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        names = sorted(head.name for head in self.model.heads)
        references = [(f"training.loss_weights.{name}", name) for name in self.training.loss_weights]
        for index, stage in enumerate(self.training.stages):
            for field, parts in (("train", stage.train), ("learning_rates", stage.learning_rates)):
                heads = [part.removeprefix("head:") for part in parts if part.startswith("head:")]
                references += [(f"training.stages.{index}.{field}", name) for name in heads]
        reasons = []
        for field, name in references:
            if name not in names:
                hint = f"; {did_you_mean(name, names)}" if did_you_mean(name, names) else ""
                reasons.append(f"{field} refers to head {name!r}, but model.heads has only {', '.join(names)}{hint}")
        if self.data.text in [head.field for head in self.model.heads]:
            reasons.append(f"data.text and a head's field are both {self.data.text!r}: they must differ")
        return _require(self, reasons)
