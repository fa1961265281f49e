"""Preparation of a run: the rows as texts and as token ids, the backbone, and the data report."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from polyhead_training.backbone import Backbone, find_backbone
from polyhead_training.config import Config
from polyhead_training.sentence_transformer import ignored_settings
from polyhead_training.tokenization import overlong_prompts

from .collation import EncodedRows, encode_rows, encode_texts
from .dataset import Data, Row
from .embedding_encoding import EncodedEmbedding, EncodedRetrieval, encode_embedding, encode_retrieval
from .embedding_report import describe_embedding
from .quality_report import DataReport, describe_data
from .vocabulary import require_known_words, vocabulary_warnings


@dataclass(frozen=True)
class Prepared:
    """Inputs of a training run.

    Attributes:
        data: The rows as texts.
        backbone: The checkpoint that training starts from.
        splits: The rows as token ids, by split: train, validation, test.
        pairs: The first and the second texts of the similarity pairs as token ids.
        embedding: The texts that train the sentence embedding.
        retrieval: The texts of each retrieval task.
        report: Statistics and warnings about the rows.
        held_out: The collected rows that are held out, as token ids.
    """

    data: Data
    backbone: Backbone
    splits: Mapping[str, EncodedRows]
    pairs: tuple[EncodedRows, EncodedRows]
    embedding: EncodedEmbedding
    retrieval: tuple[EncodedRetrieval, ...]
    report: DataReport
    held_out: EncodedRows

    def digest(self) -> str:
        """Computes the SHA-256 over the token ids, labels and similarity scores of all rows."""
        digests = [rows.digest() for rows in (*self.splits.values(), *self.pairs)]
        digests += [self.held_out.digest()] if len(self.held_out) else []
        digests += [repr(pair.score) for pair in self.data.similarity]
        digests += [self.embedding.digest()]
        return hashlib.sha256("".join(digests).encode()).hexdigest()


def prepare(config: Config, data: Data) -> Prepared:
    """Encodes and checks the rows and locates the backbone.

    Args:
        config: The configuration.
        data: Its rows.

    Raises:
        ConfigError: The configuration contradicts the backbone, or a prompt leaves no tokens for a text.
        BackboneError: The backbone cannot be used.
    """
    backbone = find_backbone(config)
    limit = config.model.max_tokens

    _require_room_after_prompts(config, backbone)

    def encode_split(rows: Sequence[Row], prefix: str = config.prefix) -> EncodedRows:
        return encode_rows(rows, data.heads, backbone.tokenizer, limit, backbone.pad_token_id, prefix)

    def encode_side(texts: Sequence[str]) -> EncodedRows:
        return encode_texts(texts, backbone.tokenizer, limit, backbone.pad_token_id)

    texts = {"train": data.train, "validation": data.validation, "test": data.test}
    splits = {split: encode_split(rows) for split, rows in texts.items()}
    pairs = (
        encode_side([pair.first for pair in data.similarity]),
        encode_side([pair.second for pair in data.similarity]),
    )
    embedding = encode_embedding(config, data.embedding, backbone)
    # The words of a prompt say nothing about those of the rows.
    plain = {split: encode_split(rows, "") for split, rows in texts.items()} if config.prefix else splits
    require_known_words(backbone, data.train, plain["train"].ids)
    require_known_words(backbone, embedding.rows, embedding.texts.ids)
    ignored = ignored_settings(backbone.folder, config.model)
    report = describe_data(data, {split: rows.tokens for split, rows in splits.items()}, limit)
    sources, warnings = describe_embedding(data, embedding, limit)
    found = {split: (rows, plain[split].ids) for split, rows in texts.items()}
    unknown = vocabulary_warnings(backbone, {**found, "data.embedding": (embedding.rows, embedding.texts.ids)})
    report = replace(report, embedding=sources, warnings=[*ignored, *report.warnings, *warnings, *unknown])
    retrieval = encode_retrieval(config, data.retrieval, backbone)
    held_out = encode_split(data.collected.held_out if data.collected else ())
    return Prepared(data, backbone, splits, pairs, embedding, retrieval, report, held_out)


def _require_room_after_prompts(config: Config, backbone: Backbone) -> None:
    limit = config.model.max_tokens
    for name, tokens in overlong_prompts(backbone.tokenizer, config.model.prompts, limit).items():
        reason = f"has {tokens} tokens, and model.max_tokens is {limit}, which leaves none for a text; shorten it"
        raise config.error(f"model.prompts.{name}", reason)
