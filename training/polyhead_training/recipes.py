"""Recipes: defaults of a training configuration for a kind of data. A field that is set keeps its value.

::

    CONFIG.toml with training.recipe --contradictions--> errors
                                     --with_recipe-----> the same values, and the recipe's where there were none
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

from .model_types import CLASS_KINDS, HeadKind

RecipeName = Literal["standard", "few-shot"]

# Sentence embeddings of equal labels become similar, as in SetFit (Tunstall et al., arXiv 2209.11055), and a logistic
# regression reads them. A batch compares all of its texts with each other, so far fewer texts are encoded. Fine-tuning
# from there keeps apart what the pairs draw together: they push all labels equally far away from each other, which
# costs accuracy where there are many (bench/training/few_shot.py).
_FEW_SHOT_STAGES = [
    {"name": "contrastive", "train": ["layers"], "loss": "contrastive", "epochs": 10, "learning_rate": 1e-4},
    {"name": "first_heads", "train": ["heads"], "solver": "lbfgs"},
    {"name": "all", "train": ["all"], "epochs": 10, "learning_rate": 1e-4},
    {"name": "heads", "train": ["heads"], "solver": "lbfgs"},
]
_FEW_SHOT: dict[str, dict[str, Any]] = {
    "model": {"pooling": "embedding"},
    # Of a few rows, none is spared for validation: `--folds` measures on all of them.
    "data": {"validation_fraction": 0.0},
    "training": {"distillation": 0.0, "select": "last", "stages": _FEW_SHOT_STAGES},
}
_FEW_SHOT_HEAD = {"hidden_size": 0}


def contradictions(values: Mapping[str, Any]) -> list[str]:
    """Returns a reason for each setting of a configuration that its recipe makes impossible.

    Args:
        values: The content of a configuration file, not validated.
    """
    return list(_contradictions(values)) if _is_few_shot(values) else []


def with_recipe(values: Mapping[str, Any], default_heads: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Adds the defaults of the recipe to a configuration.

    Args:
        values: The content of a configuration file, not validated.
        default_heads: The heads of a configuration that names none.
    """
    if not _is_few_shot(values):
        return dict(values)
    filled = dict(values)
    for section, defaults in _FEW_SHOT.items():
        found = values.get(section, {})
        if isinstance(found, Mapping):
            # Rows of validation of their own leave nothing to split.
            filled[section] = {**({} if found.get("validation") else defaults), **found}
    if isinstance(model := filled.get("model"), dict):
        heads = model.get("heads", default_heads)
        if isinstance(heads, list | tuple):
            model["heads"] = [{**_FEW_SHOT_HEAD, **head} if isinstance(head, Mapping) else head for head in heads]
            training = filled["training"]
            if training["stages"] is _FEW_SHOT_STAGES and heads and not any(map(_has_classes, heads)):
                # Only equal classes say which texts are to become similar.
                filled["training"] = {**training, "stages": _FEW_SHOT_STAGES[1:]}
    return filled


def _has_classes(head: object) -> bool:
    """Returns whether the rows of a head have one class each; True for a head that is not valid."""
    kind = head.get("kind") if isinstance(head, Mapping) else None
    return kind in CLASS_KINDS or kind not in get_args(HeadKind)


def _is_few_shot(values: Mapping[str, Any]) -> bool:
    training = values.get("training")
    return isinstance(training, Mapping) and training.get("recipe") == "few-shot"


def _contradictions(values: Mapping[str, Any]) -> Iterator[str]:
    training = values["training"]
    if training.get("loss_weighting") == "uncertainty" and "stages" not in training:
        yield (
            "training.loss_weighting 'uncertainty' and training.recipe 'few-shot': its solver lbfgs learns no weights "
            "of losses; remove training.loss_weighting, or set training.stages"
        )
    data = values.get("data")
    measured = isinstance(data, Mapping) and (data.get("validation") or data.get("validation_fraction"))
    if training.get("select") == "best" and not measured:
        yield (
            "training.select 'best' and training.recipe 'few-shot': it spares no rows for validation; "
            "remove training.select, or set data.validation or data.validation_fraction"
        )
