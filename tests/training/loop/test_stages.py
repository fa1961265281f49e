from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from polyhead_training.backbone import find_backbone
from polyhead_training.config import Config
from polyhead_training.data.dataset import read_data
from polyhead_training.errors import ConfigError
from polyhead_training.loop.stages import Stage, check_stages, learning_rates, unfreeze_steps, unit_names, units
from polyhead_training.model import PolyheadModel
from polyhead_training.train import build_model
from polyhead_training.training_config import StageConfig

from tests.support.tiny_checkpoints import FAMILIES

NAMES = ["embeddings", "layer:1", "layer:2", "pooling", "head:topic", "head:sentiment"]


@pytest.fixture
def build(configure: Callable[..., Config]) -> Callable[..., PolyheadModel]:
    def from_overrides(*overrides: str) -> PolyheadModel:
        config = configure(*overrides)
        return build_model(config, find_backbone(config), read_data(config).heads)

    return from_overrides


def stage(*parts: str, **settings: Any) -> StageConfig:
    return StageConfig(name="one", train=parts, learning_rate=1e-3, **settings)


def trained(model: PolyheadModel) -> set[str]:
    """The units of which everything trains; of the others nothing may."""
    found = {name for name, unit in units(model).items() if all(p.requires_grad for p in unit.parameters())}
    frozen = {name for name, unit in units(model).items() if not any(p.requires_grad for p in unit.parameters())}
    assert found | frozen == set(NAMES)
    return found


def scheduled_rates(chosen: Stage, steps: int, first_step: int = 0) -> list[list[float]]:
    """Learning rates of all parameter groups in each step, with a warmup of a fifth of the steps."""
    optimizer = chosen.build_optimizer(weight_decay=0.0)
    scheduler = chosen.build_scheduler(optimizer, warmup=0.2, first_step=first_step)
    rates = []
    for _ in range(first_step, steps):
        rates.append([float(group["lr"]) for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("family", FAMILIES)
def test_units_partition_the_parameters(
    build: Callable[..., PolyheadModel], checkpoints: dict[str, Path], family: str
) -> None:
    model = build(f"model.backbone={checkpoints[family]}")
    parts = units(model)
    assert list(parts) == NAMES
    shared_out = [id(parameter) for module in parts.values() for parameter in module.parameters()]
    assert sorted(shared_out) == sorted(id(parameter) for parameter in model.parameters())


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("heads", {"head:topic", "head:sentiment"}),
        ("head:topic", {"head:topic"}),
        ("pooling", {"pooling"}),
        ("layers:1", {"layer:2"}),
        ("layers:2", {"layer:1", "layer:2"}),
        ("embeddings", {"embeddings"}),
        ("backbone", {"embeddings", "layer:1", "layer:2"}),
        ("all", set(NAMES)),
    ],
)
def test_part_names_map_to_units(part: str, expected: set[str]) -> None:
    assert unit_names(part, NAMES) == expected


def test_step_freezes_the_other_units(build: Callable[..., PolyheadModel]) -> None:
    model = build()
    Stage(model, stage("all"), steps=1).begin_step(0)
    assert trained(model) == set(NAMES)
    Stage(model, stage("layers:1", "head:topic"), steps=1).begin_step(0)
    assert trained(model) == {"layer:2", "head:topic"}


def test_frozen_units_have_no_dropout(build: Callable[..., PolyheadModel]) -> None:
    model = build()
    Stage(model, stage("layers:1", "head:topic"), steps=1).begin_step(0)
    modes = {name: {module.training for module in unit.modules()} for name, unit in units(model).items()}
    assert modes == {name: {name in ("layer:2", "head:topic")} for name in NAMES}


def test_gradual_unfreezing_starts_at_the_top(build: Callable[..., PolyheadModel]) -> None:
    config = stage("all", unfreeze_over=0.6)
    assert unfreeze_steps(config, NAMES, steps=100) == {
        "head:topic": 0,
        "head:sentiment": 0,
        "pooling": 0,
        "layer:2": 0,
        "layer:1": 20,
        "embeddings": 40,
    }
    model = build()
    gradual = Stage(model, config, steps=100)
    seen = {}
    for step in (0, 19, 20, 39, 40, 99):
        gradual.begin_step(step)
        seen[step] = set(NAMES) - trained(model)
    below = {"embeddings", "layer:1"}
    assert seen == {0: below, 19: below, 20: {"embeddings"}, 39: {"embeddings"}, 40: set(), 99: set()}


def test_layer_decay_lowers_learning_rates_from_layer_to_layer() -> None:
    rates = learning_rates(stage("all", layer_decay=0.5, learning_rates={"heads": 0.1, "head:topic": 0.2}), NAMES)
    assert rates == pytest.approx(
        {
            "embeddings": 0.00025,
            "layer:1": 0.0005,
            "layer:2": 0.001,
            "pooling": 0.001,
            "head:topic": 0.2,
            "head:sentiment": 0.1,
        }
    )


def test_embedding_trains_with_its_parts(build: Callable[..., PolyheadModel]) -> None:
    def trains_embedding(model: PolyheadModel, *parts: str) -> bool:
        return Stage(model, stage(*parts), steps=1).trains_embedding

    plain, shared = build(), build("model.embedding_pooling=shared")
    assert not trains_embedding(plain, "heads", "pooling")
    assert trains_embedding(plain, "embeddings")
    assert trains_embedding(plain, "layers:1")
    assert trains_embedding(shared, "pooling")
    assert not trains_embedding(shared, "heads")


def test_too_many_layers_are_rejected(configure: Callable[..., Config], build: Callable[..., PolyheadModel]) -> None:
    override = "training.stages.1.train=['layers:3']"
    with pytest.raises(ConfigError, match=r"training\.stages\.1\.train: 'layers:3' exceeds the backbone's 2"):
        check_stages(configure(override), build(override))


def test_stage_without_parameters_is_rejected(
    configure: Callable[..., Config], build: Callable[..., PolyheadModel]
) -> None:
    overrides = ["model.pooling=mean", "training.stages.0.train=['pooling']"]
    with pytest.raises(ConfigError, match=r"training\.stages\.0\.train: .*no parameters with model\.pooling 'mean'"):
        check_stages(configure(*overrides), build(*overrides))


def test_learning_rate_of_a_frozen_part_is_rejected(
    configure: Callable[..., Config], build: Callable[..., PolyheadModel]
) -> None:
    override = "training.stages.0.learning_rates={embeddings=0.1}"
    with pytest.raises(ConfigError, match=r"training\.stages\.0\.learning_rates: 'embeddings' does not train"):
        check_stages(configure(override), build())


def test_weight_decay_applies_to_matrices_only(build: Callable[..., PolyheadModel]) -> None:
    model = build()
    chosen = Stage(model, stage("layers:1", "heads"), steps=1)
    groups = chosen.build_optimizer(weight_decay=0.1, others=[torch.nn.Parameter(torch.zeros(2))]).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        decay: [
            names.get(id(p), "other") for group in groups if group["weight_decay"] == decay for p in group["params"]
        ]
        for decay in (0.1, 0.0)
    }
    assert all(name.endswith("weight") and "LayerNorm" not in name for name in found[0.1])
    assert all(name.endswith("bias") or "LayerNorm" in name or name == "other" for name in found[0.0])
    assert len(found[0.1] + found[0.0]) == len(chosen.parameters()) + 1


def test_learning_rate_rises_and_falls_linearly(build: Callable[..., PolyheadModel]) -> None:
    chosen = Stage(build(), stage("all", layer_decay=0.5), steps=10)
    highest, lowest = [], []
    for rates in scheduled_rates(chosen, steps=10):
        highest.append(max(rates))
        lowest.append(min(rates))
    expected = [1 / 3, 2 / 3, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    assert [chosen.schedule(step, warmup=0.2) for step in range(10)] == pytest.approx(expected)
    assert highest == pytest.approx([1e-3 * factor for factor in expected])
    assert lowest == pytest.approx([0.25e-3 * factor for factor in expected])


@pytest.mark.parametrize("first_step", [1, 2, 7])
def test_schedule_from_the_middle_has_exactly_the_same_learning_rates(
    build: Callable[..., PolyheadModel], first_step: int
) -> None:
    chosen = Stage(build(), stage("all", layer_decay=0.7), steps=10)
    assert scheduled_rates(chosen, 10, first_step) == scheduled_rates(chosen, 10)[first_step:]


def test_table_shows_the_status_of_each_unit(build: Callable[..., PolyheadModel]) -> None:
    model = build()
    gradual = stage("layers:2", "pooling", "heads", unfreeze_over=1.0, layer_decay=0.5)
    [_, _, *lines] = Stage(model, gradual, steps=10).describe().splitlines()
    assert [line.split("  ")[-1].strip() for line in lines] == [
        "frozen",
        "trains from step 6, learning rate 0.0005",
        "trains, learning rate 0.001",
        "trains, learning rate 0.001",
        "trains, learning rate 0.001",
        "trains, learning rate 0.001",
    ]
    total = sum(int(re.findall(r" ([\d,]+)  ", line)[-1].replace(",", "")) for line in lines)
    assert total == sum(parameter.numel() for parameter in model.parameters())
