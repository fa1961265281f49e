"""A manifest whose fields contradict each other is never written."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import polyhead_bundle as bundle
import pytest
from polyhead_bundle import Check, Fingerprints, FormatError, Golden, Head, Manifest, Novelty, PredictionSets

from tests.support.small_bundle import (
    ABSTENTION,
    EVERY_KIND,
    HEADS,
    MANIFEST,
    changed_manifest,
    write_demo_bundle,
    write_sources,
)


def _variant(**fields: Any) -> Manifest:
    return changed_manifest(variants={"fp32": dataclasses.replace(MANIFEST.variants["fp32"], **fields)})


def _head(name: str, **fields: Any) -> Manifest:
    """A manifest with every kind of head, of which one is changed."""
    heads = (dataclasses.replace(head, **fields) if head.name == name else head for head in EVERY_KIND.heads)
    return dataclasses.replace(EVERY_KIND, heads=tuple(heads))


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
    "prediction sets of an ordinal head": (
        _head("stars", prediction_sets=PredictionSets(0.9, 0.05, 200)),
        "heads.stars.prediction_sets: not allowed for an ordinal head",
    ),
    "impossible coverage of prediction sets": (
        _head("topic", prediction_sets=PredictionSets(1.0, 0.05, 200)),
        "heads.topic.prediction_sets.coverage: must be between 0 and 1",
    ),
    "impossible threshold of prediction sets": (
        _head("topic", prediction_sets=PredictionSets(0.9, 1.5, 200)),
        "heads.topic.prediction_sets.threshold: must be from 0 to 1",
    ),
    "abstention of a regression head": (
        _head("price", abstention=ABSTENTION),
        "heads.price.abstention: not allowed for a regression head",
    ),
    "promise that is certain": (
        _head("stars", abstention=dataclasses.replace(ABSTENTION, accuracy=1.0)),
        "heads.stars.abstention.accuracy: must be between 0 and 1",
    ),
    "confidence above 1": (
        _head("topic", abstention=dataclasses.replace(ABSTENTION, threshold=1.5)),
        "heads.topic.abstention: has a value that is not between 0 and 1",
    ),
    "negative rows": (
        _head("topic", abstention=dataclasses.replace(ABSTENTION, rows=-1)),
        "heads.topic.abstention.rows: -1",
    ),
    "threshold of a softmax head": (
        changed_manifest(heads=(dataclasses.replace(HEADS[0], threshold=0.5), HEADS[1])),
        "heads.topic.threshold: not allowed for a softmax head",
    ),
    "sigmoid head without threshold": (
        changed_manifest(heads=(HEADS[0], dataclasses.replace(HEADS[1], threshold=None))),
        "heads.sentiment.threshold: required for a sigmoid head",
    ),
    "multilabel head without thresholds": (
        _head("tags", thresholds=None),
        "heads.tags.thresholds: required for a multilabel head",
    ),
    "multilabel head with one threshold for all": (_head("tags", threshold=0.5), "heads.tags.threshold: not allowed"),
    "fewer thresholds than labels": (_head("tags", thresholds=(0.5, 0.5)), "2 for 3 labels"),
    "threshold of one": (_head("tags", thresholds=(0.5, 1.0, 0.5)), "heads.tags.threshold: must be between 0 and 1"),
    "thresholds of an ordinal head": (_head("stars", thresholds=(0.5,) * 5), "not allowed for an ordinal head"),
    "ordinal head with a label too many": (_head("stars", labels=tuple("123456")), r"expected \(batch, 5\)"),
    "ordinal head of one label": (_head("stars", labels=("1",)), "two distinct labels"),
    "labels of a regression head": (_head("price", labels=("low", "high")), "a regression head has no labels"),
    "temperature of a regression head": (_head("price", temperature=2.0), "heads.price.temperature: must be 1"),
    "spread of zero": (_head("price", spread=0.0), "heads.price.spread: must be above 0"),
    "spread of a softmax head": (_head("topic", spread=2.0), "heads.topic.spread: must be 1"),
    "multilabel head without labels": (_head("tags", labels=(), thresholds=()), "two distinct labels"),
    "unknown output": (
        changed_manifest(embedding=dataclasses.replace(MANIFEST.embedding, output="embedding")),
        "not among the graph's outputs",
    ),
    "name of a prompt with a space": (changed_manifest(prompts={"my query": "query: "}), "is not a valid name"),
    "name of a prompt that begins with a digit": (changed_manifest(prompts={"1st": "query: "}), "is not a valid name"),
    "prompt without text": (changed_manifest(prompts={"query": ""}), r"prompts.query: has 0 characters"),
    "prompt of a page": (changed_manifest(prompts={"query": "a" * 1001}), r"prompts.query: has 1001 characters"),
    "too many prompts": (changed_manifest(prompts={f"p{n}": "a" for n in range(257)}), "257 are too many"),
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


def test_width_of_each_kind() -> None:
    assert {head.name: head.width for head in EVERY_KIND.heads} == {
        "topic": 3,
        "sentiment": 1,
        "tags": 3,
        "stars": 4,
        "price": 1,
    }


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        (("1", "2", "5"), (1.0, 2.0, 5.0)),
        (("-0.5", "0", "1e1"), (-0.5, 0.0, 10.0)),
        (("low", "medium", "high"), (1.0, 2.0, 3.0)),
        (("1", "2", "many"), (1.0, 2.0, 3.0)),
        (("1", "2", "inf"), (1.0, 2.0, 3.0)),
    ],
)
def test_values_of_ordered_labels(labels: tuple[str, ...], values: tuple[float, ...]) -> None:
    assert Head("stars", "ordinal", "logits", labels).label_values == values


NOVELTY = Novelty(2, (0.5,), 0.1, (0.0, 1.5, 3.0))
IMPOSSIBLE: dict[str, tuple[dict[str, Any], str]] = {
    "no centroids": ({"centroids": 0}, "novelty.centroids: must be at least 1"),
    "no variance": ({"variances": (0.5, 0.0)}, "novelty.variances: must be above 0"),
    "negative noise": ({"noise": -1.0}, "novelty.noise: must be above 0"),
    "falling percentiles": ({"percentiles": (1.0, 0.5)}, "novelty.percentiles: requires at least two numbers"),
    "one percentile": ({"percentiles": (1.0,)}, "novelty.percentiles: requires at least two numbers"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_novelty_is_not_written(tmp_path: Path, case: str) -> None:
    fields, message = IMPOSSIBLE[case]
    with pytest.raises(FormatError, match=message):
        write_demo_bundle(tmp_path, changed_manifest(novelty=dataclasses.replace(NOVELTY, **fields)))


def test_novelty_and_its_file_belong_together(tmp_path: Path) -> None:
    sources = write_sources(tmp_path / "sources")
    (tmp_path / "matrix").write_bytes(b"\0")
    with pytest.raises(FormatError, match=r"novelty\.npy is missing beside novelty"):
        bundle.write(tmp_path / "a", changed_manifest(novelty=NOVELTY), sources)
    with pytest.raises(FormatError, match=r"novelty\.npy without novelty"):
        bundle.write(tmp_path / "a", MANIFEST, {**sources, "novelty.npy": tmp_path / "matrix"})
    manifest = changed_manifest(novelty=NOVELTY)
    written = bundle.write(tmp_path / "a", manifest, {**sources, "novelty.npy": tmp_path / "matrix"})
    assert written.manifest.novelty == NOVELTY
    assert NOVELTY.shape(384) == (3, 384)
