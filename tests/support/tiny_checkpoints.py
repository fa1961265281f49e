"""Tiny random checkpoints of each backbone family, with tokenizers trained on a few sentences."""

from __future__ import annotations

import functools
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel, RobertaConfig, RobertaModel

SENTENCES = [
    "The parcel came two days late and the box was wet.",
    "Lovely soup, my children asked for more!",
    "I cannot log in, the password page is broken again.",
    "What a kind person on the phone, thank you so much.",
    "The second invoice charges me twice for one month.",
    "Great update, the search is quick and finds everything.",
]


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


def write_bert(folder: Path) -> None:
    """Writes a BERT whose tokenizer file enables padding and truncation, like that of all-MiniLM-L6-v2."""
    tokenizer = Tokenizer.from_str(_wordpiece())
    tokenizer.enable_padding(length=128)
    tokenizer.enable_truncation(128)
    tokenizer.save(str(folder / "tokenizer.json"))
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=40, **sizes)
    BertModel(config).save_pretrained(folder)


def write_roberta(folder: Path) -> None:
    """Writes a RoBERTa, whose positions start after the padding id."""
    tokenizer = _byte_pairs()
    tokenizer.save(str(folder / "tokenizer.json"))
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = RobertaConfig(
        vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=42, pad_token_id=1, type_vocab_size=1, **sizes
    )
    RobertaModel(config).save_pretrained(folder)


def write_distilbert(folder: Path) -> None:
    """Writes a DistilBERT without tokenizer.json, like an older checkpoint, so that its tokenizer must be converted."""
    vocabulary = Tokenizer.from_str(_wordpiece()).get_vocab()
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.__getitem__)) + "\n")
    config = DistilBertConfig(
        vocab_size=len(vocabulary), max_position_embeddings=40, dim=32, n_layers=2, n_heads=2, hidden_dim=64
    )
    DistilBertModel(config).save_pretrained(folder)


WRITERS = {"bert": write_bert, "roberta": write_roberta, "distilbert": write_distilbert}
