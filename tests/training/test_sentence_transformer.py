from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from polyhead_training.model_config import ModelConfig
from polyhead_training.sentence_transformer import ignored_settings


def write(folder: Path, files: Mapping[str, object]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder


def modules(*kinds: str) -> list[dict[str, str]]:
    return [
        {"path": f"{number}_{kind}", "type": f"sentence_transformers.models.{kind}"}
        for number, kind in enumerate(kinds)
    ]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode": "lasttoken"}, "lasttoken"),
        ({"pooling_mode": ["cls", "mean"]}, "cls+mean"),
    ],
)
def test_pooling_of_the_backbone_is_named_unless_the_configuration_names_one(
    tmp_path: Path, settings: dict[str, object], expected: str
) -> None:
    files = {"modules.json": modules("Transformer", "Pooling", "Normalize"), "1_Pooling/config.json": settings}
    folder = write(tmp_path, files)
    (found,) = ignored_settings(folder, ModelConfig())
    assert f"by {expected}, and model.embedding_pooling is mean" in found
    assert not list(ignored_settings(folder, ModelConfig(embedding_pooling="mean")))


def test_layers_lowercasing_and_prompts_are_named(tmp_path: Path) -> None:
    files = {
        "modules.json": modules("Transformer", "Pooling", "Dense"),
        "1_Pooling/config.json": {"pooling_mode_mean_tokens": True},
        "sentence_bert_config.json": {"do_lower_case": True},
        "config_sentence_transformers.json": {"prompts": {"query": "query: ", "document": ""}},
    }
    folder = write(tmp_path, files)
    dense, lowercase, prompts = ignored_settings(folder, ModelConfig())
    assert "the module Dense after its pooling" in dense
    assert "lowercases" in lowercase
    assert "names the prompts query; set model.prompts" in prompts
    assert len(list(ignored_settings(folder, ModelConfig(prompts={"query": "query: "})))) == 2


@pytest.mark.parametrize("content", [None, "{", "[1, {}]", '{"path": 1}'])
def test_other_folders_and_damaged_files_say_nothing_of_the_pooling(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "modules.json").write_text(content)
    assert not any("pools its" in line for line in ignored_settings(tmp_path, ModelConfig()))
