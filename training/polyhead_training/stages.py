"""What trains in a stage: names of parts to parameters, and the optimizer over them.

A model is made of units, from the bottom to the top: ``embeddings``, ``layer:1`` ... ``layer:N``, ``pooling``,
``head:NAME`` ...; every parameter is in exactly one. A part of a stage (``layers:2``, ``heads``) is a set of units.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from .config import Config, StageConfig
from .model import PolyheadModel


def units(model: PolyheadModel) -> dict[str, nn.Module]:
    """The model's units by name, from the bottom to the top."""
    backbone = model.backbone
    # BERT and RoBERTa call it encoder, DistilBERT transformer.
    layers = (backbone.encoder if hasattr(backbone, "encoder") else backbone.transformer).layer
    named: dict[str, nn.Module] = {"embeddings": backbone.embeddings}
    named |= {f"layer:{number}": layer for number, layer in enumerate(layers, start=1)}
    named["pooling"] = model.pooling
    return named | {f"head:{name}": head for name, head in model.heads.items()}


def unit_names(part: str, names: Sequence[str]) -> set[str]:
    """The units that a part of a stage means.

    Args:
        part: ``heads``, ``head:NAME``, ``pooling``, ``layers:N`` (the top N), ``embeddings``, ``backbone`` or ``all``.
        names: Names of all units, from the bottom to the top.

    Raises:
        ValueError: ``layers:N`` asks for more layers than there are.
    """
    layers = [name for name in names if name.startswith("layer:")]
    if part.startswith("layers:"):
        count = int(part.removeprefix("layers:"))
        if count > len(layers):
            raise ValueError(f"{part!r} is more than the backbone's {len(layers)} layers: ask for at most that many")
        return set(layers[-count:])
    groups = {
        "all": set(names),
        "backbone": {"embeddings", *layers},
        "heads": {name for name in names if name.startswith("head:")},
    }
    return groups.get(part, {part})


def check_stages(config: Config, model: PolyheadModel) -> None:
    """Asserts before anything trains that every stage fits the model.

    Raises:
        ConfigError: A stage asks for layers that are not there, or trains nothing.
    """
    parts = units(model)
    for index, stage in enumerate(config.training.stages):
        field = f"training.stages.{index}.train"
        try:
            trained = _trained(stage, list(parts))
        except ValueError as error:
            raise config.error(field, str(error)) from None
        if not any(_size(parts[name]) for name in trained):
            reason = f"{list(stage.train)} has no parameters with model.pooling {config.model.pooling!r}"
            raise config.error(field, f"{reason}: name a part that has some, or remove the stage")


def begin_stage(model: PolyheadModel, stage: StageConfig) -> None:
    """Lets the stage's parts train and freezes the rest."""
    parts = units(model)
    trained = _trained(stage, list(parts))
    for name, module in parts.items():
        module.requires_grad_(name in trained)


def set_training_mode(model: PolyheadModel) -> None:
    """Switches dropout on in what trains and off in what is frozen."""
    model.train()
    for module in units(model).values():
        module.train(any(parameter.requires_grad for parameter in module.parameters()))


def build_optimizer(model: PolyheadModel, learning_rate: float, weight_decay: float) -> AdamW:
    """AdamW over the parameters that train; biases and LayerNorm (the vectors) do not decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    vectors = [parameter for parameter in trained if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return AdamW([group for group in groups if group["params"]], lr=learning_rate, fused=True)


def build_schedule(optimizer: torch.optim.Optimizer, steps: int, warmup: float) -> LambdaLR:
    """A learning rate that rises linearly over the warmup's share of the steps and falls linearly to 0 after it."""
    rising = round(steps * warmup)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        return max(0.0, (steps - step) / max(1, steps - rising))

    return LambdaLR(optimizer, factor)


def describe(model: PolyheadModel) -> list[str]:
    """A small table of what trains and what is frozen, with numbers of parameters; neighbouring layers share a line."""
    lines: dict[tuple[str, bool], list[str]] = {}
    parts = units(model)
    for name, module in parts.items():
        trains = any(parameter.requires_grad for parameter in module.parameters())
        group = "layers" if name.startswith("layer:") else name
        lines.setdefault((group, trains), []).append(name)
    return [
        f"  {_title(names):<20}{sum(_size(parts[name]) for name in names):>12,}  {'trains' if trains else 'frozen'}"
        for (_, trains), names in lines.items()
        if any(_size(parts[name]) for name in names)
    ]


def _title(names: Sequence[str]) -> str:
    if not names[0].startswith("layer:"):
        return names[0]
    first, last = (name.removeprefix("layer:") for name in (names[0], names[-1]))
    return f"layers {first} to {last}" if first != last else f"layer {first}"


def _trained(stage: StageConfig, names: Sequence[str]) -> set[str]:
    return set().union(*(unit_names(part, names) for part in stage.train))


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
