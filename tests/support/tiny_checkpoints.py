"""Tiny random checkpoints of each backbone family, with tokenizers trained on a few sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertModel,
    CamembertConfig,
    CamembertModel,
    DebertaV2Config,
    DebertaV2Model,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from .tiny_tokenizers import byte_pairs, unigram, wordpiece

# Weights are large enough for every layer to affect the outputs.
_LARGE_WEIGHTS = {"initializer_range": 0.2}
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def _write(folder: Path, tokenizer: Tokenizer, config: type, model: type, **settings: Any) -> None:
    """Writes a checkpoint; ``settings`` are those of its configuration beside the sizes."""
    tokenizer.save(str(folder / "tokenizer.json"))
    sizes = {"vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": 40, **_SIZES}
    model(config(**{**sizes, **settings})).save_pretrained(folder)


def write_bert(folder: Path) -> None:
    """Writes a BERT whose tokenizer file enables padding and truncation, like that of all-MiniLM-L6-v2."""
    tokenizer = wordpiece()
    tokenizer.enable_padding(length=128)
    tokenizer.enable_truncation(128)
    _write(folder, tokenizer, BertConfig, BertModel)


def write_roberta(folder: Path) -> None:
    """Writes a RoBERTa, whose positions start after the padding id."""
    positions = {"max_position_embeddings": 42, "pad_token_id": 1}
    _write(folder, byte_pairs(), RobertaConfig, RobertaModel, type_vocab_size=1, **positions)


def write_xlm_roberta(folder: Path) -> None:
    """Writes an XLM-R: the layout of RoBERTa with a Unigram tokenizer."""
    positions = {"max_position_embeddings": 41, "pad_token_id": 0}
    _write(folder, unigram(), XLMRobertaConfig, XLMRobertaModel, type_vocab_size=1, **positions)


def write_camembert(folder: Path) -> None:
    """Writes a CamemBERT: the layout of RoBERTa with a Unigram tokenizer."""
    positions = {"max_position_embeddings": 41, "pad_token_id": 0}
    _write(folder, unigram(), CamembertConfig, CamembertModel, type_vocab_size=1, **positions)


def write_distilbert(folder: Path) -> None:
    """Writes a DistilBERT without tokenizer.json, like an older checkpoint, so that its tokenizer must be converted."""
    vocabulary = wordpiece().get_vocab()
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.__getitem__)) + "\n")
    config = DistilBertConfig(
        vocab_size=len(vocabulary), max_position_embeddings=40, dim=32, n_layers=2, n_heads=2, hidden_dim=64
    )
    DistilBertModel(config).save_pretrained(folder)


def write_mpnet(folder: Path) -> None:
    """Writes an MPNet: relative positions in every layer, and absolute ones that start after the padding id."""
    positions = {"max_position_embeddings": 42, "pad_token_id": 1}
    _write(folder, wordpiece(), MPNetConfig, MPNetModel, **positions, **_LARGE_WEIGHTS)


def write_electra(folder: Path) -> None:
    """Writes an ELECTRA, whose embeddings are projected to the width of its layers."""
    _write(folder, wordpiece(), ElectraConfig, ElectraModel, embedding_size=16)


def write_albert(folder: Path) -> None:
    """Writes an ALBERT: two groups of three layers, which share their weights."""
    layers = {"num_hidden_layers": 6, "num_hidden_groups": 2, "embedding_size": 16}
    _write(folder, unigram(), AlbertConfig, AlbertModel, pad_token_id=0, **layers, **_LARGE_WEIGHTS)


def write_deberta(folder: Path) -> None:
    """Writes a DeBERTa-v3: disentangled attention, no table of absolute positions, no token types."""
    attention = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True}
    positions = {"position_buckets": 16, "position_biased_input": False, "norm_rel_ebd": "layer_norm"}
    settings = {**attention, **positions, **_LARGE_WEIGHTS}
    _write(folder, unigram(), DebertaV2Config, DebertaV2Model, type_vocab_size=0, **settings)


def write_modernbert(folder: Path) -> None:
    """Writes a ModernBERT: rotary positions, local attention in its second layer, no token types."""
    attention = {"global_attn_every_n_layers": 2, "local_attention": 8}
    special = {"pad_token_id": 1, "bos_token_id": 0, "cls_token_id": 0, "eos_token_id": 2, "sep_token_id": 2}
    _write(folder, byte_pairs(), ModernBertConfig, ModernBertModel, **attention, **special)


WRITERS = {
    "bert": write_bert,
    "roberta": write_roberta,
    "xlm-roberta": write_xlm_roberta,
    "camembert": write_camembert,
    "distilbert": write_distilbert,
    "mpnet": write_mpnet,
    "electra": write_electra,
    "albert": write_albert,
    "deberta-v2": write_deberta,
    "modernbert": write_modernbert,
}
FAMILIES = tuple(WRITERS)
