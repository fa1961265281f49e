"""Sections of the training configuration about the model: the backbone, the pooling and the heads."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from .abstain_config import AbstainConfig, PredictionSetsConfig
from .config_section import Section, require
from .model_types import (
    ABSTAINING_KINDS,
    CLASS_KINDS,
    RESERVED_HEAD_NAMES,
    EmbeddingPoolingKind,
    HeadKind,
    PoolingKind,
    output_names,
)
from .suggestions import folded, spelling_hint

# The name of a head becomes part of an ONNX output name and a JSON key.
HeadName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
# As in a bundle.
PromptName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,63}$")]
PromptText = Annotated[str, Field(min_length=1, max_length=1000)]

# What the kinds of head without a threshold predict.
_PREDICTIONS = {
    "softmax": "a softmax head predicts its most probable label",
    "ordinal": "an ordinal head predicts the median of its probabilities",
    "regression": "a regression head predicts a number",
}


class HeadConfig(Section):
    """A head: one kind of answer to a text."""

    name: HeadName
    """Name of the head, in lower case; its ONNX output and its metrics carry this name."""
    kind: HeadKind
    """softmax (one of several labels), sigmoid (binary), multilabel (any number of labels), ordinal (one of ordered
    labels, such as stars) or regression (a number)."""
    field: str = ""
    """Data field that contains the label, the list of labels or the number. Default: the head's name."""
    labels: tuple[str, ...] | None = None
    """Labels in the order of the logits. Default: the sorted labels of the training data; those of an ordinal head must
    be numbers, or named here from the lowest to the highest. A sigmoid head requires two: the label for 0, then the
    label for 1. A regression head has none."""
    separator: str = Field(default="|", min_length=1)
    """Separator of the labels of a multilabel head in a field that is text and not a JSON list, as in CSV files."""
    hidden_size: int | None = Field(default=None, ge=0)
    """Width of the head's hidden layer, in units; 0 for none, a linear head. Default: the backbone's hidden size."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout probability while the head trains, 0 to 1."""
    class_weights: Literal["none", "balanced"] | dict[str, Annotated[float, Field(gt=0)]] = "none"
    """Weight of a row's loss by its label: none (1 for every label), balanced (inversely proportional to the label's
    frequency in the training rows), or a table of labels and weights (1 for labels that it omits). A multilabel head
    weighs each label by itself; a table weighs the rows that have the label."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target probability that is spread evenly over all labels, 0 to 1."""
    loss: Literal["cross_entropy", "focal", "logit_adjusted"] = "cross_entropy"
    """Loss of a row of a softmax or sigmoid head: cross_entropy; focal, which weighs rows less that are predicted well
    (arXiv 1708.02002); or logit_adjusted, which trains for the mean accuracy of the labels, each counting equally
    (arXiv 2007.07314)."""
    focal_gamma: float = Field(default=2.0, ge=0)
    """Focusing parameter of the focal loss; 0 equals cross_entropy."""
    threshold: Annotated[float, Field(gt=0, lt=1)] | Literal["best"] = 0.5
    """Minimum probability at which a sigmoid head predicts its second label, and a multilabel head each label; best
    selects the threshold with the highest macro-F1 on validation, for a multilabel head that of each label with the
    highest F1."""
    abstain: AbstainConfig | None = None
    """Accuracy that the head keeps by abstaining; softmax, sigmoid and ordinal heads only. Default:
    training.heads.abstain."""
    prediction_sets: PredictionSetsConfig | None = None
    """Coverage of the sets of labels that the head returns on request; softmax heads only. Default:
    training.heads.prediction_sets."""

    def layer_settings(self) -> dict[str, Any]:
        """Returns the entry of the head in the model's own configuration, for a head with known labels."""
        settings = self.model_dump(mode="json", include={"name", "kind", "labels", "hidden_size", "dropout"})
        linear = {"activation": "none"} if self.hidden_size == 0 else {}
        return {**settings, "labels": list(self.labels or ()), **linear}

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
        elif self.kind == "regression" and labels is not None:
            reasons.append(f"labels {labels}: a regression head predicts a number: remove labels")
        elif labels is not None and (len(labels) < 2 or len(set(labels)) < len(labels) or not all(map(folded, labels))):
            reasons.append(f"labels {labels}: a head requires at least two labels, all different, none of them blank")
        if self.kind not in ("sigmoid", "multilabel") and self.threshold != 0.5:
            reasons.append(f"threshold {self.threshold}: {_PREDICTIONS[self.kind]}: remove threshold")
        if self.kind == "regression":
            reasons += [
                f"{name} {value!r}: a regression head has no labels: remove {name}"
                for name, value, default in (
                    ("class_weights", self.class_weights, "none"),
                    ("label_smoothing", self.label_smoothing, 0.0),
                )
                if value != default
            ]
        reasons += [*self._doubt_faults(), *self._loss_faults()]
        if isinstance(self.class_weights, dict) and labels is not None:
            for label in self.class_weights:
                if label not in labels:
                    known = f"labels has only {', '.join(labels)}{spelling_hint(label, labels)}"
                    reasons.append(f"class_weights has the label {label!r}, but {known}")
        return require(self, reasons)

    def _doubt_faults(self) -> list[str]:
        reasons = []
        if self.kind not in ABSTAINING_KINDS and self.abstain is not None:
            reasons.append(f"abstain: a {self.kind} head does not predict one label: remove abstain")
        if self.kind != "softmax" and self.prediction_sets is not None:
            reasons.append(f"prediction_sets: only softmax heads have them, not {self.kind}: remove prediction_sets")
        return reasons

    def _loss_faults(self) -> list[str]:
        reasons = []
        if self.loss != "cross_entropy" and self.kind not in CLASS_KINDS:
            reasons.append(f"loss {self.loss!r}: only softmax and sigmoid heads have it: remove loss")
        if self.loss != "focal" and self.focal_gamma != 2.0:
            reasons.append(f"focal_gamma {self.focal_gamma} and loss {self.loss!r}: only the focal loss has a gamma")
        if self.loss == "logit_adjusted" and self.class_weights == "balanced":
            reasons.append("class_weights 'balanced' and loss 'logit_adjusted' correct the same skew: remove one")
        return reasons


DEFAULT_HEADS = (
    HeadConfig(name="topic", kind="softmax", field="label"),
    HeadConfig(name="sentiment", kind="sigmoid", labels=("negative", "positive")),
)


class ModelConfig(Section):
    """The backbone, the pooling and the heads."""

    backbone: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Folder of a checkpoint, relative to the configuration file, or a Hugging Face hub id."""
    revision: str | None = None
    """Revision of the hub id, a commit or a tag. Default: the pinned revision of a known id, else the newest."""
    pooling: PoolingKind = "cls_mean"
    """Pooling of the token vectors into the heads' features: cls, mean, cls_mean, or embedding (the sentence
    embedding)."""
    embedding_pooling: EmbeddingPoolingKind = "mean"
    """Pooling of the token vectors into the sentence embedding: cls, mean, max, mean_sqrt_len (their sum divided by the
    square root of their number), weightedmean (weights that rise with the position), lasttoken, or shared (the heads'
    features)."""
    normalize: bool = True
    """Whether to scale the sentence embedding to Euclidean length 1."""
    max_tokens: int = Field(default=256, ge=8)
    """Maximum tokens per text, special tokens and prompt included; longer texts are truncated."""
    prompts: dict[PromptName, PromptText] = Field(default={}, max_length=256)
    """Texts to put before certain texts, by name, such as query = "query: ". A client selects one by its name; none is
    the default."""
    heads: tuple[HeadConfig, ...] = DEFAULT_HEADS
    """The heads, in order; an empty list for a model that computes the sentence embedding alone."""

    @model_validator(mode="after")
    def _one_pooling_is_computed(self) -> Self:
        if (self.pooling, self.embedding_pooling) == ("embedding", "shared"):
            raise ValueError("pooling 'embedding' and embedding_pooling 'shared' refer to each other: change one")
        return self

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
        return require(heads, reasons)
