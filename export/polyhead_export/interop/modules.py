"""The modules of a SentenceTransformer after its backbone: pooling, dense layers and normalizations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from polyhead_training.embedding import ACTIVATIONS
from polyhead_training.model import PolyheadModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .checkpoint import CheckpointError, damaged_file, read_json, read_module_settings

_MODULE_PREFIX = "sentence_transformers."
# Modules after Transformer and Pooling.
_LAYERS = ("Dense", "Dropout", "LayerNorm", "Normalize")
# Settings of a layer that keep its input and its output where the other modules expect them.
_NAMES = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
_ACTIVATIONS = {
    "GELU": "gelu",
    "Identity": "none",
    "ReLU": "relu",
    "Sigmoid": "sigmoid",
    "SiLU": "silu",
    "Tanh": "tanh",
}


@dataclass(frozen=True)
class Module:
    """An entry of ``modules.json``: the module's class, without its package, and its folder."""

    kind: str
    folder: Path


@dataclass(frozen=True)
class Layer:
    """A module after the pooling.

    Attributes:
        settings: Settings of an ``EmbeddingLayer``.
        weights: Its weights by the names that they have in an ``EmbeddingLayer``.
    """

    settings: dict[str, Any]
    weights: dict[str, Tensor]

    def compute(self, vectors: Tensor) -> Tensor:
        """Computes the layer as sentence-transformers does, on (B, in) vectors."""
        if self.settings["kind"] == "normalize":
            return torch.nn.functional.normalize(vectors, p=2, dim=1)
        if self.settings["kind"] == "layer_norm":
            return torch.nn.functional.layer_norm(
                vectors, vectors.shape[1:], self.weights["norm.weight"], self.weights["norm.bias"]
            )
        linear = vectors @ self.weights["linear.weight"].T + self.weights["linear.bias"]
        return ACTIVATIONS[self.settings["activation"]]()(linear)  # type: ignore[no-any-return]


def read_modules(reference: str, root: Path) -> list[Module]:
    """Returns the modules in order: Transformer, Pooling, and any of Dense, Dropout, LayerNorm and Normalize.

    Raises:
        CheckpointError: ``modules.json`` is damaged, or lists other modules.
    """
    content = read_json(reference, root / "modules.json")
    try:
        found = [(_kind(str(entry["type"])), str(entry["path"])) for entry in content]
    except (KeyError, TypeError):
        raise damaged_file(reference, "modules.json") from None
    kinds = [kind for kind, _ in found]
    known = ("Transformer", "Pooling", *_LAYERS)
    if unsupported := [kind for kind in kinds if kind not in known]:
        hint = f"supported are {', '.join(known)}; choose another checkpoint"
        raise CheckpointError(reference, f"has the module {unsupported[0]}", hint)
    if kinds[:2] != ["Transformer", "Pooling"] or not set(kinds[2:]) <= set(_LAYERS):
        reason = f"its modules are {', '.join(kinds)}"
        hint = f"supported are Transformer, Pooling, then any of {', '.join(_LAYERS)}"
        raise CheckpointError(reference, reason, hint)
    if any(Path(path).is_absolute() or ".." in Path(path).parts for _, path in found):
        raise CheckpointError(reference, "modules.json points outside the checkpoint", "do not use it")
    return [Module(kind, root / path) for kind, path in found]


def read_layer(reference: str, module: Module) -> Layer:
    """Reads a module after the pooling.

    Raises:
        CheckpointError: It has settings that a run cannot represent, or damaged files.
    """
    settings = read_module_settings(reference, module.folder / "config.json")
    others = {key: value for key, value in settings.items() if key in _NAMES}
    require_supported(reference, module.kind, others, _NAMES)
    if module.kind == "Normalize":
        unknown = {key: value for key, value in settings.items() if key not in _NAMES}
        require_supported(reference, module.kind, unknown, {})
        return Layer({"kind": "normalize"}, {})
    if module.kind == "LayerNorm":
        weights = _read_weights(reference, module, ("norm.weight", "norm.bias"))
        return Layer({"kind": "layer_norm"}, weights)
    name = str(settings.get("activation_function") or "torch.nn.modules.linear.Identity")
    if not name.startswith("torch.nn.") or name.rpartition(".")[2] not in _ACTIVATIONS:
        hint = f"supported are {', '.join(_ACTIVATIONS)} of torch.nn"
        raise CheckpointError(reference, f"its module Dense has the activation {name}", hint)
    weights = _read_weights(reference, module, ("linear.weight",))
    outputs = len(weights["linear.weight"])
    weights.setdefault("linear.bias", torch.zeros(outputs))
    activation = _ACTIVATIONS[name.rpartition(".")[2]]
    return Layer({"kind": "dense", "out_features": outputs, "activation": activation}, weights)


def load_layers(reference: str, model: PolyheadModel, layers: Sequence[Layer]) -> None:
    """Copies the weights of layers into a model that was built with their settings.

    Raises:
        CheckpointError: A weight has another shape than the layer before it implies.
    """
    for number, (built, layer) in enumerate(zip(model.embedding_layers, layers, strict=True), start=1):
        try:
            built.load_state_dict(layer.weights)
        except RuntimeError:
            found = ", ".join(f"{name} {tuple(values.shape)}" for name, values in layer.weights.items())
            reason = f"its module {number} after the pooling does not fit the one before it ({found})"
            raise CheckpointError(reference, reason, "fetch the checkpoint again") from None


def require_supported(reference: str, module: str, settings: Mapping[str, Any], supported: Mapping[str, Any]) -> None:
    """Rejects a setting of a module that changes the embedding.

    Raises:
        CheckpointError: Names it.
    """
    for key, value in settings.items():
        if value and value != supported.get(key):
            hint = "a run cannot represent it: choose another checkpoint"
            raise CheckpointError(reference, f"its module {module} has {key} = {json.dumps(value)}", hint)


def _read_weights(reference: str, module: Module, required: Sequence[str]) -> dict[str, Tensor]:
    path = module.folder / "model.safetensors"
    where = f"{module.folder.name}/{path.name}"
    if not path.is_file():
        hint = "load it where you trust it, and save it again with SentenceTransformer's save"
        reason = f"its module {module.kind} has no {where}, and pickled weights are never read"
        raise CheckpointError(reference, reason, hint)
    try:
        weights = {name: values.float() for name, values in load_file(path).items()}
    except (OSError, SafetensorError):
        raise damaged_file(reference, where) from None
    if not set(required) <= set(weights):
        raise damaged_file(reference, where)
    return weights


def _kind(class_name: str) -> str:
    """Class name without its module for classes of sentence-transformers, whose modules vary between releases."""
    return class_name.rpartition(".")[2] if class_name.startswith(_MODULE_PREFIX) else class_name
