"""Tiny checkpoints of other projects, written by their own libraries, and comparisons with imported runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from polyhead_export.interop.import_checkpoint import import_checkpoint
from polyhead_training.runs.run_directory import Run, load_run
from polyhead_training.tokenization import encode, load_tokenizer, pad
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AlbertModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DebertaV2Model,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertModel,
    ElectraConfig,
    ElectraForSequenceClassification,
    ElectraModel,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    ModernBertModel,
    MPNetConfig,
    MPNetForSequenceClassification,
    MPNetModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
)

from .tiny_model import ignore, make_tokenizer

TEXTS = [
    "",
    "where is my refund",
    "Lovely FABRIC, and a perfect fit -- but the zip jammed!",
    "Crème brûlée, Łódź 🙂 配送很快",
    "the courier rang twice and nobody was at home " * 20,
]

LABELS = {0: "zebra", 1: "apple", 2: "mango"}

_SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}

_DISTIL_SIZES = {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}

_MODELS: dict[str, tuple[type, type, type, dict[str, Any]]] = {
    "bert": (BertConfig, BertModel, BertForSequenceClassification, {**_SIZES, "max_position_embeddings": 40}),
    "roberta": (
        RobertaConfig,
        RobertaModel,
        RobertaForSequenceClassification,
        {**_SIZES, "max_position_embeddings": 42, "pad_token_id": 1, "type_vocab_size": 1},
    ),
    "distilbert": (
        DistilBertConfig,
        DistilBertModel,
        DistilBertForSequenceClassification,
        {**_DISTIL_SIZES, "max_position_embeddings": 40},
    ),
    "mpnet": (
        MPNetConfig,
        MPNetModel,
        MPNetForSequenceClassification,
        {**_SIZES, "max_position_embeddings": 42, "pad_token_id": 1},
    ),
    "electra": (
        ElectraConfig,
        ElectraModel,
        ElectraForSequenceClassification,
        {**_SIZES, "max_position_embeddings": 40, "embedding_size": 16},
    ),
    "albert": (
        AlbertConfig,
        AlbertModel,
        AlbertForSequenceClassification,
        {**_SIZES, "max_position_embeddings": 40, "embedding_size": 16},
    ),
    "deberta-v2": (
        DebertaV2Config,
        DebertaV2Model,
        DebertaV2ForSequenceClassification,
        {
            **_SIZES,
            "max_position_embeddings": 40,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
    ),
    "modernbert": (
        ModernBertConfig,
        ModernBertModel,
        ModernBertForSequenceClassification,
        {
            **_SIZES,
            "max_position_embeddings": 40,
            "global_attn_every_n_layers": 2,
            "local_attention": 8,
            **dict.fromkeys(("pad_token_id", "bos_token_id", "cls_token_id", "eos_token_id", "sep_token_id"), 0),
        },
    ),
}
MODEL_TYPES = tuple(_MODELS)

_SPECIAL = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}


def _make_byte_pair_tokenizer() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def write_tokenizer(folder: Path, family: str, **settings: Any) -> None:
    """Writes a tokenizer as transformers does."""
    if family == "roberta":
        special = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=_make_byte_pair_tokenizer(), **special, **settings)
    else:
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=make_tokenizer(), **_SPECIAL, **settings)
    tokenizer.save_pretrained(folder)


def _config(family: str, **settings: Any) -> Any:
    make, _, _, sizes = _MODELS[family]
    # Weights are large enough for every layer to affect the outputs.
    return make(vocab_size=310, initializer_range=0.4, **sizes, **settings)


# Files of this process by the arguments that they were written with: most tests start from the same checkpoint.
_written: dict[str, dict[str, bytes]] = {}


def _write_once(folder: Path, key: str, write: Callable[[], None]) -> Path:
    """Writes the files of ``folder``, as the first call with the key did; returns the folder of the checkpoint."""
    if key not in _written:
        write()
        files = [path for part in ("backbone", "checkpoint") for path in (folder / part).rglob("*") if path.is_file()]
        _written[key] = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    else:
        for name, content in _written[key].items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    return folder / "checkpoint"


def write_classifier(folder: Path, family: str = "bert", **settings: Any) -> Path:
    """Writes a tiny random classifier to ``folder``/checkpoint, as transformers does."""

    def write() -> None:
        torch.manual_seed(0)
        config = _config(family, **{"id2label": LABELS, "label2id": {v: k for k, v in LABELS.items()}, **settings})
        _MODELS[family][2](config).save_pretrained(folder / "checkpoint")
        write_tokenizer(folder / "checkpoint", family)

    return _write_once(folder, repr((family, settings)), write)


def write_sentence_transformer(
    folder: Path,
    family: str = "bert",
    *more_modules: Any,
    pooling: Any = "mean",
    length: int | None = 24,
    **settings: Any,
) -> Path:
    """Writes a tiny random SentenceTransformer to ``folder``/checkpoint, as the current release does."""

    def write() -> None:
        torch.manual_seed(0)
        _MODELS[family][1](_config(family)).save_pretrained(folder / "backbone")
        write_tokenizer(folder / "backbone", family)
        transformer = Transformer(str(folder / "backbone"), max_seq_length=length)
        modules = [transformer, Pooling(32, pooling_mode=pooling), *more_modules]
        SentenceTransformer(modules=modules, device="cpu", **settings).save(str(folder / "checkpoint"))

    # The weights of a layer are random, and no part of its text.
    weights = [{name: values.tolist() for name, values in one.state_dict().items()} for one in more_modules]
    return _write_once(folder, repr((family, more_modules, weights, pooling, length, settings)), write)


def edit_json(path: Path, **changes: Any) -> None:
    """Changes fields of a JSON file, or creates it."""
    content = json.loads(path.read_bytes()) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}), "utf-8")


def run_model(run: Run, texts: list[str]) -> Any:
    """Returns a run's embeddings and logits."""
    config = run.model.config
    ids = list(encode(load_tokenizer(run.tokenizer_path), texts, config.max_tokens))
    with torch.inference_mode():
        return run.model(*map(torch.from_numpy, pad(ids, config.pad_token_id)))


def import_run(checkpoint: Path, report: Any = ignore) -> Run:
    """Imports a checkpoint and loads the run."""
    return load_run(import_checkpoint(str(checkpoint), checkpoint.parent / "run", None, report))


def assert_same_logits(checkpoint: Path, run: Run) -> None:
    """Asserts that a run has a classifier's logits."""
    original: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=40, return_tensors="pt")
    with torch.inference_mode():
        expected = original(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert expected.std() > 0.01
    np.testing.assert_allclose(run_model(run, TEXTS).logits["topic"], expected, atol=1e-5)


def assert_same_embeddings(checkpoint: Path, run: Run) -> None:
    """Asserts that a run has a SentenceTransformer's embeddings."""
    expected = SentenceTransformer(str(checkpoint), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(run_model(run, TEXTS).sentence_embedding, expected, atol=1e-5)
