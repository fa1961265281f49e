"""A backbone's parts are found by its structure; one without the common layout is refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from polyhead_training import structure
from polyhead_training.structure import LayoutError
from torch import nn
from transformers import AutoConfig, AutoModel

_SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}


def build(family: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    backbone = AutoModel.from_config(AutoConfig.for_model(family, **{**_SIZES, **settings}))
    backbone.pooler = None
    return backbone


def names(backbone: nn.Module, part: nn.Module) -> set[str]:
    """Names of the modules of a backbone that hold the parameters of a part."""
    held = {id(parameter) for parameter in part.parameters()}
    return {name.rpartition(".")[0] for name, one in backbone.named_parameters() if id(one) in held}


@pytest.mark.parametrize(
    ("family", "settings", "shared", "top"),
    [
        ("mpnet", {}, "encoder.relative_attention_bias", "encoder.layer.1.output.LayerNorm"),
        ("electra", {"embedding_size": 8}, "embeddings_project", "encoder.layer.1.output.LayerNorm"),
        ("deberta-v2", {"relative_attention": True}, "encoder.rel_embeddings", "encoder.layer.1.output.LayerNorm"),
        ("modernbert", {"cls_token_id": 1, "sep_token_id": 2}, "embeddings.norm", "final_norm"),
        ("roberta-prelayernorm", {}, "embeddings.LayerNorm", "LayerNorm"),
    ],
)
def test_modules_around_the_layers_belong_to_the_part_that_they_run_with(
    family: str, settings: dict[str, Any], shared: str, top: str
) -> None:
    backbone = build(family, **settings)
    parts = structure.split(backbone)
    assert len(parts.layers) == 2
    assert shared in names(backbone, parts.embeddings)
    assert top in names(backbone, parts.layers[1])


def test_convolution_of_the_first_layer_trains_with_it() -> None:
    backbone = build("deberta-v2", relative_attention=True, conv_kernel_size=3)
    parts = structure.split(backbone)
    assert "encoder.conv.conv" in names(backbone, parts.layers[0])


def test_parts_leave_the_mode_of_each_module_as_it_is() -> None:
    backbone = build("bert").train()
    backbone.encoder.layer[0].eval()
    structure.split(backbone)
    assert backbone.encoder.layer[1].attention.training
    assert not backbone.encoder.layer[0].attention.training


@pytest.mark.parametrize(
    ("family", "settings", "positions"),
    [("mpnet", {"pad_token_id": 1}, 38), ("electra", {}, 40), ("modernbert", {"pad_token_id": 3}, 40)],
)
def test_positions_after_the_padding_row_are_counted(family: str, settings: dict[str, Any], positions: int) -> None:
    config = AutoConfig.for_model(family, **{**_SIZES, **settings})
    assert structure.usable_positions(structure.empty_backbone(config), config) == positions


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("bart", {}, "is an encoder-decoder model"),
        ("bert", {"is_decoder": True}, "is a decoder"),
        ("bert", {"num_attention_heads": 3}, "transformers cannot build it"),
        ("xlm", {}, "has 4 lists of layers"),
    ],
)
def test_configuration_without_the_common_layout_is_refused(family: str, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(LayoutError, match=rf"{reason}.*choose an encoder of another family, for example albert"):
        structure.find_layers(structure.empty_backbone(AutoConfig.for_model(family, **{**_SIZES, **settings})))


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("fnet", {}, "the vectors of its FNetModel depend on padding"),
        ("gpt2", {"n_layer": 2, "n_head": 2}, "does not see the text after it"),
        ("xmod", {}, "does not encode token ids and a mask"),
    ],
)
def test_backbone_that_is_no_encoder_of_texts_is_refused(family: str, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(LayoutError, match=reason):
        structure.require_encoder(build(family, **settings))


@pytest.mark.parametrize("family", ["bert", "mpnet", "electra", "distilbert"])
def test_encoder_is_accepted(family: str) -> None:
    structure.require_encoder(build(family))


def test_layers_out_of_order_are_refused() -> None:
    backbone = build("bert")
    encoder = backbone.encoder
    encoder.register_forward_pre_hook(lambda *_: setattr(encoder, "layer", nn.ModuleList(reversed(encoder.layer))))
    with pytest.raises(LayoutError, match="does not run its 2 layers in order"):
        structure.split(backbone)


def test_shared_linear_layers_count_once() -> None:
    assert len(structure.linear_shapes(build("bert"))) == 12
    assert len(structure.linear_shapes(build("albert", num_hidden_groups=1, embedding_size=8))) == 7
    # Its projections of relative positions run on a table, not on the tokens of a text.
    assert len(structure.linear_shapes(build("deberta-v2", relative_attention=True, pos_att_type=["p2c", "c2p"]))) == 12
