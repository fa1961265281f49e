"""Sources of the embedding's training texts and retrieval tasks as token ids. Each different text is encoded once.

::

    EmbeddingSource --texts with prompts--> rows of EncodedRows
                    --numbers of the texts, their groups, scores--> EncodedSource
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polyhead_training.backbone import Backbone
from polyhead_training.config import Config
from polyhead_training.embedding_config import EmbeddingSourceConfig
from polyhead_training.suggestions import folded

from .collation import EncodedRows, encode_texts
from .dataset import Row
from .embedding_data import EmbeddingRow, EmbeddingSource
from .retrieval_data import RetrievalTask


@dataclass(frozen=True)
class EncodedSource:
    """Rows of a source as numbers of texts.

    Attributes:
        name: Name of the source.
        config: Its section of the configuration.
        texts: (rows, columns) number of each text in ``EncodedEmbedding.texts``.
        groups: (rows, columns) numbers that are equal for texts that differ only in case, spaces and prompt.
        scores: (rows,) scores of scored pairs, scaled so that ``score_range`` becomes 0 to 1.
        rows: The rows, for messages.
    """

    name: str
    config: EmbeddingSourceConfig
    texts: NDArray[np.int64]
    groups: NDArray[np.int64]
    scores: NDArray[np.float32]
    rows: Sequence[EmbeddingRow]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class EncodedEmbedding:
    """The training texts of the embedding.

    Attributes:
        texts: Each different text, with its prompt, as token ids.
        rows: The same texts as rows without labels, where each first occurs.
        sources: The sources.
    """

    texts: EncodedRows
    rows: Sequence[Row]
    sources: tuple[EncodedSource, ...]

    def digest(self) -> str:
        """Computes the SHA-256 over texts and scores; empty without sources."""
        if not self.sources:
            return ""
        found = hashlib.sha256(self.texts.digest().encode())
        for source in self.sources:
            found.update(source.texts.tobytes() + source.scores.tobytes())
        return found.hexdigest()


@dataclass(frozen=True)
class EncodedRetrieval:
    """Texts of a retrieval task as token ids, with their prompts.

    Attributes:
        queries: The queries.
        documents: The documents.
    """

    queries: EncodedRows
    documents: EncodedRows


def encode_embedding(config: Config, sources: Sequence[EmbeddingSource], backbone: Backbone) -> EncodedEmbedding:
    """Encodes the sources of the embedding's training texts.

    Args:
        config: Prompts and token limit.
        sources: The sources.
        backbone: Tokenizer and padding.
    """
    numbers: dict[str, int] = {}
    groups: dict[str, int] = {}
    rows: list[Row] = []
    encoded = []
    for source in sources:
        prefixes = _prefixes(source.config.prompts or ("",) * len(source.config.text_fields), config.model.prompts)
        shape = (len(source.rows), len(prefixes))
        texts, equal = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for index, row in enumerate(source.rows):
            for column, (prefix, text) in enumerate(zip(prefixes, row.texts, strict=True)):
                full = prefix + text
                texts[index, column] = numbers.setdefault(full, len(numbers))
                equal[index, column] = groups.setdefault(folded(text), len(groups))
                if len(numbers) > len(rows):
                    rows.append(Row(full, (), row.path, row.line, 0))
        low, high = source.score_range
        scores = np.array([(row.score - low) / ((high - low) or 1.0) for row in source.rows], dtype=np.float32)
        encoded.append(EncodedSource(source.name, source.config, texts, equal, scores, source.rows))
    return EncodedEmbedding(_encode(list(numbers), config, backbone), rows, tuple(encoded))


def encode_retrieval(
    config: Config, tasks: Sequence[RetrievalTask], backbone: Backbone
) -> tuple[EncodedRetrieval, ...]:
    """Encodes the queries and documents of retrieval tasks; takes the same arguments as ``encode_embedding``."""

    def encode(texts: Sequence[str], prefix: str) -> EncodedRows:
        return _encode([prefix + text for text in texts], config, backbone)

    found = []
    for task in tasks:
        query, document = _prefixes(task.prompts, config.model.prompts)
        found.append(EncodedRetrieval(encode(task.queries, query), encode(task.documents, document)))
    return tuple(found)


def _prefixes(names: Sequence[str], prompts: Mapping[str, str]) -> list[str]:
    return [prompts[name] if name else "" for name in names]


def _encode(texts: Sequence[str], config: Config, backbone: Backbone) -> EncodedRows:
    return encode_texts(texts, backbone.tokenizer, config.model.max_tokens, backbone.pad_token_id)
