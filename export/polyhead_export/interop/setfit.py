"""The head of a SetFit model: logistic regressions of scikit-learn on the sentence embedding, one or one per label.

SetFit saves it as a pickle, which runs code when it is loaded, so it is never read. Its numbers are read from
``model_head.safetensors``, which a user writes where the pickle is trusted: ``CONVERSION`` says how.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyhead_training.model import PolyheadModel
from polyhead_training.model_config import HeadConfig
from polyhead_training.model_types import HeadKind
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .checkpoint import CheckpointError, read_module_settings

CONFIG = "config_setfit.json"
PICKLE = "model_head.pkl"
HEAD = "model_head.safetensors"
# safetensors would write the numbers of an array that is not contiguous in another order. A head of several labels per
# text, of one-vs-rest or multi-output, has an estimator per label.
CONVERSION = """\
python -c "import joblib, json, numpy; from safetensors.numpy import save_file; head = joblib.load('model_head.pkl'); \
parts = getattr(head, 'estimators_', [head]); several = parts != [head]; \
plain = lambda name: numpy.ascontiguousarray(numpy.concatenate([getattr(one, name) for one in parts]), 'float32'); \
names = [str(one) for one in (range(len(parts)) if several else head.classes_)]; \
save_file({'coef': plain('coef_'), 'intercept': plain('intercept_')}, 'model_head.safetensors', \
{'labels' if several else 'classes': json.dumps(names)})"
"""


@dataclass(frozen=True)
class LinearHead:
    """A linear head on the sentence embedding.

    Attributes:
        config: Its name, kind and labels.
        weight: (logits, E) coefficients.
        bias: (logits,) intercepts.
        is_normalized: Whether the head reads the embedding scaled to length 1.
    """

    config: HeadConfig
    weight: Tensor
    bias: Tensor
    is_normalized: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the model's head."""
        fields = self.config.layer_settings()
        return {**fields, "activation": "none"}


def is_setfit(folder: Path) -> bool:
    """Returns whether a folder holds a SetFit model."""
    return any((folder / name).exists() for name in (CONFIG, PICKLE))


def read_head(reference: str, folder: Path, name: str) -> LinearHead:
    """Reads the head of a SetFit model.

    Args:
        reference: The folder or hub id.
        folder: Its files.
        name: Name of the head.

    Raises:
        CheckpointError: The head exists as a pickle alone, is not a logistic regression, or contradicts its labels.
    """
    path = folder / HEAD
    if not path.is_file():
        reason = f"its head is the pickle {PICKLE}, which is never read"
        hint = f"where you trust it, run this in its folder, which writes {HEAD}, and import it again:\n{CONVERSION}"
        raise CheckpointError(reference, reason, hint)
    try:
        with safe_open(path, "pt") as stream:
            weight, bias = stream.get_tensor("coef").float(), stream.get_tensor("intercept").float()
            metadata = stream.metadata() or {}
            several = "labels" in metadata
            classes = json.loads(metadata["labels" if several else "classes"])
    except (KeyError, OSError, SafetensorError, ValueError) as error:
        reason = f"its {HEAD} lacks coef, intercept or classes ({error})"
        raise CheckpointError(reference, reason, f"write it again:\n{CONVERSION}") from None
    logits = 1 if len(classes) == 2 and not several else len(classes)
    if weight.ndim != 2 or (len(weight), tuple(bias.shape)) != (logits, (logits,)):
        reason = f"its head has coef {tuple(weight.shape)} and intercept {tuple(bias.shape)} for {len(classes)} classes"
        hint = "only logistic regressions can be imported; train other heads on its backbone"
        raise CheckpointError(reference, reason, hint)
    settings = read_module_settings(reference, folder / CONFIG)
    labels = _labels(reference, settings.get("labels"), classes)
    kind: HeadKind = "multilabel" if several else "sigmoid" if logits == 1 else "softmax"
    field = "labels" if several else "label"
    try:
        config = HeadConfig(name=name, kind=kind, field=field, labels=tuple(map(str, labels)), dropout=0.0)
    except ValidationError as error:
        fault = error.errors()[0]
        hint = "choose another with --head" if fault["loc"] == ("name",) else f"correct the labels in {CONFIG}"
        raise CheckpointError(reference, f"its head {name!r}: {fault['msg']}", hint) from None
    return LinearHead(config, weight, bias, is_normalized=bool(settings.get("normalize_embeddings")))


def _labels(reference: str, names: list[str] | None, classes: list[str]) -> list[str]:
    """Returns the labels in the order of the classes, which are themselves labels unless they are numbers from 0.

    Raises:
        CheckpointError: The classes contradict the names in the settings.
    """
    if not names:
        return classes
    if len(names) != len(classes):
        reason = f"{CONFIG} names {len(names)} labels, the head has {len(classes)} classes"
        raise CheckpointError(reference, reason, "correct the labels")
    if classes == [str(number) for number in range(len(classes))]:
        return names
    if {str(name) for name in names} != set(classes):
        reason = (
            f"{CONFIG} names the labels {', '.join(map(str, names))}, the head has the classes {', '.join(classes)}"
        )
        raise CheckpointError(reference, reason, f"correct the labels in {CONFIG}, or remove them")
    return classes


def load_head(reference: str, model: PolyheadModel, head: LinearHead) -> None:
    """Copies the head's coefficients into a model that was built with its settings.

    Raises:
        CheckpointError: They have another width than the embedding.
    """
    width = model.config.embedding_size()
    if head.weight.shape[1] != width:
        reason = f"its head has {head.weight.shape[1]} coefficients, its embedding {width} dimensions"
        raise CheckpointError(reference, reason, "take both from the same model")
    (built,) = model.heads.values()
    layers: Any = built.layers
    layers[1].load_state_dict({"weight": head.weight, "bias": head.bias})
