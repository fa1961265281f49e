"""Verification rejects a bundle with correct hashes and wrong content."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import polyhead_bundle as bundle
import pytest
from polyhead_bundle import Manifest
from polyhead_export.errors import ContentError, ValuesError
from polyhead_export.verify import verify
from safetensors.torch import load_file, save_file

from tests.support.tiny_model import ignore

Forge = Callable[..., Path]


@pytest.fixture
def forge(bundle_dir: Path, tmp_path: Path) -> Forge:
    """Writes a copy of the bundle with a changed file or manifest and correct hashes."""

    def write(
        name: str = "", content: bytes = b"", manifest: Callable[[Manifest], Manifest] = lambda manifest: manifest
    ) -> Path:
        found = bundle.load(bundle_dir)
        sources = {entry: found.file(entry) for entry in found.manifest.files}
        if name:
            sources[name] = tmp_path / "changed"
            sources[name].write_bytes(content)
        return bundle.write(tmp_path / "forged", manifest(found.manifest), sources).path

    return write


@pytest.fixture
def proto(bundle_dir: Path) -> onnx.ModelProto:
    return onnx.load(bundle_dir / "model.onnx")


def test_exported_bundle_verifies(bundle_dir: Path) -> None:
    lines: list[str] = []
    assert verify(bundle_dir, lines.append) == bundle.load(bundle_dir)
    assert any("golden" in line and "padding_invariance" in line for line in lines)


@pytest.mark.parametrize(
    ("name", "message"), [("tokenizer.json", "is not a valid tokenizer"), ("model.onnx", "is not a valid graph")]
)
def test_file_of_another_kind_is_rejected(forge: Forge, name: str, message: str) -> None:
    with pytest.raises(ContentError, match=message):
        verify(forge(name, b"something else"), ignore)


def test_operators_of_unknown_domains_are_rejected(proto: onnx.ModelProto, forge: Forge) -> None:
    proto.opset_import.add(domain="ai.unknown", version=1)
    with pytest.raises(ContentError, match=r"does not include: \['ai.unknown'\]"):
        verify(forge("model.onnx", proto.SerializeToString()), ignore)


def test_operators_defined_by_the_graph_are_rejected(proto: onnx.ModelProto, forge: Forge) -> None:
    body = [onnx.helper.make_node("Identity", ["x"], ["y"])]
    opsets = [onnx.helper.make_opsetid("", 20)]
    proto.functions.append(onnx.helper.make_function("com.microsoft", "Mine", ["x"], ["y"], body, opsets))
    proto.opset_import.add(domain="com.microsoft", version=1)
    with pytest.raises(ContentError, match="defines its own operators"):
        verify(forge("model.onnx", proto.SerializeToString()), ignore)


def test_path_inside_the_graph_is_rejected(proto: onnx.ModelProto, forge: Forge) -> None:
    proto.graph.doc_string = "/home/ann/models/model.py"
    with pytest.raises(ContentError, match="contains a trace of the machine"):
        verify(forge("model.onnx", proto.SerializeToString()), ignore)


def test_golden_outputs_of_another_model_are_rejected(forge: Forge) -> None:
    def swap(manifest: Manifest) -> Manifest:
        first, second, *others = manifest.variants["fp32"].golden
        swapped = (
            dataclasses.replace(first, embedding=second.embedding),
            dataclasses.replace(second, embedding=first.embedding),
        )
        return _variant(manifest, golden=(*swapped, *others))

    with pytest.raises(ValuesError, match=r"golden is .* \(limit 0\.001\)"):
        verify(forge(manifest=swap), ignore)


def _head(manifest: Manifest, **fields: Any) -> Manifest:
    first, *others = manifest.heads
    return dataclasses.replace(manifest, heads=(dataclasses.replace(first, **fields), *others))


def _variant(manifest: Manifest, **fields: Any) -> Manifest:
    return dataclasses.replace(manifest, variants={"fp32": dataclasses.replace(manifest.variants["fp32"], **fields)})


WRONG_FIELDS: dict[str, Callable[[Manifest], Manifest]] = {
    "heads": lambda manifest: _head(manifest, labels=manifest.heads[0].labels[::-1]),
    "embedding": lambda manifest: dataclasses.replace(
        manifest, embedding=dataclasses.replace(manifest.embedding, pooling="cls")
    ),
    "max_tokens": lambda manifest: dataclasses.replace(manifest, max_tokens=47),
    "pad_token_id": lambda manifest: dataclasses.replace(manifest, pad_token_id=1),
    # The labels stay the same, so only the fingerprints differ.
    "variants.fp32.fingerprints": lambda manifest: _head(manifest, temperature=2.0),
}


@pytest.mark.parametrize("field", WRONG_FIELDS)
def test_manifest_that_describes_another_model_is_rejected(forge: Forge, field: str) -> None:
    with pytest.raises(ContentError, match=rf"bundle\.json: {field}: is .*"):
        verify(forge(manifest=WRONG_FIELDS[field]), ignore)


def test_wider_tolerance_in_the_manifest_is_ignored(forge: Forge) -> None:
    def widen(manifest: Manifest) -> Manifest:
        first, *others = manifest.variants["fp32"].golden
        shifted = dataclasses.replace(first, embedding=tuple(value + 0.01 for value in first.embedding))
        return _variant(manifest, golden=(shifted, *others), golden_tolerance=1.0)

    with pytest.raises(ValuesError, match=r"golden is 0\.01 \(limit 0\.001\)"):
        verify(forge(manifest=widen), ignore)


def test_stricter_tolerance_in_the_manifest_applies(forge: Forge) -> None:
    with pytest.raises(ValuesError, match=r"golden is .* \(limit 1e-12\)"):
        verify(forge(manifest=lambda manifest: _variant(manifest, golden_tolerance=1e-12)), ignore)


def test_torch_weights_of_another_model_are_rejected(bundle_dir: Path, forge: Forge, tmp_path: Path) -> None:
    weights = load_file(bundle_dir / "torch" / "model.safetensors")
    weights["heads.topic.layers.4.bias"] += 0.01
    save_file(weights, tmp_path / "weights", metadata={"format": "pt"})
    with pytest.raises(ValuesError, match=r"difference\.logits is 0\.01 "):
        verify(forge("torch/model.safetensors", (tmp_path / "weights").read_bytes()), ignore)


@pytest.mark.parametrize("missing", ["heads.topic.layers.4.bias", "backbone.embeddings.LayerNorm.weight"])
def test_missing_torch_weights_are_rejected(bundle_dir: Path, forge: Forge, tmp_path: Path, missing: str) -> None:
    weights = load_file(bundle_dir / "torch" / "model.safetensors")
    del weights[missing]
    save_file(weights, tmp_path / "weights", metadata={"format": "pt"})
    with pytest.raises(ContentError, match=f"{missing} is missing"):
        verify(forge("torch/model.safetensors", (tmp_path / "weights").read_bytes()), ignore)
