"""A bundle of a few bytes, and a helper that forges its manifest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polyhead_bundle as bundle
from polyhead_bundle import (
    Abstention,
    Bundle,
    Check,
    CoveragePoint,
    Embedding,
    Fingerprints,
    Golden,
    Head,
    Manifest,
    Tensor,
    Variant,
)

FILES = {"model.onnx": b"graph", "tokenizer.json": b"{}", "torch/config.json": b"{ }", "README.md": "é\n".encode()}
HEADS = (
    Head("topic", "softmax", "logits", ("app", "billing", "support"), temperature=1.5),
    Head("sentiment", "sigmoid", "sentiment_logits", ("negative", "positive"), threshold=0.5),
)
# Answers 60 % of the texts with an accuracy of 0.95.
ABSTENTION = Abstention(
    0.95, 0.9, 0.75, 0.951, 0.6, 500, (CoveragePoint(0.75, 0.6, 0.97), CoveragePoint(0.0, 1.0, 0.9))
)
MANIFEST = Manifest(
    name="demo",
    files={},
    inputs=(
        Tensor("input_ids", "int64", ("batch", "sequence")),
        Tensor("attention_mask", "int64", ("batch", "sequence")),
    ),
    outputs=(
        Tensor("sentence_embedding", "float32", ("batch", 2)),
        Tensor("logits", "float32", ("batch", 3)),
        Tensor("sentiment_logits", "float32", ("batch", 1)),
    ),
    embedding=Embedding("sentence_embedding", 2, "mean", normalized=True),
    heads=HEADS,
    max_tokens=64,
    pad_token_id=0,
    variants={
        "fp32": Variant(
            file="model.onnx",
            batch_invariant=True,
            golden_tolerance=1e-3,
            fingerprints=Fingerprints("0" * 16, {"topic": "1" * 16, "sentiment": "2" * 16}),
            gate=(Check("names", 0, 0), Check("difference.logits", 3e-7, 1e-4)),
            golden=(Golden("good day 🙂", (0.6, -0.8), {"topic": (0.1, 0.2, 0.3), "sentiment": (-1.5,)}),),
            operators={"Gemm": 2, "MatMul": 12},
        )
    },
    built_with={"torch": "2.0"},
)

# A head of each kind, over the same outputs of the backbone.
EVERY_KIND = dataclasses.replace(
    MANIFEST,
    outputs=(
        *MANIFEST.outputs,
        Tensor("tags_logits", "float32", ("batch", 3)),
        Tensor("stars_logits", "float32", ("batch", 4)),
        Tensor("price_logits", "float32", ("batch", 1)),
    ),
    heads=(
        *HEADS,
        Head("tags", "multilabel", "tags_logits", ("late", "broken", "rude"), 1.2, thresholds=(0.5, 0.25, 0.75)),
        Head("stars", "ordinal", "stars_logits", ("1", "2", "3", "4", "5"), temperature=0.8),
        Head("price", "regression", "price_logits", (), spread=12.5),
    ),
    variants={
        "fp32": dataclasses.replace(
            MANIFEST.variants["fp32"],
            fingerprints=Fingerprints(
                "0" * 16, dict.fromkeys(("topic", "sentiment", "tags", "stars", "price"), "1" * 16)
            ),
            golden=(
                Golden(
                    "good day",
                    (0.6, -0.8),
                    {
                        "topic": (0.1, 0.2, 0.3),
                        "sentiment": (-1.5,),
                        "tags": (-2.0, 0.5, 1.0),
                        "stars": (3.0, 2.0, 0.5, -1.0),
                        "price": (19.99,),
                    },
                ),
            ),
        )
    },
)


def to_version_4(document: dict[str, Any]) -> None:
    """Gives a manifest the form of version 4 of the format."""
    document["format_version"] = 4
    for head in document["heads"]:
        del head["prediction_sets"]


def to_version_3(document: dict[str, Any]) -> None:
    """Gives a manifest the form of version 3 of the format."""
    to_version_4(document)
    document["format_version"] = 3
    del document["novelty"], document["reference"]
    for head in document["heads"]:
        del head["abstention"]


def to_version_2(document: dict[str, Any]) -> None:
    """Gives a manifest the form of version 2 of the format."""
    to_version_3(document)
    document["format_version"] = 2
    del document["prompts"]
    for head in document["heads"]:
        del head["thresholds"], head["spread"]


def write_sources(folder: Path) -> dict[str, Path]:
    """Writes the files of a bundle into a folder and returns their paths by name."""
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return {name: folder / name for name in FILES}


def write_demo_bundle(folder: Path, manifest: Manifest = MANIFEST) -> Bundle:
    """Writes the bundle ``demo`` into a folder."""
    return bundle.write(folder / "demo", manifest, write_sources(folder / "sources"))


def changed_manifest(**fields: Any) -> Manifest:
    """Returns the manifest with some fields replaced."""
    return dataclasses.replace(MANIFEST, **fields)


def rewrite_manifest(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes a manifest and updates its digest."""
    document = json.loads(path.read_bytes())
    document.pop("digest")
    change(document)

    def canonical(value: object) -> bytes:
        return (json.dumps(value, sort_keys=True, indent=2) + "\n").encode()

    path.write_bytes(canonical({**document, "digest": hashlib.sha256(canonical(document)).hexdigest()}))
