"""A manifest whose fields contradict each other is never written."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import polyhead_bundle as bundle
import pytest
from polyhead_bundle import Check, Fingerprints, FormatError, Golden, Manifest

from tests.support.small_bundle import HEADS, MANIFEST, changed_manifest, write_demo_bundle, write_sources


def _variant(**fields: Any) -> Manifest:
    return changed_manifest(variants={"fp32": dataclasses.replace(MANIFEST.variants["fp32"], **fields)})


CONTRADICTIONS = {
    "two heads with the same name": (
        changed_manifest(heads=(HEADS[0], dataclasses.replace(HEADS[1], name="topic"))),
        "heads: duplicate name",
    ),
    "two heads with the same output": (
        changed_manifest(heads=(HEADS[0], dataclasses.replace(HEADS[0], name="other"))),
        "heads.output: duplicate name",
    ),
    "two outputs with the same name": (
        changed_manifest(outputs=(*MANIFEST.outputs, MANIFEST.outputs[0])),
        "outputs: duplicate name",
    ),
    "duplicate label": (
        changed_manifest(heads=(dataclasses.replace(HEADS[0], labels=("a", "a", "b")), HEADS[1])),
        "two distinct labels",
    ),
    "width of a head": (
        changed_manifest(heads=(dataclasses.replace(HEADS[0], labels=("a", "b")), HEADS[1])),
        "expected",
    ),
    "temperature of zero": (
        changed_manifest(heads=(dataclasses.replace(HEADS[0], temperature=0.0), HEADS[1])),
        "temperature",
    ),
    "threshold of a softmax head": (
        changed_manifest(heads=(dataclasses.replace(HEADS[0], threshold=0.5), HEADS[1])),
        "not allowed for a softmax head",
    ),
    "sigmoid head without threshold": (
        changed_manifest(heads=(HEADS[0], dataclasses.replace(HEADS[1], threshold=None))),
        "required for a sigmoid head",
    ),
    "unknown output": (
        changed_manifest(embedding=dataclasses.replace(MANIFEST.embedding, output="embedding")),
        "not among the graph's outputs",
    ),
    "token limit without text": (changed_manifest(max_tokens=2), "leaves no token for text"),
    "negative padding token": (changed_manifest(pad_token_id=-1), "pad_token_id"),
    "no golden text": (_variant(golden=()), "golden: is empty"),
    "golden output of another size": (
        _variant(golden=(Golden("x", (0.6, -0.8), {"topic": (0.1,), "sentiment": (0.1,)}),)),
        "does not match the model's outputs",
    ),
    "variant without gate results": (_variant(gate=()), "gate: is empty"),
    "variant that failed its gate": (_variant(gate=(Check("names", 1, 0),)), "failed names"),
    "check with a NaN limit": (_variant(gate=(Check("names", 0, float("nan")),)), "failed names"),
    "check with a NaN value": (_variant(gate=(Check("names", float("nan"), 1),)), "failed names"),
    "variant with a missing file": (_variant(file="int8.onnx"), "'int8.onnx' is not among"),
    "tolerance of zero": (_variant(golden_tolerance=0.0), "golden_tolerance"),
    "missing fingerprint of a head": (_variant(fingerprints=Fingerprints("0" * 16, {})), "must name every head"),
    "NaN in a golden output": (
        _variant(golden=(dataclasses.replace(MANIFEST.variants["fp32"].golden[0], embedding=(float("nan"), 0.0)),)),
        "not JSON compliant",
    ),
}


@pytest.mark.parametrize("contradiction", CONTRADICTIONS)
def test_inconsistent_manifest_is_not_written(tmp_path: Path, contradiction: str) -> None:
    manifest, message = CONTRADICTIONS[contradiction]
    with pytest.raises(FormatError, match=message):
        write_demo_bundle(tmp_path, manifest)
    assert [path.name for path in tmp_path.iterdir()] == ["sources"]


@pytest.mark.parametrize(
    "name", ["../escaped", "/escaped", "torch/../../escaped", ".hidden", "a/b/c", "bundle.json", ""]
)
def test_name_outside_the_bundle_is_never_written(tmp_path: Path, name: str) -> None:
    names = {**write_sources(tmp_path / "sources"), name: tmp_path / "sources" / "model.onnx"}
    with pytest.raises(FormatError, match="is not a valid file name in a bundle"):
        bundle.write(tmp_path / "inside" / "demo", MANIFEST, names)
    assert not list(tmp_path.rglob("escaped"))
    assert not list((tmp_path / "inside").iterdir())
