from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from polyhead_training.backbone import open_backbone
from polyhead_training.model import PolyheadConfig, PolyheadModel, Pooling, summarize
from polyhead_training.weights import WeightsError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel

from tests.support.tiny_checkpoints import FAMILIES

HEADS = [
    {"name": "topic", "kind": "softmax", "labels": ["a", "b", "c"], "hidden_size": None, "dropout": 0.1},
    {"name": "sentiment", "kind": "sigmoid", "labels": ["no", "yes"], "hidden_size": 8, "dropout": 0.1},
]
Build = Callable[..., PolyheadModel]


@pytest.fixture
def build(checkpoints: dict[str, Path]) -> Build:
    def from_family(family: str, **settings: object) -> PolyheadModel:
        found = open_backbone(str(checkpoints[family]), None, Path())
        settings = {"heads": HEADS, "pad_token_id": found.pad_token_id, "max_tokens": 40} | settings
        model = PolyheadModel.from_backbone(found.folder, **settings)
        model.eval()
        return model

    return from_family


def ragged(model: PolyheadModel, lengths: list[int], width: int) -> tuple[Tensor, Tensor]:
    """Returns random ids of these lengths, padded to a width: (B, width) ids and mask."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.full((len(lengths), width), model.config.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(5, int(model.backbone.config.vocab_size), (length,), generator=generator)
        mask[row, :length] = 1
    return ids, mask


def test_cls_pooling_takes_the_first_vector() -> None:
    hidden = torch.arange(12.0).reshape(1, 3, 4)
    assert Pooling("cls", 4)(summarize(hidden, torch.ones(1, 3))).tolist() == [[0, 1, 2, 3]]


def test_mean_pooling_ignores_padding() -> None:
    hidden = torch.arange(12.0).reshape(1, 3, 4)
    assert Pooling("mean", 4)(summarize(hidden, torch.tensor([[1, 1, 0]]))).tolist() == [[2, 3, 4, 5]]


def test_cls_mean_pooling_is_layer_norm_of_mean_plus_linear_of_both() -> None:
    pooling = Pooling("cls_mean", 2)
    with torch.no_grad():
        pooling.mix.weight.copy_(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0]]))
        pooling.mix.bias.copy_(torch.tensor([0.0, 1.0]))
        hidden = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [99.0, 99.0]]])
        found = pooling(summarize(hidden, torch.tensor([[1, 1, 0]])))
    # mean = (2, 4); linear = (1 * 1, 2 * 4 + 1) = (1, 9); sum = (3, 13), of mean 8 and deviation 5.
    torch.testing.assert_close(found, torch.tensor([[-1.0, 1.0]]))


def test_cls_mean_pooling_starts_as_the_normalized_mean(build: Build) -> None:
    model = build("bert")
    hidden = torch.randn(2, 5, 32)
    expected = torch.nn.functional.layer_norm(hidden.mean(dim=1), (32,))
    torch.testing.assert_close(model.pooling(summarize(hidden, torch.ones(2, 5))), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_do_not_depend_on_batch_or_padding(build: Build, family: str) -> None:
    model = build(family)
    lengths = [3, 11, 24, 40]
    with torch.inference_mode():
        ids, mask = ragged(model, lengths, 40)
        together = model(ids, mask)
        for row, length in enumerate(lengths):
            alone = model(ids[row : row + 1, :length], mask[row : row + 1, :length])
            for name, logits in together.logits.items():
                torch.testing.assert_close(alone.logits[name][0], logits[row], atol=1e-5, rtol=0)
            torch.testing.assert_close(alone.sentence_embedding[0], together.sentence_embedding[row], atol=1e-5, rtol=0)
    assert not torch.allclose(together.logits["topic"][0], together.logits["topic"][1], atol=1e-4)


def test_outputs_have_the_documented_shapes(build: Build) -> None:
    model = build("bert")
    outputs = model(*ragged(model, [4, 9], 9))
    assert outputs.sentence_embedding.shape == (2, 32)
    assert {name: logits.shape for name, logits in outputs.logits.items()} == {"topic": (2, 3), "sentiment": (2, 1)}
    torch.testing.assert_close(outputs.sentence_embedding.norm(dim=-1), torch.ones(2))


def test_shared_embedding_equals_the_features_of_the_heads(build: Build) -> None:
    model = build("bert", embedding_pooling="shared", normalize=False)
    outputs = model(*ragged(model, [4, 9], 9))
    torch.testing.assert_close(model.heads["topic"](outputs.sentence_embedding), outputs.logits["topic"])


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        (["softmax topic", "sigmoid mood"], ["logits", "sentiment_logits"]),
        (
            ["sigmoid mood", "sigmoid spam", "softmax topic", "softmax tone"],
            [
                "sentiment_logits",
                "spam_logits",
                "logits",
                "tone_logits",
            ],
        ),
    ],
)
def test_output_names_are_fixed_for_the_first_of_a_kind(heads: list[str], expected: list[str]) -> None:
    described = [dict(zip(("kind", "name"), head.split(), strict=True)) for head in heads]
    assert list(PolyheadConfig(heads=described).output_names().values()) == expected


def test_checkpoint_that_lacks_weights_is_rejected(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    weights = load_file(checkpoints["bert"] / "model.safetensors")
    removed = next(name for name in weights if "layer.1" in name)
    (tmp_path / "config.json").write_bytes((checkpoints["bert"] / "config.json").read_bytes())
    kept = {name: value for name, value in weights.items() if name != removed}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="lacks 1 of the weights of BertModel, including"):
        PolyheadModel.from_backbone(tmp_path, heads=HEADS)


@pytest.mark.parametrize("family", FAMILIES)
def test_auto_model_loads_a_saved_model(build: Build, family: str, tmp_path: Path) -> None:
    model = build(family).eval()
    model.save_pretrained(tmp_path / "first")
    again = AutoModel.from_pretrained(tmp_path / "first").eval()
    again.save_pretrained(tmp_path / "second")
    assert type(again) is PolyheadModel
    ids, mask = ragged(model, [5, 3], width=6)
    first, second = model(ids, mask), again(ids, mask)
    assert torch.equal(first.sentence_embedding, second.sentence_embedding)
    assert all(torch.equal(first.logits[name], second.logits[name]) for name in first.logits)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_trained_backbone_can_be_trained_again(build: Build, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """A trained checkpoint, from this project or another, can be the backbone of the next model."""
    build("bert").backbone.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((checkpoints["bert"] / "tokenizer.json").read_bytes())
    found = open_backbone(str(tmp_path), None, tmp_path)
    model = PolyheadModel.from_backbone(found.folder, heads=[])
    theirs, ours = AutoModel.from_pretrained(tmp_path).state_dict(), model.backbone.state_dict()
    assert ours.keys() <= theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
