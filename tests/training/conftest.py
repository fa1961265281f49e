"""Fixtures of the training tests: tiny random checkpoints of each family and configurations for them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from polyhead_training.config import Config
from polyhead_training.config_file import read_config
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel, RobertaConfig, RobertaModel

from tests.support.finished_run import write_finished_run

SENTENCES = [
    "The parcel came two days late and the box was wet.",
    "Lovely soup, my children asked for more!",
    "I cannot log in, the password page is broken again.",
    "What a kind person on the phone, thank you so much.",
    "The second invoice charges me twice for one month.",
    "Great update, the search is quick and finds everything.",
]
LABELS = ["delivery", "product", "account", "support", "billing", "app"]

WriteConfig = Callable[..., Config]


@functools.cache  # Training it again would number its tokens in another order.
def _wordpiece() -> str:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer.to_str()


def _byte_pairs() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def _bert(folder: Path) -> None:
    tokenizer = Tokenizer.from_str(_wordpiece())
    # Like the tokenizer file of all-MiniLM-L6-v2, it has padding and truncation enabled.
    tokenizer.enable_padding(length=128)
    tokenizer.enable_truncation(128)
    tokenizer.save(str(folder / "tokenizer.json"))
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=40, **sizes)
    BertModel(config).save_pretrained(folder)


def _roberta(folder: Path) -> None:
    tokenizer = _byte_pairs()
    tokenizer.save(str(folder / "tokenizer.json"))
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = RobertaConfig(
        vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=42, pad_token_id=1, type_vocab_size=1, **sizes
    )
    RobertaModel(config).save_pretrained(folder)


def _distilbert(folder: Path) -> None:
    vocabulary = Tokenizer.from_str(_wordpiece()).get_vocab()
    # No tokenizer.json, like an older checkpoint, so that the tokenizer must be converted.
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.__getitem__)) + "\n")
    config = DistilBertConfig(
        vocab_size=len(vocabulary), max_position_embeddings=40, dim=32, n_layers=2, n_heads=2, hidden_dim=64
    )
    DistilBertModel(config).save_pretrained(folder)


@pytest.fixture(scope="session", autouse=True)
def single_thread() -> None:
    """Limits torch to one thread: tiny models would spend most of their time on waking threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny random checkpoints by family: hidden size 32, two layers, 40 usable positions."""
    torch.manual_seed(0)
    folders = {}
    for family, write in {"bert": _bert, "roberta": _roberta, "distilbert": _distilbert}.items():
        folders[family] = tmp_path_factory.mktemp(family)
        write(folders[family])
    return folders


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """24 labelled rows in six classes."""
    return [
        {"text": f"{text} {'Really. ' * turn}", "label": label, "sentiment": number % 2}
        for turn in range(4)
        for number, (text, label) in enumerate(zip(SENTENCES, LABELS, strict=True))
    ]


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[[str, Sequence[object]], Path]:
    """Returns a function that writes rows as a JSONL file into the test's folder."""

    def write(name: str, rows: Sequence[object]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def config_file(
    tmp_path: Path,
    checkpoints: dict[str, Path],
    rows: list[dict[str, Any]],
    write_jsonl: Callable[[str, Sequence[object]], Path],
) -> Path:
    """A small configuration on the tiny BERT, with training and test rows in the same folder."""
    write_jsonl("train.jsonl", rows)
    write_jsonl("test.jsonl", rows[:6])
    path = tmp_path / "config.toml"
    path.write_text(
        f"""
        name = "tiny"
        [model]
        backbone = "{checkpoints["bert"]}"
        max_tokens = 32
        [data]
        train = "train.jsonl"
        test = ["test.jsonl"]
        validation_fraction = 0.25
        [training]
        batch_size = 4
        [[training.stages]]
        name = "first"
        train = ["heads"]
        learning_rate = 0.01
        [[training.stages]]
        name = "second"
        train = ["pooling", "heads", "layers:1"]
        learning_rate = 0.001
        """,
        encoding="utf-8",
    )
    return path


@pytest.fixture
def configure(config_file: Path) -> WriteConfig:
    """Returns a function that reads the small configuration with overrides."""

    def read(*overrides: str) -> Config:
        return read_config(config_file, overrides)

    return read


@pytest.fixture
def finished_run(tmp_path: Path) -> Path:
    """A finished run without a model, with hostile texts in its data."""
    return write_finished_run(tmp_path)
