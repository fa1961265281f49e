"""Quality of a model's sentence embedding on the similarity pairs and the retrieval tasks of a run.

::

    texts --model--> embeddings --each form: first dimensions, encoding--> correlations, scores --> EmbeddingQuality
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from accelerate import Accelerator

from .config import Config
from .data.preparation import Prepared
from .evaluation.encodings import Form, encode, forms
from .evaluation.probabilities import Floats
from .evaluation.retrieval import Retrieval, RetrievalResult, RetrievalScores, retrieval_scores
from .evaluation.similarity import Correlations, FormCorrelations, Similarity, correlations
from .model import PolyheadModel
from .predict import Matrix, embed


@dataclass(frozen=True)
class EmbeddingQuality:
    """Quality of an embedding.

    Attributes:
        correlations: Correlations on the similarity pairs; None without pairs.
        spearman: Rank correlation by form of the embedding.
        retrieval: Scores by task and form.
    """

    correlations: Correlations | None
    spearman: Mapping[Form, float | None]
    retrieval: Mapping[str, Mapping[Form, RetrievalScores]]


def embedding_correlations(
    model: PolyheadModel, prepared: Prepared, batch_size: int, accelerator: Accelerator
) -> Correlations | None:
    """Evaluates the whole embedding on the similarity pairs; returns None without pairs. Arguments as ``measure``'s."""
    if not prepared.data.similarity:
        return None
    return correlations(*_pairs(model, prepared, batch_size, accelerator), _scores(prepared))


def measure(config: Config, model: PolyheadModel, prepared: Prepared, accelerator: Accelerator) -> EmbeddingQuality:
    """Evaluates the embedding and its shorter forms on the similarity pairs and the retrieval tasks.

    Args:
        config: Batch size, and the dimensions that the embedding is trained for.
        model: The model.
        prepared: The texts.
        accelerator: The processes that share the texts.
    """
    batch_size = config.training.batch_size
    evaluated = list(forms(model.config.embedding_size(), config.training.matryoshka))
    whole, spearman = None, dict[Form, float | None]()
    if prepared.data.similarity:
        first, second = _pairs(model, prepared, batch_size, accelerator)
        whole = correlations(first, second, _scores(prepared))
        for form in evaluated:
            spearman[form] = correlations(encode(first, form), encode(second, form), _scores(prepared)).spearman
    retrieval = {}
    for task, texts in zip(prepared.data.retrieval, prepared.retrieval, strict=True):
        queries, documents = (embed(model, rows, batch_size, accelerator) for rows in (texts.queries, texts.documents))
        retrieval[task.name] = {
            form: retrieval_scores(encode(queries, form), encode(documents, form), task.relevance) for form in evaluated
        }
    return EmbeddingQuality(whole, spearman, retrieval)


def similarity(prepared: Prepared, before: EmbeddingQuality, after: EmbeddingQuality) -> Similarity | None:
    """Returns the effect of training on the similarity pairs; None without pairs."""
    if not before.correlations or not after.correlations:
        return None
    found = [FormCorrelations(form, value, after.spearman[form]) for form, value in before.spearman.items()]
    return Similarity(len(prepared.data.similarity), before.correlations, after.correlations, found)


def retrieval(prepared: Prepared, before: EmbeddingQuality, after: EmbeddingQuality) -> dict[str, Retrieval]:
    """Returns the effect of training on each retrieval task."""
    return {
        task.name: Retrieval(
            len(task.queries),
            len(task.documents),
            [
                RetrievalResult(form, scores, after.retrieval[task.name][form])
                for form, scores in before.retrieval[task.name].items()
            ],
        )
        for task in prepared.data.retrieval
    }


def _pairs(
    model: PolyheadModel, prepared: Prepared, batch_size: int, accelerator: Accelerator
) -> tuple[Matrix, Matrix]:
    first, second = (embed(model, rows, batch_size, accelerator) for rows in prepared.pairs)
    return first, second


def _scores(prepared: Prepared) -> Floats:
    return np.array([pair.score for pair in prepared.data.similarity])
