"""Training stages: the units of a model that train, their learning rates, and the optimizer and schedule over them.

A model consists of units, from the bottom to the top: ``embeddings``, ``layer:1`` ... ``layer:N``, ``pooling``,
``head:NAME`` ...; every parameter belongs to exactly one. A part of a stage (``layers:2``, ``heads``) is a set of
units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from polyhead_training.config import Config
from polyhead_training.model import PolyheadModel
from polyhead_training.model_types import CLASS_KINDS
from polyhead_training.terminal import format_table
from polyhead_training.training_config import StageConfig

# Learning rate of the learned loss weights, a few scalars: at a backbone's rate they would hardly move.
_LOSS_WEIGHTS_LEARNING_RATE = 1e-2


def units(model: PolyheadModel) -> dict[str, nn.Module]:
    """Returns the model's units by name, from the bottom to the top."""
    parts = model.backbone_parts
    named: dict[str, nn.Module] = {"embeddings": parts.embeddings}
    named |= {f"layer:{number}": layer for number, layer in enumerate(parts.layers, start=1)}
    named["pooling"] = model.pooling
    return named | {f"head:{name}": head for name, head in model.heads.items()}


def unit_names(part: str, names: Sequence[str]) -> set[str]:
    """Returns the names of the units that belong to a part of a stage.

    Args:
        part: ``heads``, ``head:NAME``, ``pooling``, ``layers``, ``layers:N`` (the top N), ``embeddings``, ``backbone``
            or ``all``.
        names: Names of all units, from the bottom to the top.

    Raises:
        ValueError: ``layers:N`` exceeds the number of layers.
    """
    layers = [name for name in names if name.startswith("layer:")]
    if part.startswith("layers:"):
        count = int(part.removeprefix("layers:"))
        if count > len(layers):
            reason = f"{part!r} exceeds the backbone's {len(layers)} layers"
            raise ValueError(f"{reason}: choose at most that many (layers that share their weights are one)")
        return set(layers[-count:])
    groups = {
        "all": set(names),
        "backbone": {"embeddings", *layers},
        "layers": set(layers),
        "heads": {name for name in names if name.startswith("head:")},
    }
    return groups.get(part, {part})


def check_stages(config: Config, model: PolyheadModel) -> None:
    """Checks before training that every stage matches the model.

    Raises:
        ConfigError: A stage names more layers than the backbone has, trains no parameters, or has no data to learn
            from; or the embedding has fewer dimensions than it is trained for.
    """
    parts = units(model)
    size = model.config.embedding_size()
    if larger := [count for count in config.training.matryoshka if count > size]:
        reason = f"{larger[0]} exceeds the {size} dimensions of the sentence embedding: choose at most {size}"
        raise config.error("training.matryoshka", reason)
    for index, stage in enumerate(config.training.stages):
        field = f"training.stages.{index}"
        if stage.loss == "contrastive" and not trains_embedding(stage, model):
            reason = f"{list(stage.train)} has no part of the sentence embedding, which loss 'contrastive' trains"
            raise config.error(f"{field}.train", f"{reason}: name layers, embeddings or backbone")
        if stage.loss == "contrastive" and not any(head.kind in CLASS_KINDS for head in config.model.heads):
            reason = f"'contrastive' requires a head of a kind with one label per row: {', '.join(sorted(CLASS_KINDS))}"
            raise config.error(f"{field}.loss", reason)
        try:
            trained = _trained(stage, list(parts))
            untrained = [part for part in stage.learning_rates if not unit_names(part, list(parts)) & trained]
        except ValueError as error:
            raise config.error(f"{field}.train", str(error)) from None
        if untrained:
            reason = f"{untrained[0]!r} does not train in this stage: add it to train, or remove its learning rate"
            raise config.error(f"{field}.learning_rates", reason)
        if not any(_size(parts[name]) for name in trained):
            reason = f"{list(stage.train)} has no parameters with model.pooling {config.model.pooling!r}"
            raise config.error(f"{field}.train", f"{reason}: add a part with parameters, or remove the stage")
        teaches = "embedding" in stage.tasks and config.data.embedding and trains_embedding(stage, model)
        if not teaches and not ("heads" in stage.tasks and config.data.train):
            reason = f"{list(stage.tasks)}: the stage has no data to learn from: data.train teaches heads, and"
            fix = "data.embedding teaches embedding, in stages that train a part of the backbone"
            raise config.error(f"{field}.tasks", f"{reason} {fix}")


def trains_backbone(stage: StageConfig, model: PolyheadModel) -> bool:
    """Returns whether a stage changes a part of the backbone."""
    return any(map(_in_backbone, _trained(stage, list(units(model)))))


def trains_embedding(stage: StageConfig, model: PolyheadModel) -> bool:
    """Returns whether a stage changes a part of the sentence embedding."""
    trains_pooling = "pooling" in _trained(stage, list(units(model))) and _size(model.pooling) > 0
    shared = model.config.embedding_pooling == "shared" and trains_pooling
    return shared or trains_backbone(stage, model)


class Stage:
    """A stage applied to a model: the units that train, the step that unfreezes each, and their learning rates.

    Args:
        model: The model.
        config: The configuration of the stage.
        steps: Number of steps of the stage.
    """

    def __init__(self, model: PolyheadModel, config: StageConfig, steps: int) -> None:
        self.config = config
        self.steps = steps
        self._model = model
        self._units = units(model)
        names = list(self._units)
        self._unfreeze_steps = unfreeze_steps(config, names, steps)
        self._rates = learning_rates(config, names)

    @property
    def trains_backbone(self) -> bool:
        """Whether the stage changes a part of the backbone."""
        return trains_backbone(self.config, self._model)

    @property
    def trains_embedding(self) -> bool:
        """Whether the stage changes a part of the sentence embedding."""
        return trains_embedding(self.config, self._model)

    def begin_step(self, step: int) -> None:
        """Unfreezes the units that train in a step and freezes the others, whose dropout is off.

        Args:
            step: Step of the stage, counted from 0.
        """
        trained = {name for name, first in self._unfreeze_steps.items() if first <= step}
        self._model.train()
        for name, module in self._units.items():
            module.requires_grad_(name in trained)
            module.train(name in trained)

    def parameters(self) -> list[nn.Parameter]:
        """Returns all parameters that train at some step of the stage, in a fixed order."""
        return [parameter for name in self._unfreeze_steps for parameter in self._units[name].parameters()]

    def build_optimizer(self, weight_decay: float, others: Sequence[nn.Parameter] = ()) -> AdamW:
        """Builds AdamW over all parameters of the stage, each unit at its own learning rate.

        Args:
            weight_decay: Weight decay of matrices; vectors (biases and LayerNorm) are exempt.
            others: Parameters outside the model that train too: the learned loss weights.
        """
        groups: list[dict[str, Any]] = []
        for name in self._unfreeze_steps:
            parameters = list(self._units[name].parameters())
            for decay, chosen in (
                (weight_decay, [parameter for parameter in parameters if parameter.ndim > 1]),
                (0.0, [parameter for parameter in parameters if parameter.ndim <= 1]),
            ):
                groups += [{"params": chosen, "lr": self._rates[name], "weight_decay": decay}] if chosen else []
        groups += [{"params": list(others), "lr": _LOSS_WEIGHTS_LEARNING_RATE, "weight_decay": 0.0}] if others else []
        for group in groups:
            # LambdaLR requires it to start a schedule in the middle.
            group["initial_lr"] = group["lr"]
        return AdamW(groups, fused=True)

    def schedule(self, step: int, warmup: float) -> float:
        """Returns the factor of every peak learning rate in a step: linear warmup, then linear decay to 0.

        Args:
            step: Step of the stage, counted from 0.
            warmup: Share of the stage's steps that the warmup takes, 0 to 1.
        """
        warmup_steps = round(self.steps * warmup)
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        return max(0.0, (self.steps - step) / max(1, self.steps - warmup_steps))

    def build_scheduler(self, optimizer: AdamW, warmup: float, first_step: int = 0) -> LambdaLR:
        """Builds the learning-rate scheduler and sets the learning rates for the first step.

        The schedule is a function of the step alone, so a resumed run has exactly the rates of an uninterrupted one.

        Args:
            optimizer: An optimizer from ``build_optimizer``.
            warmup: Share of the stage's steps that the warmup takes, 0 to 1.
            first_step: Step of the stage to start from, counted from 0.
        """
        return LambdaLR(optimizer, lambda step: self.schedule(step, warmup), last_epoch=first_step - 1)

    def describe(self) -> str:
        """Returns a table of the units, their parameters and their status; layers with equal status share a row."""
        groups: dict[tuple[str, str], list[str]] = {}
        for name in self._units:
            group = "layers" if name.startswith("layer:") else name
            groups.setdefault((group, self._status(name)), []).append(name)
        rows = [
            [_title(names), f"{sum(_size(self._units[name]) for name in names):,}", status]
            for (_, status), names in groups.items()
            if any(_size(self._units[name]) for name in names)
        ]
        return format_table(["unit", "parameters", "status"], rows, numeric=["parameters"])

    def _status(self, name: str) -> str:
        if name not in self._unfreeze_steps:
            return "frozen"
        first = f" from step {self._unfreeze_steps[name] + 1}" if self._unfreeze_steps[name] else ""
        return f"trains{first}, learning rate {self._rates[name]:.3g}"


def unfreeze_steps(stage: StageConfig, names: Sequence[str], steps: int) -> dict[str, int]:
    """Returns the first step, counted from 0, in which each trained unit of a stage trains.

    With ``unfreeze_over`` the backbone's units are unfrozen from the top, evenly over that share of the steps (gradual
    unfreezing: Howard and Ruder, arXiv 1801.06146, section 3.3); all others train from the first step.
    """
    trained = [name for name in names if name in _trained(stage, names)]
    from_top = [name for name in reversed(trained) if _in_backbone(name)]
    first = {name: int(stage.unfreeze_over * steps * rank / len(from_top)) for rank, name in enumerate(from_top)}
    return {name: first.get(name, 0) for name in trained}


def learning_rates(stage: StageConfig, names: Sequence[str]) -> dict[str, float]:
    """Returns the peak learning rate of each trained unit of a stage.

    ``learning_rates`` overrides ``learning_rate``; its last part that contains the unit wins. ``layer_decay`` then
    lowers the backbone's rates from the top layer down (Howard and Ruder, arXiv 1801.06146, section 3.2).
    """
    rates = dict.fromkeys((name for name in names if name in _trained(stage, names)), stage.learning_rate)
    for part, rate in stage.learning_rates.items():
        rates |= dict.fromkeys(unit_names(part, names) & rates.keys(), rate)
    from_top = [name for name in reversed(names) if _in_backbone(name)]
    return {
        name: rate * (stage.layer_decay ** from_top.index(name) if _in_backbone(name) else 1.0)
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
