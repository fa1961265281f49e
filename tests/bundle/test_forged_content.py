"""Forged content with correct hashes: ``verify`` rejects it, and the server never runs code from a bundle."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import tokenizers
from polyhead_bundle import BundleError
from polyhead_export.errors import ContentError
from polyhead_server.errors import StartupError
from safetensors.torch import load_file

from tests.support.bundle_rejection import forge, serve, verify_quietly


def _with_weights_in(bundle_copy: Path, location: str) -> bytes:
    """Returns the graph with its largest weights in another file, which is written with the correct content."""
    proto = onnx.load(bundle_copy / "model.onnx")
    tensor = max(proto.graph.initializer, key=lambda one: len(one.raw_data))
    target = bundle_copy / location
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    content: bytes = proto.SerializeToString()
    return content


@pytest.mark.parametrize("place", ["relative", "absolute", "hidden in the path"])
def test_weights_outside_the_bundle_are_not_read(bundle_copy: Path, place: str) -> None:
    location = {
        "relative": "../weights.bin",
        "absolute": str(bundle_copy.parent / "weights.bin"),
        "hidden in the path": "torch/../../weights.bin",
    }[place]
    forge(bundle_copy, {"model.onnx": _with_weights_in(bundle_copy, location)})
    with pytest.raises(ContentError, match=r"model\.onnx: (is not a valid graph|stores weights in)"):
        verify_quietly(bundle_copy)
    with pytest.raises(StartupError, match=r"model\.onnx"):
        serve(bundle_copy)


def test_listed_external_weights_are_accepted(bundle_copy: Path) -> None:
    content = _with_weights_in(bundle_copy, "model.onnx.data")
    forge(bundle_copy, {"model.onnx": content, "model.onnx.data": (bundle_copy / "model.onnx.data").read_bytes()})
    verify_quietly(bundle_copy)


FORGED_MODELS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "custom code": ({"auto_map": {"AutoModel": "evil/repo--model.Evil"}}, {}, "auto_map"),
    "backbone with custom code": ({}, {"auto_map": {"AutoModel": "evil/repo--model.Evil"}}, "auto_map"),
    "unsupported family": ({}, {"model_type": "align_text_model"}, "'align_text_model' is not supported"),
    "kernel from the hub": ({}, {"attn_implementation": "evil/kernel"}, "attn_implementation"),
    "not a polyhead": ({"model_type": "bert"}, {}, "not 'polyhead'"),
}


@pytest.mark.parametrize("forgery", FORGED_MODELS)
def test_model_that_requires_custom_code_is_rejected(bundle_copy: Path, forgery: str) -> None:
    outer, inner, reason = FORGED_MODELS[forgery]
    config = json.loads((bundle_copy / "torch/config.json").read_bytes())
    config |= outer
    config["backbone"] |= inner
    forge(bundle_copy, {"torch/config.json": json.dumps(config).encode()})
    with pytest.raises(ContentError, match=reason):
        verify_quietly(bundle_copy)
    with pytest.raises(StartupError, match=reason):
        serve(bundle_copy, "torch")


def test_tokenizer_that_makes_the_library_panic_is_rejected(bundle_copy: Path) -> None:
    content = json.loads((bundle_copy / "tokenizer.json").read_bytes())
    content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    forge(bundle_copy, {"tokenizer.json": json.dumps(content).encode()})
    with pytest.raises(StartupError, match=r"tokenizer\.json"):
        serve(bundle_copy)
    with pytest.raises(ContentError, match="is not a valid tokenizer"):
        verify_quietly(bundle_copy)


def test_token_id_outside_the_models_vocabulary_is_reported(bundle_copy: Path) -> None:
    content = json.loads((bundle_copy / "tokenizer.json").read_bytes())
    content["model"]["vocab"] |= {word: number + 1000 for word, number in content["model"]["vocab"].items()}
    forge(bundle_copy, {"tokenizer.json": json.dumps(content).encode()})
    with pytest.raises(ContentError, match=r"model\.onnx: onnxruntime cannot run model\.onnx"):
        verify_quietly(bundle_copy)


WRONG_VARIANTS: dict[str, tuple[dict[str, Any], str]] = {
    "operators": ({"operators": {"Add": 1}}, "has other operators than the manifest says"),
    "batch_invariant": ({"batch_invariant": False}, "batch_invariant: is wrong for fp32"),
}


@pytest.mark.parametrize("field", WRONG_VARIANTS)
def test_wrong_description_of_a_variant_is_rejected(bundle_copy: Path, field: str) -> None:
    change, reason = WRONG_VARIANTS[field]
    forge(bundle_copy, change=lambda document: document["variants"]["fp32"].update(change))
    with pytest.raises(ContentError, match=reason):
        verify_quietly(bundle_copy)


def test_automatic_choice_without_invariant_variant_fails(bundle_copy: Path) -> None:
    forge(bundle_copy, change=lambda document: document["variants"]["fp32"].update(batch_invariant=False))
    with pytest.raises(StartupError, match="--variant"):
        serve(bundle_copy)


def test_index_to_weights_outside_the_bundle_is_rejected(bundle_copy: Path) -> None:
    weights = bundle_copy / "torch" / "model.safetensors"
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(weights), "../../weights.safetensors")}
    weights.rename(bundle_copy.parent / "weights.safetensors")
    forge(
        bundle_copy,
        {"torch/model.safetensors.index.json": json.dumps(index).encode()},
        lambda document: document["files"].pop("torch/model.safetensors"),
    )
    with pytest.raises((ContentError, BundleError)):
        verify_quietly(bundle_copy)


def test_invalid_tokenizer_does_not_start_the_server(bundle_copy: Path) -> None:
    forge(bundle_copy, {"tokenizer.json": b"something else"})
    with pytest.raises(StartupError, match=r"tokenizer\.json"):
        serve(bundle_copy)


def test_embedding_of_another_size_does_not_start_the_server(bundle_copy: Path) -> None:
    def shrink(document: dict[str, Any]) -> None:
        document["embedding"]["dimensions"] = 31
        document["outputs"][0]["dims"] = ["batch", 31]
        for golden in document["variants"]["fp32"].get("golden") or document["golden"]:
            golden["embedding"].pop()

    forge(bundle_copy, change=shrink)
    with pytest.raises(StartupError):
        serve(bundle_copy)


class _Bomb:
    """Creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


PICKLES = [
    "torch/pytorch_model.bin",
    "torch/model.pt",
    "torch/training_args.bin",
    "model.pkl",
    "torch/adapter_model.bin",
]


@pytest.mark.parametrize("name", PICKLES)
@pytest.mark.parametrize("replaces", [False, True], ids=["beside the weights", "instead of the weights"])
def test_listed_pickle_is_never_unpickled(bundle_copy: Path, tmp_path: Path, name: str, replaces: bool) -> None:
    bomb = pickle.dumps(_Bomb(tmp_path / "exploded"))
    forge(bundle_copy, {name: bomb})
    if replaces:
        (bundle_copy / "torch/model.safetensors").unlink()
        forge(bundle_copy, change=lambda document: document["files"].pop("torch/model.safetensors"))
    for read in (verify_quietly, serve, lambda path: serve(path, "torch")):
        with pytest.raises((BundleError, StartupError), match=re.escape(name)):
            read(bundle_copy)
        assert not (tmp_path / "exploded").exists()
    pickle.loads(bomb)
    assert (tmp_path / "exploded").exists()


def test_dims_that_differ_from_the_graph_are_rejected(bundle_copy: Path) -> None:
    forge(bundle_copy, change=lambda document: document["inputs"][0].update(dims=["batch", "tokens"]))
    with pytest.raises(ContentError, match=r"model\.onnx: has other inputs or outputs"):
        verify_quietly(bundle_copy)


def _reverse_labels(document: dict[str, Any]) -> None:
    document["heads"][0]["labels"].reverse()


def test_consistently_reordered_labels_are_detected_by_the_fingerprint(bundle_copy: Path) -> None:
    config = json.loads((bundle_copy / "torch/config.json").read_bytes())
    _reverse_labels(config)
    forge(bundle_copy, {"torch/config.json": json.dumps(config).encode()}, _reverse_labels)
    with pytest.raises(ContentError, match=r"bundle\.json: variants\.fp32\.fingerprints"):
        verify_quietly(bundle_copy)


@pytest.mark.parametrize("switch", ["enable_padding", "enable_truncation"])
def test_padding_and_truncation_are_rejected_by_verify_and_disabled_by_the_server(
    bundle_copy: Path, switch: str
) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(bundle_copy / "tokenizer.json"))
    getattr(tokenizer, switch)(**({"max_length": 4} if switch == "enable_truncation" else {"length": 40}))
    expected = serve(bundle_copy).tokenizer.encode(["where is my refund and why was it taken"])
    forge(bundle_copy, {"tokenizer.json": tokenizer.to_str().encode()})
    with pytest.raises(ContentError, match=r"tokenizer\.json: has padding or truncation enabled"):
        verify_quietly(bundle_copy)
    assert serve(bundle_copy).tokenizer.encode(["where is my refund and why was it taken"]) == expected
