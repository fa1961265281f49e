"""Preparation of a run: the rows as texts and as token ids, the backbone, and the data report."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from polyhead_training.backbone import Backbone, find_backbone
from polyhead_training.config import Config
from polyhead_training.tokenization import encode

from .collation import EncodedRows, encode_rows
from .dataset import Data, Row
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
        report: Statistics and warnings about the rows.
    """

    data: Data
    backbone: Backbone
    splits: Mapping[str, EncodedRows]
    pairs: tuple[EncodedRows, EncodedRows]
    report: DataReport

    def digest(self) -> str:
        """Computes the SHA-256 over the token ids, labels and similarity scores of all rows."""
        digests = [rows.digest() for rows in (*self.splits.values(), *self.pairs)]
        digests += [repr(pair.score) for pair in self.data.similarity]
        return hashlib.sha256("".join(digests).encode()).hexdigest()


def prepare(config: Config, data: Data) -> Prepared:
    """Encodes and checks the rows and locates the backbone.

    Args:
        config: The configuration.
        data: Its rows.

    Raises:
        ConfigError: The configuration contradicts the backbone.
        BackboneError: The backbone cannot be used.
    """
    backbone = find_backbone(config)
    limit = config.model.max_tokens

    def encode_split(rows: Sequence[Row]) -> EncodedRows:
        return encode_rows(rows, data.heads, backbone.tokenizer, limit, backbone.pad_token_id)

    def encode_texts(texts: Sequence[str]) -> EncodedRows:
        ids = list(encode(backbone.tokenizer, texts, limit))
        return EncodedRows(ids, torch.zeros(len(ids), 0), backbone.pad_token_id, [0] * len(ids), [])

    texts = {"train": data.train, "validation": data.validation, "test": data.test}
    splits = {split: encode_split(rows) for split, rows in texts.items()}
    pairs = (
        encode_texts([pair.first for pair in data.similarity]),
        encode_texts([pair.second for pair in data.similarity]),
    )
    require_known_words(backbone, data.train, splits["train"].ids)
    report = describe_data(data, {split: rows.tokens for split, rows in splits.items()}, limit)
    unknown = vocabulary_warnings(backbone, {split: (rows, splits[split].ids) for split, rows in texts.items()})
    report = replace(report, warnings=[*report.warnings, *unknown])
    return Prepared(data, backbone, splits, pairs, report)
