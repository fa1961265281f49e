from __future__ import annotations

import re
from pathlib import Path

import pytest
from polyhead_training.config import Config, DataConfig
from polyhead_training.errors import ConfigError
from polyhead_training.model_config import HeadConfig, ModelConfig
from polyhead_training.model_types import RESERVED_HEAD_NAMES
from polyhead_training.training_config import StageConfig, TrainingConfig
from pydantic import ValidationError
from torch import nn

MINIMAL = {"name": "tickets", "data": {"train": "rows.jsonl"}}


def test_config_has_a_topic_and_a_sentiment_head_by_default() -> None:
    heads = Config.model_validate(MINIMAL).model.heads
    assert [(head.name, head.kind, head.field) for head in heads] == [
        ("topic", "softmax", "label"),
        ("sentiment", "sigmoid", "sentiment"),
    ]


def test_config_trains_heads_first_by_default() -> None:
    stages = Config.model_validate(MINIMAL).training.stages
    assert [stage.train for stage in stages] == [("heads",), ("pooling", "heads", "layers:2")]


def test_config_survives_a_round_trip_through_json() -> None:
    config = Config.model_validate(MINIMAL)
    assert Config.model_validate(config.model_dump(mode="json")) == config


def test_every_field_has_a_description() -> None:
    for section in (HeadConfig, ModelConfig, DataConfig, StageConfig, TrainingConfig):
        assert [name for name, field in section.model_fields.items() if not field.description] == []


def test_config_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Config.model_validate(MINIMAL).name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ([{"name": "a", "kind": "sigmoid"}], "kind 'sigmoid' and labels None"),
        ([{"name": "a", "kind": "sigmoid", "labels": ["x", "y", "z"]}], "name two labels"),
        ([{"name": "a", "kind": "softmax", "labels": ["x", "x"]}], "all different"),
        ([{"name": "a", "kind": "softmax"}, {"name": "a", "kind": "softmax"}], "rename one"),
        ([{"name": "type", "kind": "softmax"}], "torch reserves it"),
        (
            [{"name": "a", "kind": "multilabel", "abstain": {"accuracy": 0.9}}],
            "abstain: a multilabel head does not predict one label: remove abstain",
        ),
        ([{"name": "a", "kind": "softmax", "abstain": {"accuracy": 1}}], "less than 1"),
        ([{"name": "Topic", "kind": "softmax"}], "match pattern"),
        (
            [
                {"name": "urgent", "kind": "sigmoid", "labels": ["no", "yes"]},
                {"name": "sentiment", "kind": "sigmoid", "labels": ["no", "yes"]},
            ],
            "share an ONNX output name",
        ),
        ([], "data has labelled rows, but model.heads is empty"),
        ([{"name": "text", "kind": "softmax"}], "data.text and a head's field are both 'text'"),
    ],
)
def test_invalid_heads_are_rejected(heads: list[dict[str, object]], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Config.model_validate(MINIMAL | {"model": {"heads": heads}})


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (
            "data",
            {"train": "a.jsonl", "validation": "b.jsonl", "validation_fraction": 0.2},
            "validation and validation_fraction contradict",
        ),
        (
            "training",
            {"loss_weights": {"mood": 2.0}},
            "loss_weights.mood refers to head 'mood', but model.heads",
        ),
        (
            "training",
            {"stages": [{"name": "one", "train": ["head:mood"], "learning_rate": 1e-3}]},
            "training.stages.0.train refers to head 'mood', but model.heads",
        ),
        (
            "training",
            {"stages": [{"name": "one", "train": ["heads"], "learning_rate": 1e-3}] * 2},
            "distinct names",
        ),
        ("training", {"stages": [{"name": "one", "train": ["layers:0"], "learning_rate": 1e-3}]}, "match pattern"),
    ],
)
def test_contradictory_fields_are_rejected(section: str, values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Config.model_validate(MINIMAL | {section: values})


@pytest.mark.parametrize(
    ("prompts", "prompt", "message"),
    [
        (
            {"query": "query: "},
            "queries",
            "data.prompt is 'queries', but model.prompts has only query; did you mean 'query'",
        ),
        ({}, "query", "data.prompt is 'query', but model.prompts has none"),
        ({"my query": "query: "}, None, "match pattern"),
        ({"query": ""}, None, "at least 1 character"),
        ({"query": "q" * 1001}, None, "at most 1000 characters"),
        ({f"p{number}": "q" for number in range(257)}, None, "at most 256 items"),
    ],
)
def test_invalid_prompts_are_rejected(prompts: dict[str, str], prompt: str | None, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Config.model_validate(MINIMAL | {"model": {"prompts": prompts}, "data": {"train": "a.jsonl", "prompt": prompt}})


def test_prefix_is_the_text_of_the_prompt_of_the_labelled_rows() -> None:
    model = {"prompts": {"query": "query: ", "retrieval.passage": "passage: "}}
    assert Config.model_validate(MINIMAL | {"model": model}).prefix == ""
    data = {"train": "a.jsonl", "prompt": "retrieval.passage"}
    assert Config.model_validate(MINIMAL | {"model": model, "data": data}).prefix == "passage: "


def test_reserved_head_names_are_those_of_torch() -> None:
    valid = {name for name in dir(nn.ModuleDict) if re.fullmatch("[a-z][a-z0-9_]*", name)}
    assert valid - RESERVED_HEAD_NAMES == set()


def test_resolve_starts_at_the_folder_of_the_file() -> None:
    assert Config.model_validate(MINIMAL).resolve("data.train", "rows.jsonl") == Path("rows.jsonl")


def test_resolve_expands_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_FOLDER", "/somewhere")
    resolved = Config.model_validate(MINIMAL).resolve("data.train", "${SOME_FOLDER}/rows.jsonl")
    assert resolved == Path("/somewhere/rows.jsonl")


def test_resolve_names_a_variable_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_FOLDER", raising=False)
    with pytest.raises(ConfigError, match=r"data\.train: .*environment variable SOME_FOLDER, which is not set"):
        Config.model_validate(MINIMAL).resolve("data.train", "${SOME_FOLDER}/rows.jsonl")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ema_decay": 0.99}, "ema_decay has no effect without average = 'ema': set average, or remove ema_decay"),
        ({"average": "swa", "ema_decay": 0.99}, "ema_decay has no effect"),
        ({"teacher_weight": 0.5}, "teacher_weight has no effect without teacher"),
        ({"teacher_temperature": 4}, "teacher_temperature has no effect without teacher"),
    ],
)
def test_setting_without_effect_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainingConfig.model_validate(settings)


def test_settings_of_average_and_teacher_are_accepted() -> None:
    TrainingConfig.model_validate({"average": "ema", "ema_decay": 0.99})
    TrainingConfig.model_validate({"teacher": "runs/large", "teacher_weight": 0.5, "teacher_temperature": 4})


def _abstaining(**training: object) -> Config:
    heads = [
        {"name": "topic", "kind": "softmax", "abstain": {"accuracy": 0.9, "certainty": 0.8}},
        {"name": "stars", "kind": "ordinal"},
        {"name": "price", "kind": "regression"},
    ]
    return Config.model_validate({**MINIMAL, "model": {"heads": heads}, "training": training})


def test_head_has_its_own_promise_or_that_of_every_head() -> None:
    assert list(_abstaining().abstentions) == ["topic"]
    found = _abstaining(heads={"abstain": {"accuracy": 0.95}}).abstentions
    assert {name: (one.accuracy, one.certainty) for name, one in found.items()} == {
        "topic": (0.9, 0.8),
        "stars": (0.95, 0.95),
    }


def test_promise_without_a_head_that_abstains_is_refused() -> None:
    values = {
        **MINIMAL,
        "model": {"heads": [{"name": "price", "kind": "regression"}]},
        "training": {"heads": {"abstain": {"accuracy": 0.9}}},
    }
    with pytest.raises(ValidationError, match=r"training\.heads\.abstain has no effect"):
        Config.model_validate(values)
