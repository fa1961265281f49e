"""A sequence classifier is imported with the same logits; one that cannot be represented is rejected."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from polyhead_export.interop.checkpoint import CheckpointError
from polyhead_export.interop.import_classifier import FAMILIES
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder
from transformers import AutoTokenizer, BertModel

from tests.support.checkpoints import (
    MODEL_TYPES,
    TEXTS,
    assert_same_logits,
    edit_json,
    import_run,
    run_model,
    write_classifier,
    write_tokenizer,
)


@pytest.mark.parametrize("family", MODEL_TYPES)
def test_classifier_keeps_its_logits(tmp_path: Path, family: str) -> None:
    checkpoint = write_classifier(tmp_path, family)
    run = import_run(checkpoint)
    assert run.model.config.max_tokens == 40
    assert_same_logits(checkpoint, run)


@pytest.mark.parametrize(
    "settings",
    [
        {"classifier_pooling": "mean"},
        {"classifier_bias": True, "norm_bias": True, "norm_eps": 0.1},
    ],
)
def test_modernbert_keeps_its_pooling_its_biases_and_its_norm(tmp_path: Path, settings: dict[str, Any]) -> None:
    checkpoint = write_classifier(tmp_path, "modernbert", **settings)
    weights = load_file(checkpoint / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name, one in weights.items():
        if name.startswith("head."):
            one.copy_(torch.randn(one.shape, generator=generator))
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    run = import_run(checkpoint)
    assert run.model.config.heads[0]["norm_eps"] == settings.get("norm_eps", 1e-5)
    assert_same_logits(checkpoint, run)


def test_classifiers_labels_keep_their_order(tmp_path: Path) -> None:
    (head,) = import_run(write_classifier(tmp_path)).heads
    assert (head["name"], head["kind"], head["labels"]) == ("topic", "softmax", ["zebra", "apple", "mango"])
    assert (head["temperature"], head["threshold"]) == (1.0, None)


def test_two_labels_become_a_softmax_head(tmp_path: Path) -> None:
    checkpoint = write_classifier(tmp_path, "distilbert", id2label={0: "NEGATIVE", 1: "POSITIVE"}, label2id={})
    run = import_run(checkpoint)
    assert (run.heads[0]["kind"], run.heads[0]["labels"]) == ("softmax", ["NEGATIVE", "POSITIVE"])
    assert_same_logits(checkpoint, run)


def test_multi_label_classifier_becomes_a_multilabel_head(tmp_path: Path) -> None:
    checkpoint = write_classifier(tmp_path, problem_type="multi_label_classification")
    run = import_run(checkpoint)
    (head,) = run.heads
    assert (head["kind"], head["labels"], head["thresholds"]) == ("multilabel", ["zebra", "apple", "mango"], [0.5] * 3)
    assert run.content["config"]["model"]["heads"][0]["field"] == "labels"
    assert_same_logits(checkpoint, run)


@pytest.mark.parametrize("settings", [{}, {"problem_type": "regression"}])
def test_classifier_of_one_number_becomes_a_regression_head(tmp_path: Path, settings: dict[str, Any]) -> None:
    checkpoint = write_classifier(tmp_path, id2label={0: "score"}, label2id={}, **settings)
    lines: list[str] = []
    run = import_run(checkpoint, report=lines.append)
    (head,) = run.heads
    assert (head["kind"], head["labels"], head["thresholds"]) == ("regression", [], None)
    assert any("BertForSequenceClassification as head topic (regression)" in line for line in lines)
    assert_same_logits(checkpoint, run)


def test_classifiers_embedding_is_the_normalized_mean(tmp_path: Path) -> None:
    checkpoint = write_classifier(tmp_path)
    run = import_run(checkpoint)
    assert (run.model.config.embedding_pooling, run.model.config.normalize) == ("mean", True)
    backbone = BertModel.from_pretrained(checkpoint).eval()
    ids = torch.tensor([AutoTokenizer.from_pretrained(checkpoint)(TEXTS[1])["input_ids"]])
    with torch.inference_mode():
        mean = backbone(ids).last_hidden_state.mean(dim=1)
    np.testing.assert_allclose(run_model(run, [TEXTS[1]]).sentence_embedding, mean / mean.norm(), atol=1e-5)


def test_shorter_limit_of_the_tokenizer_is_kept(tmp_path: Path) -> None:
    checkpoint = write_classifier(tmp_path)
    write_tokenizer(checkpoint, "bert", model_max_length=20)
    assert import_run(checkpoint).model.config.max_tokens == 20


def test_head_settings_of_the_classifier_are_removed(tmp_path: Path) -> None:
    run = import_run(write_classifier(tmp_path))
    assert not {"id2label", "architectures", "problem_type"} & set(run.model.config.backbone)


def test_report_describes_the_imported_classifier(tmp_path: Path) -> None:
    lines: list[str] = []
    import_run(write_classifier(tmp_path), report=lines.append)
    assert any(
        "BertForSequenceClassification with 3 labels, as head topic: zebra, apple, mango" in line for line in lines
    )
    assert any("differ by" in line for line in lines)


def test_invalid_dropout_is_rejected(tmp_path: Path) -> None:
    checkpoint = write_classifier(tmp_path, "bert")
    config = json.loads((checkpoint / "config.json").read_bytes())
    (checkpoint / "config.json").write_text(json.dumps({**config, "classifier_dropout": 1.0}))
    with pytest.raises(CheckpointError, match=r"its head has dropout 1\.0"):
        import_run(checkpoint)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"problem_type": "regression"}, "has 3 logits and problem_type regression"),
        (
            {"problem_type": "multi_label_classification", "id2label": {0: "only"}, "label2id": {}},
            "has 1 logits and problem_type multi_label_classification",
        ),
        ({"id2label": {0: "same", 1: "same"}, "label2id": {}}, "id2label"),
    ],
)
def test_classifier_of_another_kind_is_rejected(tmp_path: Path, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        import_run(write_classifier(tmp_path, **settings))


def test_classifier_without_a_trained_head_is_rejected(tmp_path: Path) -> None:
    checkpoint = write_classifier(tmp_path)
    weights = {
        name: value for name, value in load_file(checkpoint / "model.safetensors").items() if "pooler" not in name
    }
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 2 of .*bert\.pooler\.dense\.bias; its head was not trained"):
        import_run(checkpoint)


def test_logits_that_differ_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = dataclasses.replace(FAMILIES["BertForSequenceClassification"], activation="relu")
    monkeypatch.setitem(FAMILIES, "BertForSequenceClassification", wrong)
    checkpoint = write_classifier(tmp_path)
    with pytest.raises(CheckpointError, match="differ by"):
        import_run(checkpoint)
    assert not (checkpoint.parent / "run").exists()


def test_cross_encoder_is_rejected(tmp_path: Path) -> None:
    CrossEncoder(str(write_classifier(tmp_path)), device="cpu").save_pretrained(str(tmp_path / "pairs"))
    with pytest.raises(CheckpointError, match=r"its modules are Transformer;"):
        import_run(tmp_path / "pairs")


def test_older_cross_encoder_is_rejected(tmp_path: Path) -> None:
    checkpoint = write_classifier(tmp_path)
    edit_json(checkpoint / "config.json", sentence_transformers={"version": "4.1.0"})
    with pytest.raises(CheckpointError, match="is a CrossEncoder"):
        import_run(checkpoint)


def _edit_labels(checkpoint: Path, **labels: Any) -> None:
    config = json.loads((checkpoint / "config.json").read_bytes())
    config = {key: value for key, value in config.items() if key not in ("id2label", "label2id")}
    (checkpoint / "config.json").write_text(json.dumps({**config, **labels}))


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ({}, r"id2label names 2 labels by default, as config\.json does not have it, the head has 3; give each logit"),
        ({"id2label": {"0": "a", "1": "b"}}, r"id2label names 2 labels, the head has 3; give each logit its label"),
        ({"id2label": {str(number): f"{number}" for number in range(5)}}, r"names 5 labels, the head has 3"),
        ({"num_labels": 4}, r"names 4 labels.*the head has 3"),
        ({"id2label": {"0": "a", "1": "a", "2": "b"}}, r"its labels are \['a', 'a', 'b'\]; give each logit a distinct"),
        ({"id2label": {"0": "a", "1": "b", "3": "c"}}, r"its labels are \['a', 'b', ''\]"),
        (
            {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 1, "b": 0, "c": 2}},
            r"id2label and label2id give 'a' different logits",
        ),
    ],
)
def test_labels_that_do_not_fit_the_head_are_refused(tmp_path: Path, labels: dict[str, Any], reason: str) -> None:
    checkpoint = write_classifier(tmp_path)
    _edit_labels(checkpoint, **labels)
    with pytest.raises(CheckpointError, match=reason):
        import_run(checkpoint)


@pytest.mark.parametrize("family", MODEL_TYPES)
def test_labels_of_every_family_are_compared_with_its_head(tmp_path: Path, family: str) -> None:
    checkpoint = write_classifier(tmp_path, family)
    _edit_labels(checkpoint, id2label={"0": "a", "1": "b"})
    with pytest.raises(CheckpointError, match=r"id2label names 2 labels, the head has 3"):
        import_run(checkpoint)


def test_two_labels_without_names_are_reported(tmp_path: Path) -> None:
    checkpoint = write_classifier(tmp_path, id2label={0: "LABEL_0", 1: "LABEL_1"}, label2id={})
    _edit_labels(checkpoint)
    lines: list[str] = []
    assert import_run(checkpoint, lines.append).heads[0]["labels"] == ["LABEL_0", "LABEL_1"]
    assert any("config.json has no id2label, so its labels are LABEL_0, LABEL_1" in line for line in lines)


def test_numbers_are_labels(tmp_path: Path) -> None:
    checkpoint = write_classifier(tmp_path)
    _edit_labels(checkpoint, id2label={"0": 1, "1": 2, "2": 3}, label2id={"1": "0", "2": "1", "3": "2"})
    assert import_run(checkpoint).heads[0]["labels"] == ["1", "2", "3"]
