"""Weights are read completely, or refused with the cause and the fix; nothing is left at random values in silence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from polyhead_training.backbone import open_backbone
from polyhead_training.errors import BackboneError
from polyhead_training.model import PolyheadModel
from polyhead_training.weights import WeightsError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, BertConfig, BertForMaskedLM, BertModel

WORDS = "embeddings.word_embeddings.weight"
QUERY = "encoder.layer.1.attention.self.query.weight"

Weights = dict[str, Tensor]


@pytest.fixture
def copy(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the tiny BERT that a test may damage."""
    return Path(shutil.copytree(checkpoints["bert"], tmp_path / "copy"))


def edit_weights(folder: Path, edit: Callable[[Weights], Weights]) -> None:
    weights = edit(load_file(folder / "model.safetensors"))
    save_file({name: values.contiguous() for name, values in weights.items()}, folder / "model.safetensors")


def edit_config(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**content, **changes}))


def load(folder: Path) -> PolyheadModel:
    backbone = open_backbone(str(folder), None, Path())
    return PolyheadModel.from_backbone(backbone.folder, heads=[], pad_token_id=backbone.pad_token_id)


def assert_same_weights(model: PolyheadModel, folder: Path) -> None:
    expected = AutoModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32).state_dict()
    actual = model.backbone.state_dict()
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"_fsdp_wrapped_module.{name}",
        lambda name: name.replace("encoder.", "encoder._orig_mod."),
        lambda name: f"_orig_mod.bert.{name}",
        lambda name: "module." + name.replace("encoder.", "encoder._orig_mod."),
    ],
    ids=["compiled", "parallel", "both", "sharded", "part of it", "of a classifier", "twice"],
)
def test_prefixes_of_wrappers_are_removed(
    copy: Path, checkpoints: dict[str, Path], wrapped: Callable[[str], str]
) -> None:
    edit_weights(copy, lambda weights: {wrapped(name): values for name, values in weights.items()})
    assert_same_weights(load(copy), checkpoints["bert"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_read_as_fp32(copy: Path, dtype: torch.dtype) -> None:
    edit_weights(copy, lambda weights: {name: values.to(dtype) for name, values in weights.items()})
    model = load(copy)
    assert {values.dtype for values in model.state_dict().values()} == {torch.float32}
    assert_same_weights(model, copy)


def test_shards_are_read(copy: Path, checkpoints: dict[str, Path]) -> None:
    model = BertModel.from_pretrained(copy)
    (copy / "model.safetensors").unlink()
    model.save_pretrained(copy, max_shard_size="40KB")
    assert len(list(copy.glob("model-*.safetensors"))) > 1
    assert_same_weights(load(copy), checkpoints["bert"])


def test_links_to_the_files_of_a_cache_are_read(copy: Path, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "snapshot").mkdir()
    for path in copy.iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    assert_same_weights(load(tmp_path / "snapshot"), checkpoints["bert"])


def test_backbone_of_a_language_model_with_tied_weights_is_read(copy: Path) -> None:
    config = BertConfig.from_pretrained(copy)
    torch.manual_seed(1)
    BertForMaskedLM(config).save_pretrained(copy)
    assert_same_weights(load(copy), copy)


def test_buffers_of_older_releases_are_ignored(copy: Path, checkpoints: dict[str, Path]) -> None:
    positions = {"embeddings.position_ids": torch.arange(40)[None]}
    edit_weights(copy, lambda weights: {**weights, **positions})
    assert_same_weights(load(copy), checkpoints["bert"])


def test_pooler_is_not_required(copy: Path) -> None:
    edit_weights(copy, lambda weights: {name: v for name, v in weights.items() if not name.startswith("pooler.")})
    assert load(copy)


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def rename(name: str, other: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).rename(folder / other)


def _cut(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def _broken_link(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("../blobs/12ab")


def _index(names: dict[str, str]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))

    return change


def weights(edit: Callable[[Weights], Weights]) -> Callable[[Path], None]:
    return lambda folder: edit_weights(folder, edit)


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_config(folder, **changes)


def _with(name: str, value: float) -> Callable[[Path], None]:
    def edit(found: Weights) -> Weights:
        found[name].view(-1)[7] = value
        return found

    return weights(edit)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:12ab\nsize 90868376\n"
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "Git LFS pointer": (write("model.safetensors", POINTER), r"is a Git LFS pointer.*git lfs pull"),
    "LFS pointer of the configuration": (write("config.json", POINTER), r"config\.json is a Git LFS pointer"),
    "web page": (write("model.safetensors", b"\n<!DOCTYPE html><html>"), "is a web page.*download the file itself"),
    "empty file": (write("model.safetensors", b""), "is empty; fetch the checkpoint again"),
    "pickle by another name": (
        write("model.safetensors", b"PK\x03\x04data"),
        "or a pickle, which is never read.*save_pretrained",
    ),
    "truncated": (_cut, r"model\.safetensors is truncated or damaged"),
    "broken link": (_broken_link, r"is a link to \.\./blobs/12ab, which does not exist"),
    "pickle only": (rename("model.safetensors", "pytorch_model.bin"), r"only pickled weights \(pytorch_model\.bin\)"),
    "another name": (rename("model.safetensors", "model.fp16.safetensors"), r"only model\.fp16\.safetensors; rename"),
    "missing shard": (
        _index({"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}),
        r"lacks 1 of its 2 files of weights, including model-00002-of-00002\.safetensors",
    ),
    "shard outside": (_index({"a": "../secret.safetensors"}), "names a file outside the checkpoint"),
    "damaged index": (
        lambda folder: (_index({})(folder), write("model.safetensors.index.json", b"[]")(folder)),
        r"model\.safetensors\.index\.json is not a valid index",
    ),
    "adapter beside it": (write("adapter_config.json", b"{}"), "is an adapter such as LoRA.*merge_and_unload"),
    "adapter": (
        lambda folder: (folder / "config.json").rename(folder / "adapter_config.json"),
        "is an adapter such as LoRA.*merge_and_unload",
    ),
    "weights of an adapter": (
        weights(lambda found: {f"base_model.model.{name}.lora_A.weight": v for name, v in found.items()}),
        "holds the weights of an adapter",
    ),
    "quantized": (config(quantization_config={"quant_method": "gptq", "bits": 4}), r"is quantized .*: gptq\)"),
    "integer weights": (
        weights(lambda found: {**found, QUERY: found[QUERY].to(torch.int8)}),
        rf"its weights are quantized \({QUERY} has the type I8\)",
    ),
    "own code": (config(auto_map={"AutoModel": "someone/code--model.Model"}), "code of its own.*never run"),
    "relative positions": (
        config(position_embedding_type="relative_key"),
        r"its positions are 'relative_key' .*choose a checkpoint with absolute positions",
    ),
    "not a number": (_with(QUERY, float("nan")), rf"its weight {QUERY} has values that are not numbers"),
    "infinite": (_with(WORDS, float("inf")), rf"its weight {WORDS} has values that are not numbers"),
    "zero throughout": (
        weights(lambda found: {**found, QUERY: torch.zeros_like(found[QUERY])}),
        rf"its weight {QUERY} is zero throughout",
    ),
    "more layers than described": (
        config(num_hidden_layers=1),
        r"has 16 weights that config\.json does not describe, including encoder\.layer\.1\..*number of layers",
    ),
    "fewer layers than described": (config(num_hidden_layers=3), r"lacks 16 of the weights.*encoder\.layer\.2\."),
    "other sizes": (
        config(max_position_embeddings=64),
        r"position_embeddings\.weight has the shape \(40, 32\), config\.json describes \(64, 32\)",
    ),
    "other names": (
        weights(lambda found: {f"model.{name}": values for name, values in found.items()}),
        r"lacks .* of the weights of BertModel.*it has others, such as model\.",
    ),
    "another architecture": (config(model_type="distilbert"), r"lacks .* of the weights of DistilBertModel"),
    "no number of a label": (config(id2label={"a": 0, "b": 1}), r"id2label is .*it maps the number of each logit"),
    "damaged configuration": (write("config.json", b'{"model_type": '), "is not valid JSON"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_weights_that_cannot_be_used_are_refused(copy: Path, case: str) -> None:
    damage, message = REFUSED[case]
    damage(copy)
    with pytest.raises((BackboneError, WeightsError), match=message):
        load(copy)


def test_unchanged_copy_is_accepted(copy: Path, checkpoints: dict[str, Path]) -> None:
    assert_same_weights(load(copy), checkpoints["bert"])
