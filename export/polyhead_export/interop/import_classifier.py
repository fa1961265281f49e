"""Imports a sequence classifier; its head becomes the head ``topic``, or another name.

The head's hidden layer is a pooler, as in BERT, or a dense layer of the head itself, as in RoBERTa. That of ModernBERT
ends with a LayerNorm.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from polyhead_training.backbone import Backbone
from polyhead_training.model import PolyheadModel
from polyhead_training.model_config import HeadConfig
from polyhead_training.model_types import ActivationKind, HeadKind
from polyhead_training.tokenization import encode, pad
from polyhead_training.weights import WeightsError, load_pretrained, read_entries
from pydantic import ValidationError
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from polyhead_export.golden import golden_texts

from .checkpoint import (
    MAX_DIFFERENCE,
    CheckpointError,
    ImportedModel,
    build_model,
    load_original_tokenizer,
    require_same_outputs,
    require_same_tokens,
    token_limit,
)

DEFAULT_HEAD = "topic"
# Field of evaluation data that holds the answers for a head, by kind.
_FIELDS = {"softmax": "label", "multilabel": "labels", "regression": "score"}


@dataclass(frozen=True)
class Family:
    """Location of the head in a classifier of one family.

    Attributes:
        hidden: Path of the hidden layer in the classifier.
        output: Path of the output layer.
        activation: Activation between the two.
        dropouts: Configuration fields that hold the dropout; the first one that is set applies.
        norm: Path of the LayerNorm after the activation, if there is one.
    """

    hidden: str
    output: str
    activation: ActivationKind
    dropouts: tuple[str, ...]
    norm: str | None = None


_BERT = Family("bert.pooler.dense", "classifier", "tanh", ("classifier_dropout", "hidden_dropout_prob"))
_ROBERTA = Family("classifier.dense", "classifier.out_proj", "tanh", ("classifier_dropout", "hidden_dropout_prob"))
_DISTILBERT = Family("pre_classifier", "classifier", "relu", ("seq_classif_dropout",))
_ELECTRA = Family("classifier.dense", "classifier.out_proj", "gelu", ("classifier_dropout", "hidden_dropout_prob"))
_DEBERTA = Family("pooler.dense", "classifier", "gelu", ("cls_dropout", "hidden_dropout_prob"))
# Supported classes of transformers.
FAMILIES = {
    "AlbertForSequenceClassification": Family("albert.pooler", "classifier", "tanh", ("classifier_dropout_prob",)),
    "BertForSequenceClassification": _BERT,
    "CamembertForSequenceClassification": _ROBERTA,
    "DebertaV2ForSequenceClassification": _DEBERTA,
    "DistilBertForSequenceClassification": _DISTILBERT,
    "ElectraForSequenceClassification": _ELECTRA,
    "MPNetForSequenceClassification": _ROBERTA,
    "ModernBertForSequenceClassification": Family(
        "head.dense", "classifier", "gelu", ("classifier_dropout",), norm="head.norm"
    ),
    "RobertaForSequenceClassification": _ROBERTA,
    "XLMRobertaForSequenceClassification": _ROBERTA,
}


def read_classifier(
    reference: str, backbone: Backbone, architecture: str, name: str, report: Callable[[str], None]
) -> ImportedModel:
    """Reads a classifier and verifies that the converted model has the same logits.

    Args:
        reference: The folder or hub id.
        backbone: The classifier's backbone and tokenizer.
        architecture: Its class in transformers, a key of ``FAMILIES``.
        name: Name of the head.
        report: Called with each line of progress.

    Raises:
        CheckpointError: No kind of head can represent the classifier, or its files are damaged.
    """
    # sentence-transformers marks the classifiers that it trains, which score pairs of texts.
    if hasattr(backbone.config, "sentence_transformers"):
        raise CheckpointError(reference, "is a CrossEncoder, which scores pairs of texts", "choose another checkpoint")
    family = FAMILIES[architecture]
    kind = _kind(reference, backbone.config)
    labels = None if kind == "regression" else _labels(reference, backbone, family, report)
    original_tokenizer = load_original_tokenizer(reference, backbone)
    max_tokens = token_limit(
        reference, backbone, original_tokenizer.model_max_length, "model_max_length of tokenizer_config.json", report
    )
    texts = require_same_tokens(reference, backbone, original_tokenizer, max_tokens, report)
    original = _load_classifier(reference, backbone.folder)
    hidden: Any = original.get_submodule(family.hidden)
    norm: Any = original.get_submodule(family.norm) if family.norm else None
    head = _head_config(reference, name, kind, labels, hidden.out_features, _dropout(original.config, family))
    model = build_model(
        reference,
        backbone,
        # Only ModernBERT's configuration has a choice.
        pooling=getattr(original.config, "classifier_pooling", "cls"),
        embedding_pooling="mean",
        max_tokens=max_tokens,
        heads=[{**head.layer_settings(), "activation": family.activation, **({"norm_eps": norm.eps} if norm else {})}],
    )
    _copy_weights(model, hidden, norm, original.get_submodule(family.output))
    difference = _compare_logits(reference, model, original, backbone.tokenizer, texts)
    answer = f"with {len(labels)} labels, as head {name}: {', '.join(labels)}" if labels else f"as head {name}"
    report(f"{reference}: {architecture} {answer} ({kind})")
    report(f"its logits and those of the run differ by at most {difference:.2g} (limit {MAX_DIFFERENCE:g})")
    return ImportedModel(model, backbone.tokenizer, (head,))


def _kind(reference: str, config: PreTrainedConfig) -> HeadKind:
    """Returns the kind of head that a classifier has, by the conventions of transformers."""
    if config.problem_type == "regression" or config.num_labels == 1:
        if config.problem_type not in ("regression", None) or config.num_labels != 1:
            reason = f"has {config.num_labels} logits and problem_type {config.problem_type}"
            hint = "a regression head has one number, other heads have two labels or more: choose another checkpoint"
            raise CheckpointError(reference, reason, hint)
        return "regression"
    return "multilabel" if config.problem_type == "multi_label_classification" else "softmax"


def _labels(reference: str, backbone: Backbone, family: Family, report: Callable[[str], None]) -> tuple[str, ...]:
    """Returns the labels in the order of the logits."""
    config = backbone.config
    # transformers assumes two labels where config.json names none.
    stated = "id2label" in json.loads((backbone.folder / "config.json").read_bytes())
    output = read_entries(backbone.folder).get(f"{family.output}.weight")
    if output and output.shape[0] != config.num_labels:
        default = "" if stated else " by default, as config.json does not have it"
        reason = f"id2label names {config.num_labels} labels{default}, the head has {output.shape[0]}"
        raise CheckpointError(reference, reason, "give each logit its label in config.json's id2label")
    labels = tuple(str(config.id2label.get(index, "")) for index in range(config.num_labels))
    if len(set(labels)) < len(labels) or "" in labels:
        hint = "give each logit a distinct label in config.json's id2label"
        raise CheckpointError(reference, f"its labels are {list(labels)}", hint)
    if not stated:
        report(f"warning: {reference}: config.json has no id2label, so its labels are {', '.join(labels)}")
    inverse = {str(label): str(index) for label, index in (config.label2id or {}).items()}
    contradictions = [label for index, label in enumerate(labels) if inverse.get(label, str(index)) != str(index)]
    if contradictions:
        reason = f"config.json's id2label and label2id give {contradictions[0]!r} different logits"
        raise CheckpointError(reference, reason, "correct the one that is wrong")
    return labels


def _dropout(config: PreTrainedConfig, family: Family) -> float:
    """Dropout of the head; it does not affect outputs, and is kept for further training."""
    values = (getattr(config, key, None) for key in family.dropouts)
    return next((value for value in values if value is not None), 0.0)


def _head_config(  # noqa: PLR0917
    reference: str, name: str, kind: HeadKind, labels: tuple[str, ...] | None, hidden_size: int, dropout: float
) -> HeadConfig:
    try:
        return HeadConfig(
            name=name, kind=kind, field=_FIELDS[kind], labels=labels, hidden_size=hidden_size, dropout=dropout
        )
    except ValidationError as error:
        fault = error.errors()[0]
        if fault["loc"] == ("name",):
            reason = f"{name!r} is not a valid name of a head: {fault['msg']}"
            raise CheckpointError(reference, reason, "choose another with --head") from None
        reason = f"its head has {'.'.join(map(str, fault['loc']))} {fault['input']!r}: {fault['msg']}"
        raise CheckpointError(reference, reason, "correct its config.json") from None


def _copy_weights(model: PolyheadModel, hidden: nn.Module, norm: nn.Module | None, output: nn.Module) -> None:
    """Copies the classifier's layers into the model's head, whose biases are zero where the classifier has none."""
    (head,) = model.heads.values()
    layers: Any = head.layers
    for target, source in ((layers[1], hidden), (layers[4], output), *([(layers[2][1], norm)] if norm else [])):
        target.load_state_dict({"bias": torch.zeros_like(target.bias), **source.state_dict()})


def _load_classifier(reference: str, folder: Path) -> PreTrainedModel:
    try:
        return load_pretrained(AutoModelForSequenceClassification, folder, backbone_only=False)
    except WeightsError as error:
        raise CheckpointError(reference, error.reason, error.hint) from error


def _compare_logits(
    reference: str, model: PolyheadModel, original: PreTrainedModel, tokenizer: Tokenizer, texts: Sequence[str]
) -> float:
    """Returns the largest difference of any logit; relative for logits above 1.

    Raises:
        CheckpointError: It exceeds the limit.
    """
    config = model.config
    # A golden text that spells out special tokens has other tokens in transformers, but the same tokens are comparable.
    compared = dict.fromkeys([*golden_texts(config.max_tokens), *texts])
    actual, expected = [], []
    for ids in encode(tokenizer, list(compared), config.max_tokens):
        input_ids, mask = map(torch.from_numpy, pad([ids], config.pad_token_id))  # (1, T)
        with torch.inference_mode():
            expected.append(original(input_ids=input_ids, attention_mask=mask).logits)  # (1, labels)
            actual += model(input_ids, mask).logits.values()  # (1, labels)
    return require_same_outputs(reference, "logits", actual, expected)
