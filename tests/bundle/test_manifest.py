"""A manifest whose parts contradict each other is never written."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import polyhead_bundle as bundle
import pytest
from polyhead_bundle import Check, Fingerprints, FormatError, Golden, Manifest

from tests.support.small_bundle import HEADS, MANIFEST, changed, sources, written


def _variant(**fields: Any) -> Manifest:
    return changed(variants={"fp32": dataclasses.replace(MANIFEST.variants["fp32"], **fields)})


CONTRADICTIONS = {
    "two heads of one name": (
        changed(heads=(HEADS[0], dataclasses.replace(HEADS[1], name="topic"))),
        "heads: a name stands twice",
    ),
    "two heads on one output": (
        changed(heads=(HEADS[0], dataclasses.replace(HEADS[0], name="other"))),
        "heads.output: a name stands twice",
    ),
    "two outputs of one name": (
        changed(outputs=(*MANIFEST.outputs, MANIFEST.outputs[0])),
        "outputs: a name stands twice",
    ),
    "label twice": (changed(heads=(dataclasses.replace(HEADS[0], labels=("a", "a", "b")), HEADS[1])), "each once"),
    "width of a head": (changed(heads=(dataclasses.replace(HEADS[0], labels=("a", "b")), HEADS[1])), "expected"),
    "temperature of zero": (changed(heads=(dataclasses.replace(HEADS[0], temperature=0.0), HEADS[1])), "temperature"),
    "threshold of a softmax head": (
        changed(heads=(dataclasses.replace(HEADS[0], threshold=0.5), HEADS[1])),
        "a softmax head has none",
    ),
    "sigmoid head without threshold": (
        changed(heads=(HEADS[0], dataclasses.replace(HEADS[1], threshold=None))),
        "a sigmoid head has one",
    ),
    "output that is not there": (
        changed(embedding=dataclasses.replace(MANIFEST.embedding, output="embedding")),
        "not among the graph's outputs",
    ),
    "no room for text": (changed(max_tokens=2), "leaves no room"),
    "padding with no token": (changed(pad_token_id=-1), "pad_token_id"),
    "no golden text": (_variant(golden=()), "golden: is empty"),
    "golden answer of another size": (
        _variant(golden=(Golden("x", (0.6, -0.8), {"topic": (0.1,), "sentiment": (0.1,)}),)),
        "does not answer every output",
    ),
    "variant without a gate": (_variant(gate=()), "gate: is empty"),
    "variant that failed": (_variant(gate=(Check("names", 1, 0),)), "did not pass names"),
    "variant with a limit that is no number": (_variant(gate=(Check("names", 0, float("nan")),)), "did not pass names"),
    "variant with a value that is no number": (_variant(gate=(Check("names", float("nan"), 1),)), "did not pass names"),
    "variant without its file": (_variant(file="int8.onnx"), "'int8.onnx' is not among"),
    "tolerance of zero": (_variant(golden_tolerance=0.0), "golden_tolerance"),
    "fingerprint of a head missing": (_variant(fingerprints=Fingerprints("0" * 16, {})), "must name every head"),
    "golden answer that is no number": (
        _variant(golden=(dataclasses.replace(MANIFEST.variants["fp32"].golden[0], embedding=(float("nan"), 0.0)),)),
        "not JSON compliant",
    ),
}


@pytest.mark.parametrize("contradiction", CONTRADICTIONS)
def test_manifest_that_contradicts_itself_is_not_written(tmp_path: Path, contradiction: str) -> None:
    manifest, message = CONTRADICTIONS[contradiction]
    with pytest.raises(FormatError, match=message):
        written(tmp_path, manifest)
    assert [path.name for path in tmp_path.iterdir()] == ["sources"]


@pytest.mark.parametrize(
    "name", ["../escaped", "/escaped", "torch/../../escaped", ".hidden", "a/b/c", "bundle.json", ""]
)
def test_name_that_leads_out_of_the_bundle_is_never_written(tmp_path: Path, name: str) -> None:
    names = {**sources(tmp_path / "sources"), name: tmp_path / "sources" / "model.onnx"}
    with pytest.raises(FormatError, match="is not a name that a bundle may hold"):
        bundle.write(tmp_path / "inside" / "demo", MANIFEST, names)
    assert not list(tmp_path.rglob("escaped"))
    assert not list((tmp_path / "inside").iterdir())
