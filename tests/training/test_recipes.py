from __future__ import annotations

from pathlib import Path

import pytest
from polyhead_training.config import Config
from polyhead_training.config_file import read_config
from polyhead_training.errors import ConfigError

MINIMAL = 'name = "tickets"\n[data]\ntrain = "train.jsonl"\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": "b"}\n')
    (tmp_path / "config.toml").write_text(MINIMAL)
    return tmp_path / "config.toml"


def few_shot(path: Path, *overrides: str) -> Config:
    return read_config(path, ["training.recipe=few-shot", *overrides])


def test_few_shot_sets_stages_heads_and_validation_in_one_field(path: Path) -> None:
    config = few_shot(path)
    contrastive, *_, heads = config.training.stages
    assert (contrastive.loss, heads.solver) == ("contrastive", "lbfgs")
    assert (contrastive.tasks, heads.tasks) == (("heads",), ("heads", "embedding"))
    assert [(head.name, head.hidden_size) for head in config.model.heads] == [("topic", 0), ("sentiment", 0)]
    assert config.model.pooling == "embedding"
    assert config.data.validation_fraction == 0.0
    assert (config.training.distillation, config.training.select) == (0.0, "last")


@pytest.mark.parametrize("kind", ["multilabel", "ordinal", "regression"])
def test_heads_without_classes_have_no_contrastive_stage(path: Path, kind: str) -> None:
    head = f"{{name='tags', kind='{kind}'}}"
    stages = few_shot(path, f"model.heads=[{head}]").training.stages
    assert [stage.name for stage in stages] == ["first_heads", "all", "heads"]
    mixed = few_shot(path, f"model.heads=[{head}, {{name='topic', kind='softmax'}}]").training.stages
    assert mixed[0].loss == "contrastive"


def test_standard_is_the_default_and_sets_nothing(path: Path) -> None:
    assert read_config(path, ["training.recipe=standard"]).model_dump() == read_config(path).model_dump()
    assert read_config(path).training.stages[0].solver == "adamw"


def test_fields_that_are_set_keep_their_values(path: Path) -> None:
    stages = "training.stages=[{name='only', train=['all'], learning_rate=1e-4}]"
    heads = "model.heads=[{name='topic', kind='softmax', field='label', hidden_size=8, loss='focal'}]"
    config = few_shot(path, stages, heads, "model.pooling=mean", "training.distillation=0.5", "training.batch_size=8")
    assert [stage.name for stage in config.training.stages] == ["only"]
    assert [(head.hidden_size, head.loss) for head in config.model.heads] == [(8, "focal")]
    assert config.model.pooling == "mean"
    assert (config.training.distillation, config.training.batch_size) == (0.5, 8)


def test_configured_validation_is_kept(path: Path) -> None:
    config = few_shot(path, "data.validation=train.jsonl", "training.select=best")
    assert (config.data.validation_fraction, config.training.select) == (None, "best")
    assert few_shot(path, "data.validation_fraction=0.2").data.validation_fraction == 0.2


def test_resolved_configuration_can_be_read_again(path: Path) -> None:
    config = few_shot(path)
    assert Config.model_validate(config.model_dump(mode="json")).model_dump() == config.model_dump()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.select=best", "training.select 'best' and training.recipe 'few-shot': it spares no rows"),
        ("training.loss_weighting=uncertainty", "training.loss_weighting 'uncertainty' and training.recipe 'few-shot'"),
        ("training.recipe=few-shots", "training.recipe: 'few-shots'"),
    ],
)
def test_contradictions_are_named_with_the_fix(path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        few_shot(path, override)
    assert message in str(caught.value)


@pytest.mark.parametrize("override", ["training.teacher=run", "training.r_drop=1"])
def test_setting_that_no_stage_uses_is_rejected(path: Path, override: str) -> None:
    fit = "training.stages=[{name='x', train=['heads'], solver='lbfgs'}]"
    with pytest.raises(ConfigError, match="has no effect: every stage has loss 'contrastive' or solver 'lbfgs'"):
        few_shot(path, fit, override)


def test_contradiction_has_the_line_of_its_field(path: Path) -> None:
    path.write_text(MINIMAL + '[training]\nrecipe = "few-shot"\nselect = "best"\n')
    with pytest.raises(ConfigError, match=r"config.toml:6: training.select 'best'"):
        read_config(path)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("train=['heads'], loss='contrastive', learning_rate=1e-4", "it trains no heads; name other parts"),
        (
            "train=['layers'], loss='contrastive', tasks=['embedding'], learning_rate=1e-4",
            "tasks ['embedding'] and loss 'contrastive': it learns from labelled rows only: remove tasks",
        ),
        (
            "train=['layers'], loss='contrastive', tasks=['heads', 'embedding'], learning_rate=1e-4",
            "tasks ['heads', 'embedding'] and loss 'contrastive': it learns from labelled rows only: remove tasks",
        ),
        ("train=['layers'], solver='lbfgs'", "it trains heads only; remove the other parts"),
        ("train=['heads'], solver='lbfgs', epochs=3", "epochs 3 and solver 'lbfgs', which has none"),
        ("train=['heads'], solver='lbfgs', learning_rate=0.1", "learning_rate 0.1 and solver 'lbfgs', which has none"),
        ("train=['heads'], learning_rate=0.1, penalty=2.0", "penalty 2.0 and solver 'adamw'"),
        ("train=['heads']", "learning_rate: is missing"),
    ],
)
def test_settings_of_a_stage_that_contradict_each_other_are_rejected(path: Path, stage: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(path, [f"training.stages=[{{name='x', {stage}}}]"])
    assert message in str(caught.value)
