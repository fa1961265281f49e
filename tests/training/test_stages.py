from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from polyhead_training.backbone import find_backbone
from polyhead_training.config import Config, StageConfig
from polyhead_training.data import read_data
from polyhead_training.errors import ConfigError
from polyhead_training.model import PolyheadModel
from polyhead_training.stages import (
    begin_stage,
    build_optimizer,
    build_schedule,
    check_stages,
    describe,
    set_training_mode,
    unit_names,
    units,
)
from polyhead_training.train import build_model

NAMES = ["embeddings", "layer:1", "layer:2", "pooling", "head:topic", "head:sentiment"]


@pytest.fixture
def build(configure: Callable[..., Config]) -> Callable[..., PolyheadModel]:
    def from_overrides(*overrides: str) -> PolyheadModel:
        config = configure(*overrides)
        return build_model(config, find_backbone(config), read_data(config).heads)

    return from_overrides


def stage(*parts: str) -> StageConfig:
    return StageConfig(name="one", train=parts, learning_rate=1e-3)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_units_share_out_every_parameter(
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
def test_part_names_mean_units(part: str, expected: set[str]) -> None:
    assert unit_names(part, NAMES) == expected


def test_begin_stage_freezes_what_is_not_named(build: Callable[..., PolyheadModel]) -> None:
    model = build()
    begin_stage(model, stage("all"))
    begin_stage(model, stage("layers:1", "head:topic"))
    training = {name for name, module in units(model).items() if all(p.requires_grad for p in module.parameters())}
    frozen = {name for name, module in units(model).items() if not any(p.requires_grad for p in module.parameters())}
    assert training == {"layer:2", "head:topic"}
    assert frozen == set(NAMES) - training


def test_frozen_units_have_no_dropout(build: Callable[..., PolyheadModel]) -> None:
    model = build()
    begin_stage(model, stage("layers:1", "head:topic"))
    set_training_mode(model)
    modes = {name: {module.training for module in unit.modules()} for name, unit in units(model).items()}
    assert modes == {name: {name in ("layer:2", "head:topic")} for name in NAMES}


def test_too_many_layers_are_refused_with_numbers(
    configure: Callable[..., Config], build: Callable[..., PolyheadModel]
) -> None:
    override = "training.stages.1.train=['layers:3']"
    with pytest.raises(ConfigError, match=r"training\.stages\.1\.train: 'layers:3' is more than the backbone's 2"):
        check_stages(configure(override), build(override))


def test_stage_that_trains_nothing_is_refused(
    configure: Callable[..., Config], build: Callable[..., PolyheadModel]
) -> None:
    overrides = ["model.pooling=mean", "training.stages.0.train=['pooling']"]
    with pytest.raises(ConfigError, match=r"training\.stages\.0\.train: .*no parameters with model\.pooling 'mean'"):
        check_stages(configure(*overrides), build(*overrides))


def test_optimizer_decays_matrices_alone(build: Callable[..., PolyheadModel]) -> None:
    model = build()
    begin_stage(model, stage("layers:1", "heads"))
    groups = build_optimizer(model, 1e-3, weight_decay=0.1).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, plain = ([names[id(parameter)] for parameter in group["params"]] for group in groups)
    assert all(name.endswith("weight") and "LayerNorm" not in name for name in decayed)
    assert all(name.endswith("bias") or "LayerNorm" in name for name in plain)
    assert len(decayed) + len(plain) == sum(parameter.requires_grad for parameter in model.parameters())


def test_learning_rate_rises_and_falls_in_lines() -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_schedule(optimizer, steps=10, warmup=0.2)
    rates = []
    for _ in range(10):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([1 / 3, 2 / 3, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


def test_table_says_what_trains(build: Callable[..., PolyheadModel]) -> None:
    model = build()
    begin_stage(model, stage("layers:1", "pooling", "heads"))
    lines = [line.split() for line in describe(model)]
    assert [(line[0], line[-1]) for line in lines] == [
        ("embeddings", "frozen"),
        ("layer", "frozen"),
        ("layer", "trains"),
        ("pooling", "trains"),
        ("head:topic", "trains"),
        ("head:sentiment", "trains"),
    ]
    total = sum(int(line[-2].replace(",", "")) for line in lines)
    assert total == sum(parameter.numel() for parameter in model.parameters())
