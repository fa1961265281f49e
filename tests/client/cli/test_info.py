"""The table of ``polyhead info``."""

from __future__ import annotations

import dataclasses

from polyhead_client import Abstention, EmbeddingInfo, Fingerprints, HeadInfo, Limits, ModelInfo, RuntimeInfo
from polyhead_client.cli.info import render

MODEL = ModelInfo(
    model_id="demo-0123456789ab",
    heads=(
        HeadInfo("mood", "sigmoid", ("bad", "good"), 1.5, 0.5),
        HeadInfo("tags", "multilabel", ("late", "rude"), 1.25, None, (0.5, 0.25)),
        HeadInfo("stars", "ordinal", ("1", "2", "3"), 1.0, None),
        HeadInfo("price", "regression", (), 1.0, None),
    ),
    embedding=EmbeddingInfo(2, "mean", normalized=True),
    limits=Limits(max_tokens=16, max_characters=50, max_items_per_message=9, max_message_bytes=9999),
    fingerprints=Fingerprints("e" * 16, {name: name[0] * 16 for name in ("mood", "tags", "stars", "price")}),
    runtime=RuntimeInfo("onnx", "cpu", "int8", ()),
    bundle_format_version=3,
    server_version="0",
)


def test_every_kind_of_head_is_described() -> None:
    lines = [" ".join(line.split()) for line in render(MODEL).splitlines()]
    begin = lines.index(f"head mood (sigmoid), fingerprint {'m' * 16}")
    assert lines[begin + 1 : begin + 10] == [
        "labels bad, good",
        "temperature 1.5, threshold 0.5",
        f"head tags (multilabel), fingerprint {'t' * 16}",
        "labels late from 0.5, rude from 0.25",
        "temperature 1.25",
        f"head stars (ordinal), fingerprint {'s' * 16}",
        "labels 1, 2, 3",
        "temperature 1",
        f"head price (regression), fingerprint {'p' * 16}",
    ]


def test_abstention_and_novelty_are_described() -> None:
    mood = dataclasses.replace(MODEL.heads[0], abstention=Abstention(0.912345, 0.95, 0.9, 0.6))
    lines = render(dataclasses.replace(MODEL, heads=(mood,), has_novelty=True)).splitlines()
    words = [" ".join(line.split()) for line in lines]
    assert "abstains below a confidence of 0.9123, to keep an accuracy of 0.95 with certainty 0.9" in words
    assert "novelty available with --novelty" in words
    assert "novelty" not in render(MODEL)


def test_names_are_listed_if_there_are_several() -> None:
    words = [
        " ".join(line.split())
        for line in render(dataclasses.replace(MODEL, name="a", model_names=("a", "b"))).splitlines()
    ]
    assert words[:3] == ["model demo-0123456789ab", "served as a", "models a, b"]
    alone = render(dataclasses.replace(MODEL, name="a", model_names=("a",)))
    assert "served as a" in alone
    assert "models " not in alone
