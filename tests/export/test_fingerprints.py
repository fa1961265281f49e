"""A fingerprint changes with everything that an output depends on, and with nothing else."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch
from polyhead_bundle import Fingerprints, Head
from polyhead_export.fingerprints import compute_fingerprints
from polyhead_training.model import PolyheadModel

from tests.support.tiny_model import make_model

TOPIC = Head("topic", "softmax", "logits", ("app", "billing", "support"))
SENTIMENT = Head("sentiment", "sigmoid", "sentiment_logits", ("negative", "positive"), threshold=0.5)
ALL = {"space", "topic", "sentiment"}


def _take(model: PolyheadModel, *heads: Head, tokenizer: bytes = b"{}", precision: str = "fp32") -> Fingerprints:
    return compute_fingerprints(model, heads or (TOPIC, SENTIMENT), tokenizer, precision)


def _differences(one: Fingerprints, other: Fingerprints) -> set[str]:
    """Returns ``space`` and the names of the heads whose fingerprints differ."""
    heads = {name for name in one.heads if one.heads[name] != other.heads[name]}
    return heads | ({"space"} if one.embedding_space != other.embedding_space else set())


@torch.no_grad()
def _train(module: torch.nn.Module) -> None:
    """Changes one weight by the smallest possible step."""
    weight = next(module.parameters()).view(-1)
    weight[0] = torch.nextafter(weight[0], torch.tensor(9.0))


def test_fingerprints_are_16_digits_and_always_the_same() -> None:
    one, other = _take(make_model()), _take(make_model())
    assert one == other
    assert all(re.fullmatch("[0-9a-f]{16}", digits) for digits in (one.embedding_space, *one.heads.values()))


@pytest.mark.parametrize(
    ("module", "changes"),
    [
        ("backbone", ALL),
        ("heads.topic", {"topic"}),
        ("heads.sentiment", {"sentiment"}),
        ("heads", {"topic"}),
        ("pooling", {"topic", "sentiment"}),
    ],
)
def test_training_a_module_changes_the_fingerprints_of_its_outputs(module: str, changes: set[str]) -> None:
    trained = make_model()
    _train(trained.get_submodule(module))
    assert _differences(_take(make_model()), _take(trained)) == changes


def test_training_a_shared_pooling_changes_the_embedding_space() -> None:
    trained = make_model(embedding_pooling="shared")
    _train(trained.pooling)
    assert _differences(_take(make_model(embedding_pooling="shared")), _take(trained)) == ALL


@pytest.mark.parametrize(
    "settings", [{"embedding_pooling": "cls"}, {"normalize": False}, {"max_tokens": 47}, {"pad_token_id": 1}]
)
def test_setting_of_the_embedding_changes_all_fingerprints(settings: dict[str, Any]) -> None:
    assert _differences(_take(make_model()), _take(make_model(**settings))) == ALL


def test_tokenizer_and_precision_change_all_fingerprints(model: PolyheadModel) -> None:
    assert _differences(_take(model), _take(model, tokenizer=b"{ }")) == ALL
    assert _differences(_take(model), _take(model, precision="int8")) == ALL


def test_backbone_configuration_changes_all_fingerprints_but_its_origin_none() -> None:
    changed, relocated = make_model(), make_model()
    changed.config.backbone["layer_norm_eps"] = 1e-5
    relocated.config.backbone |= {"_name_or_path": "elsewhere", "transformers_version": "6.0", "dtype": "float32"}
    assert _differences(_take(make_model()), _take(changed)) == ALL
    assert _differences(_take(make_model()), _take(relocated)) == set()


@pytest.mark.parametrize(
    "change",
    [{"temperature": 1.5}, {"threshold": 0.6}, {"labels": ("positive", "negative")}],
    ids=lambda c: next(iter(c)),
)
def test_calibration_of_a_head_changes_its_fingerprint(model: PolyheadModel, change: dict[str, object]) -> None:
    calibrated = dataclasses.replace(SENTIMENT, **change)  # type: ignore[arg-type]
    assert _differences(_take(model), _take(model, TOPIC, calibrated)) == {"sentiment"}
