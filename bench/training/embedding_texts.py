"""Texts on which a sentence embedding is evaluated, the embeddings of a model, and the scores of them.

::

    pairs, retrieval tasks --texts--> a model or library --(texts, E)--> scores: Spearman and nDCG@10 by form
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray
from polyhead_training.backbone import find_backbone
from polyhead_training.config import Config
from polyhead_training.data.collation import EncodedRows
from polyhead_training.data.retrieval_data import RetrievalTask
from polyhead_training.data.target_tensors import Targets
from polyhead_training.evaluation.encodings import encode as encode_form
from polyhead_training.evaluation.encodings import forms
from polyhead_training.evaluation.retrieval import retrieval_scores
from polyhead_training.evaluation.similarity import correlations
from polyhead_training.model import PolyheadModel
from polyhead_training.predict import embed
from polyhead_training.runs.run_directory import load_run
from polyhead_training.tokenization import encode, load_tokenizer
from polyhead_training.train import build_model
from tokenizers import Tokenizer

from bench.harness import texts as files

Vectors = NDArray[np.float32]
# Dimensions of the embedding that are evaluated beside all of them.
DIMENSIONS = (256, 128, 64)
_BATCH_SIZE = 32


class EvaluatedTexts:
    """The texts of similarity pairs and retrieval tasks, each text once.

    Args:
        pairs: Files of rows with ``a``, ``b`` and ``score``.
        tasks: Retrieval tasks.
    """

    def __init__(self, pairs: Sequence[Path], tasks: Sequence[RetrievalTask]) -> None:
        self._pairs = {path.name.split(".")[0]: files.read(path) for path in pairs}
        self._tasks = tasks
        self._numbers = {text: number for number, text in enumerate(dict.fromkeys(self._occurrences()))}
        self.texts = list(self._numbers)

    def scores(self, vectors: Vectors) -> dict[str, dict[str, dict[str, float | None]]]:
        """Returns ``spearman`` and ``ndcg_at_10`` by set and form, such as ``256 int8``.

        Args:
            vectors: (texts, E) embeddings of ``texts``.
        """
        found: dict[str, dict[str, dict[str, float | None]]] = {"spearman": {}, "ndcg_at_10": {}}
        for form in forms(vectors.shape[1], DIMENSIONS):
            encoded, key = encode_form(vectors, form), f"{form.dimensions} {form.encoding}"
            for name, rows in self._pairs.items():
                first, second = (encoded[self._of(row[side] for row in rows)] for side in ("a", "b"))
                scores = np.array([row["score"] for row in rows], dtype=np.float32)
                found["spearman"].setdefault(name, {})[key] = correlations(first, second, scores).spearman
            for task in self._tasks:
                queries, documents = encoded[self._of(task.queries)], encoded[self._of(task.documents)]
                score = retrieval_scores(queries, documents, task.relevance).ndcg_at_10
                found["ndcg_at_10"].setdefault(task.name, {})[key] = score
        return found

    def _occurrences(self) -> Iterator[str]:
        for rows in self._pairs.values():
            yield from (row[side] for row in rows for side in ("a", "b"))
        for task in self._tasks:
            yield from (*task.queries, *task.documents)

    def _of(self, texts: Any) -> list[int]:
        return [self._numbers[text] for text in texts]


def embed_with_run(run: Path, texts: Sequence[str]) -> Vectors:
    """Returns the (texts, E) sentence embeddings of the model of a run directory."""
    loaded = load_run(run)
    return _embed(loaded.model, load_tokenizer(loaded.tokenizer_path), texts)


def embed_with_backbone(config: Config, texts: Sequence[str]) -> Vectors:
    """Returns the (texts, E) sentence embeddings before training."""
    backbone = find_backbone(config)
    return _embed(build_model(config, backbone, ()), backbone.tokenizer, texts)


def training_pairs(folder: Path, name: str, destination: Path, copies: int) -> int:
    """Writes the queries of a retrieval set for training with their documents as pairs; returns the number of pairs.

    Args:
        folder: Folder with NAME_corpus, NAME_queries and NAME_qrels.
        name: Name of the set.
        destination: File to write.
        copies: How often each pair occurs in it.
    """
    corpus, queries, qrels = (files.read(folder / f"{name}_{part}.jsonl.gz") for part in ("corpus", "queries", "qrels"))
    documents = {row["id"]: f"{row.get('title') or ''} {row['text']}".strip() for row in corpus}
    trained = {row["id"]: row["text"] for row in queries if row["split"] == "train"}
    pairs = [{"a": trained[row["query"]], "b": documents[row["doc"]]} for row in qrels if row["query"] in trained]
    destination.write_text("".join(json.dumps(pair) + "\n" for pair in pairs) * copies, encoding="utf-8")
    return len(pairs)


def cells(scores: Mapping[str, Mapping[str, Mapping[str, float | None]]], form: str) -> dict[str, float | None]:
    """Returns the score of each set for one form, by the name of the set."""
    return {name: by_form[form] for sets in scores.values() for name, by_form in sets.items()}


def _embed(model: PolyheadModel, tokenizer: Tokenizer, texts: Sequence[str]) -> Vectors:
    ids = list(encode(tokenizer, texts, model.config.max_tokens))
    rows = EncodedRows(ids, Targets((), len(ids)), model.config.pad_token_id, [0] * len(ids), [])
    return embed(model, rows, _BATCH_SIZE, Accelerator(cpu=True))
