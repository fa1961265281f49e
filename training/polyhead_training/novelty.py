"""What a run states about its texts at its end: how new a text is to it, and what it answered on validation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from accelerate import Accelerator

from .config import Config
from .data.collation import EncodedRows
from .data.preparation import Prepared
from .data.vocabulary import unknown_share
from .evaluation.evaluate import Evaluation
from .evaluation.novelty import NoveltyModel, fit_novelty
from .evaluation.reference import describe_validation
from .model import PolyheadModel
from .predict import Matrix, embed

# Texts whose embeddings are computed: enough for the centroids, and a fraction of the time of an epoch.
_MAX_TRAIN_TEXTS = 2000
_MAX_VALIDATION_TEXTS = 1000
# Fewer texts have no percentiles.
_MIN_TEXTS = 50


def fit_run_novelty(
    config: Config, model: PolyheadModel, prepared: Prepared, accelerator: Accelerator
) -> NoveltyModel | None:
    """Fits the novelty of texts to the final model. Every process of a launcher must call it.

    Args:
        config: The configuration.
        model: The model.
        prepared: The rows.
        accelerator: The processes that share the rows.

    Returns:
        The novelty; None if the configuration disables it, or with fewer than 50 training or validation texts.
    """
    train, validation = (prepared.splits[name] for name in ("train", "validation"))
    if not config.training.novelty or min(len(train), len(validation)) < _MIN_TEXTS:
        return None
    seed = config.training.seed

    def embedded(rows: EncodedRows, most: int) -> Matrix:
        return embed(model, rows.select(_sample(rows, most, seed)), config.training.batch_size, accelerator)

    return fit_novelty(embedded(train, _MAX_TRAIN_TEXTS), embedded(validation, _MAX_VALIDATION_TEXTS), seed)


def missing_lines(config: Config, prepared: Prepared, novelty: NoveltyModel | None) -> Iterator[str]:
    """Yields what the run cannot state about its texts, for lack of them.

    Args:
        config: The configuration.
        prepared: The rows.
        novelty: The novelty of texts, if the run has it.
    """
    if not len(prepared.splits["validation"]):
        yield "without validation texts, the model has neither novelty nor a reference for drift; set data.validation"
    elif config.training.novelty and novelty is None:
        yield f"the model has no novelty, which requires {_MIN_TEXTS} training and {_MIN_TEXTS} validation texts"


def _sample(rows: EncodedRows, most: int, seed: int) -> Sequence[int]:
    count = min(most, len(rows))
    return sorted(np.random.default_rng(seed).choice(len(rows), count, replace=False).tolist())


def run_reference(
    prepared: Prepared, evaluation: Evaluation, max_tokens: int, novelty: NoveltyModel | None
) -> dict[str, Any] | None:
    """Describes what the final model reads and answers on its validation texts; returns None without any.

    Args:
        prepared: The rows.
        evaluation: The evaluation of the run.
        max_tokens: Tokens of a text that the model reads.
        novelty: The novelty of texts, if the run has it.
    """
    rows = prepared.splits["validation"]
    return describe_validation(
        prepared.data.heads,
        evaluation.validation.logits if evaluation.validation else {},
        evaluation.temperatures,
        evaluation.thresholds,
        tokens=rows.tokens,
        max_tokens=max_tokens,
        unknown_tokens=unknown_share(prepared.backbone.tokenizer, rows.ids),
        novelty=novelty,
    )
