"""A bundle whose hashes are right, but whose content is not, is found out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import polyhead_bundle as bundle
import pytest
import tokenizers
from polyhead_bundle import IntegrityError, Manifest
from polyhead_export.errors import ContentError, ValuesError
from polyhead_export.verify import verify
from safetensors.torch import load_file, save_file

Forge = Callable[..., Path]


@pytest.fixture
def forge(bundle_dir: Path, tmp_path: Path) -> Forge:
    """Writes a bundle anew, with right hashes, after one of its files or its manifest was changed."""

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


def _ignore(line: str) -> None:
    pass


def test_exported_bundle_verifies(bundle_dir: Path) -> None:
    lines: list[str] = []
    assert verify(bundle_dir, lines.append) == bundle.load(bundle_dir)
    assert any("golden" in line and "padding_invariance" in line for line in lines)


def test_bundle_that_was_only_written_anew_verifies(forge: Forge) -> None:
    verify(forge(), _ignore)


def test_changed_file_is_refused_before_it_is_read(forge: Forge) -> None:
    path = forge()
    (path / "tokenizer.json").write_bytes((path / "tokenizer.json").read_bytes() + b" ")
    with pytest.raises(IntegrityError):
        verify(path, _ignore)


@pytest.mark.parametrize("switch_on", ["enable_padding", "enable_truncation"])
def test_tokenizer_that_pads_or_truncates_is_found(bundle_dir: Path, forge: Forge, switch_on: str) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(bundle_dir / "tokenizer.json"))
    getattr(tokenizer, switch_on)(**({"max_length": 8} if switch_on == "enable_truncation" else {}))
    with pytest.raises(ContentError, match="has padding or truncation switched on"):
        verify(forge("tokenizer.json", tokenizer.to_str().encode()), _ignore)


@pytest.mark.parametrize(("name", "message"), [("tokenizer.json", "is no tokenizer"), ("model.onnx", "is no graph")])
def test_file_of_another_kind_is_found(forge: Forge, name: str, message: str) -> None:
    with pytest.raises(ContentError, match=message):
        verify(forge(name, b"something else"), _ignore)


def test_weights_outside_of_the_graph_are_found(proto: onnx.ModelProto, forge: Forge) -> None:
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    with pytest.raises(ContentError, match=r"is no graph that can be used|in a file outside of it"):
        verify(forge("model.onnx", proto.SerializeToString()), _ignore)


def test_operators_of_strangers_are_found(proto: onnx.ModelProto, forge: Forge) -> None:
    proto.opset_import.add(domain="ai.strangers", version=1)
    with pytest.raises(ContentError, match=r"does not have: \['ai.strangers'\]"):
        verify(forge("model.onnx", proto.SerializeToString()), _ignore)


def test_operators_that_the_graph_defines_are_found(proto: onnx.ModelProto, forge: Forge) -> None:
    body = [onnx.helper.make_node("Identity", ["x"], ["y"])]
    opsets = [onnx.helper.make_opsetid("", 20)]
    proto.functions.append(onnx.helper.make_function("com.microsoft", "Mine", ["x"], ["y"], body, opsets))
    proto.opset_import.add(domain="com.microsoft", version=1)
    with pytest.raises(ContentError, match="defines operators of its own"):
        verify(forge("model.onnx", proto.SerializeToString()), _ignore)


def test_path_inside_the_graph_is_found(proto: onnx.ModelProto, forge: Forge) -> None:
    proto.graph.doc_string = "/home/ann/models/model.py"
    with pytest.raises(ContentError, match="tells about the machine"):
        verify(forge("model.onnx", proto.SerializeToString()), _ignore)


def test_graph_with_other_dims_than_the_manifest_is_found(proto: onnx.ModelProto, forge: Forge) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "tokens"
    with pytest.raises(ContentError, match="other inputs or outputs than the manifest"):
        verify(forge("model.onnx", proto.SerializeToString()), _ignore)


def test_golden_answers_of_another_model_are_found(forge: Forge) -> None:
    def swap(manifest: Manifest) -> Manifest:
        first, second, *others = manifest.variants["fp32"].golden
        swapped = (
            dataclasses.replace(first, embedding=second.embedding),
            dataclasses.replace(second, embedding=first.embedding),
        )
        return _variant(manifest, golden=(*swapped, *others))

    with pytest.raises(ValuesError, match=r"golden is .* \(limit 0\.001\)"):
        verify(forge(manifest=swap), _ignore)


def _head(manifest: Manifest, **fields: Any) -> Manifest:
    first, *others = manifest.heads
    return dataclasses.replace(manifest, heads=(dataclasses.replace(first, **fields), *others))


def _variant(manifest: Manifest, **fields: Any) -> Manifest:
    return dataclasses.replace(manifest, variants={"fp32": dataclasses.replace(manifest.variants["fp32"], **fields)})


LIES: dict[str, Callable[[Manifest], Manifest]] = {
    "heads": lambda manifest: _head(manifest, labels=manifest.heads[0].labels[::-1]),
    "embedding": lambda manifest: dataclasses.replace(
        manifest, embedding=dataclasses.replace(manifest.embedding, pooling="cls")
    ),
    "max_tokens": lambda manifest: dataclasses.replace(manifest, max_tokens=47),
    "pad_token_id": lambda manifest: dataclasses.replace(manifest, pad_token_id=1),
    # The labels stay the same, so that nothing but the fingerprints can tell.
    "variants.fp32.fingerprints": lambda manifest: _head(manifest, temperature=2.0),
}


@pytest.mark.parametrize("field", LIES)
def test_manifest_that_describes_another_model_is_found(forge: Forge, field: str) -> None:
    with pytest.raises(ContentError, match=rf"bundle\.json: {field}: is .*"):
        verify(forge(manifest=LIES[field]), _ignore)


def test_tolerance_that_lets_anything_pass_is_not_believed(forge: Forge) -> None:
    def forgive(manifest: Manifest) -> Manifest:
        first, *others = manifest.variants["fp32"].golden
        shifted = dataclasses.replace(first, embedding=tuple(value + 0.01 for value in first.embedding))
        return _variant(manifest, golden=(shifted, *others), golden_tolerance=1.0)

    with pytest.raises(ValuesError, match=r"golden is 0\.01 \(limit 0\.001\)"):
        verify(forge(manifest=forgive), _ignore)


def test_stricter_tolerance_is_kept(forge: Forge) -> None:
    with pytest.raises(ValuesError, match=r"golden is .* \(limit 1e-12\)"):
        verify(forge(manifest=lambda manifest: _variant(manifest, golden_tolerance=1e-12)), _ignore)


def test_torch_weights_of_another_model_are_found(bundle_dir: Path, forge: Forge, tmp_path: Path) -> None:
    weights = load_file(bundle_dir / "torch" / "model.safetensors")
    weights["heads.topic.layers.4.bias"] += 0.01
    save_file(weights, tmp_path / "weights", metadata={"format": "pt"})
    with pytest.raises(ValuesError, match=r"difference\.logits is 0\.01 "):
        verify(forge("torch/model.safetensors", (tmp_path / "weights").read_bytes()), _ignore)


@pytest.mark.parametrize("missing", ["heads.topic.layers.4.bias", "backbone.embeddings.LayerNorm.weight"])
def test_missing_torch_weights_are_found(bundle_dir: Path, forge: Forge, tmp_path: Path, missing: str) -> None:
    weights = load_file(bundle_dir / "torch" / "model.safetensors")
    del weights[missing]
    save_file(weights, tmp_path / "weights", metadata={"format": "pt"})
    with pytest.raises(ContentError, match=f"{missing} is missing"):
        verify(forge("torch/model.safetensors", (tmp_path / "weights").read_bytes()), _ignore)
