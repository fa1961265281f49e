"""What trains in a stage: names of parts to parameters, and the optimizer over them.

A model is made of units, from the bottom to the top: ``embeddings``, ``layer:1`` ... ``layer:N``, ``pooling``,
``head:NAME`` ...; every parameter is in exactly one. A part of a stage (``layers:2``, ``heads``) is a set of units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW

from polyhead_training.config import Config, StageConfig
from polyhead_training.model import PolyheadModel

# Of the few scalars that weigh the heads' losses: at a backbone's rate they would stay where they started.
_OTHERS_LEARNING_RATE = 1e-2


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
        field = f"training.stages.{index}"
        try:
            trained = _trained(stage, list(parts))
            strangers = [part for part in stage.learning_rates if not unit_names(part, list(parts)) & trained]
        except ValueError as error:
            raise config.error(f"{field}.train", str(error)) from None
        if strangers:
            reason = f"{strangers[0]!r} does not train in the stage: add it to train, or remove its learning rate"
            raise config.error(f"{field}.learning_rates", reason)
        if not any(_size(parts[name]) for name in trained):
            reason = f"{list(stage.train)} has no parameters with model.pooling {config.model.pooling!r}"
            raise config.error(f"{field}.train", f"{reason}: name a part that has some, or remove the stage")


class Stage:
    """One stage over one model: which units train from which step on, and how fast.

    Args:
        model: The model.
        config: The stage.
        steps: Steps of the stage.
    """

    def __init__(self, model: PolyheadModel, config: StageConfig, steps: int) -> None:
        self.config = config
        self.steps = steps
        self._model = model
        self._units = units(model)
        names = list(self._units)
        self._joins = join_steps(config, names, steps)
        self._rates = learning_rates(config, names)

    @property
    def trains_embedding(self) -> bool:
        """Whether the stage changes anything that the sentence embedding is made of."""
        shared = {"pooling"} if self._model.config.embedding_pooling == "shared" else set()
        return any(name in shared or _in_backbone(name) for name in self._joins)

    def begin_step(self, step: int) -> None:
        """Freezes what does not train in a step, with the dropout in it, and lets the rest train.

        Args:
            step: Step of the stage, counted from 0.
        """
        trained = {name for name, first in self._joins.items() if first <= step}
        self._model.train()
        for name, module in self._units.items():
            module.requires_grad_(name in trained)
            module.train(name in trained)

    def parameters(self) -> list[nn.Parameter]:
        """Everything that trains at some time of the stage, in a fixed order."""
        return [parameter for name in self._joins for parameter in self._units[name].parameters()]

    def build_optimizer(self, weight_decay: float, others: Sequence[nn.Parameter] = ()) -> AdamW:
        """AdamW over everything that trains at some time of the stage, each unit at its own learning rate.

        Args:
            weight_decay: Decay of the matrices; biases and LayerNorm (the vectors) have none.
            others: Parameters outside of the model that train along.
        """
        groups: list[dict[str, Any]] = []
        for name in self._joins:
            parameters = list(self._units[name].parameters())
            for decay, chosen in (
                (weight_decay, [parameter for parameter in parameters if parameter.ndim > 1]),
                (0.0, [parameter for parameter in parameters if parameter.ndim <= 1]),
            ):
                groups += [{"params": chosen, "lr": self._rates[name], "weight_decay": decay}] if chosen else []
        groups += [{"params": list(others), "lr": _OTHERS_LEARNING_RATE, "weight_decay": 0.0}] if others else []
        for group in groups:
            group["highest_lr"] = group["lr"]
        return AdamW(groups, fused=True)

    def set_learning_rate(self, optimizer: torch.optim.Optimizer, step: int, warmup: float) -> float:
        """Sets each group's learning rate for a step: linear up over the warmup, then linear down to 0.

        Args:
            optimizer: From ``build_optimizer``.
            step: Step of the stage, counted from 0.
            warmup: Share of the stage's steps over which the rate rises, 0 to 1.

        Returns:
            The learning rate of the stage in this step.
        """
        rising = round(self.steps * warmup)
        if step < rising:
            factor = (step + 1) / (rising + 1)
        else:
            factor = max(0.0, (self.steps - step) / max(1, self.steps - rising))
        for group in optimizer.param_groups:
            group["lr"] = group["highest_lr"] * factor
        return self.config.learning_rate * factor

    def describe(self) -> list[str]:
        """A table of what trains and what is frozen, a line for neighbours that are alike."""
        lines: dict[tuple[str, str], list[str]] = {}
        for name in self._units:
            group = "layers" if name.startswith("layer:") else name
            lines.setdefault((group, self._fate(name)), []).append(name)
        return [
            f"  {_title(names):<20}{sum(_size(self._units[name]) for name in names):>12,}  {fate}"
            for (_, fate), names in lines.items()
            if any(_size(self._units[name]) for name in names)
        ]

    def _fate(self, name: str) -> str:
        if name not in self._joins:
            return "frozen"
        first = f" from step {self._joins[name] + 1}" if self._joins[name] else ""
        return f"trains{first}, learning rate {self._rates[name]:.3g}"


def join_steps(stage: StageConfig, names: Sequence[str], steps: int) -> dict[str, int]:
    """The first step, counted from 0, in which each unit of a stage trains, for the units that do.

    With ``unfreeze_over`` the backbone's units join from the top, evenly over that share of the steps (gradual
    unfreezing: Howard and Ruder, arXiv 1801.06146, section 3.3); all others train from the first step.
    """
    trained = [name for name in names if name in _trained(stage, names)]
    ladder = [name for name in reversed(trained) if _in_backbone(name)]
    joins = {name: int(stage.unfreeze_over * steps * place / len(ladder)) for place, name in enumerate(ladder)}
    return {name: joins.get(name, 0) for name in trained}


def learning_rates(stage: StageConfig, names: Sequence[str]) -> dict[str, float]:
    """The highest learning rate of each unit of a stage, for the units that train.

    ``learning_rates`` wins over ``learning_rate``, in it the last part that holds the unit. ``layer_decay`` then lowers
    the backbone's from the top layer down (Howard and Ruder, arXiv 1801.06146, section 3.2).
    """
    rates = dict.fromkeys((name for name in names if name in _trained(stage, names)), stage.learning_rate)
    for part, rate in stage.learning_rates.items():
        rates |= dict.fromkeys(unit_names(part, names) & rates.keys(), rate)
    ladder = [name for name in reversed(names) if _in_backbone(name)]
    return {
        name: rate * (stage.layer_decay ** ladder.index(name) if _in_backbone(name) else 1.0)
        for name, rate in rates.items()
    }


def _title(names: Sequence[str]) -> str:
    if not names[0].startswith("layer:"):
        return names[0]
    first, last = (name.removeprefix("layer:") for name in (names[0], names[-1]))
    return f"layers {first} to {last}" if first != last else f"layer {first}"


def _in_backbone(name: str) -> bool:
    return name == "embeddings" or name.startswith("layer:")


def _trained(stage: StageConfig, names: Sequence[str]) -> set[str]:
    return set().union(*(unit_names(part, names) for part in stage.train))


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
