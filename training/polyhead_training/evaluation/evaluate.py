"""Evaluation of a run: temperatures and thresholds fitted on validation, then the metrics of every split.

::

    Split validation --calibration--> temperature, threshold --+
    Split validation, Split test --metrics.score---------------+--> Evaluation --to_json--> evaluation.json
                                 --worst_errors----------------+
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from polyhead_training.config import HeadConfig
from polyhead_training.data.labels import UNLABELLED
from polyhead_training.terminal import format_table

from .calibration import best_threshold, fit_temperature
from .metrics import HeadScore, score
from .probabilities import Calibration, Floats, Integers, answers, calibration, confidences, labelled, log_probabilities
from .similarity import Similarity

# Wrong predictions listed per head: enough to show a pattern, few enough to read.
_MAX_ERRORS = 20


@dataclass(frozen=True)
class Split:
    """Labels and model outputs of the rows of a split.

    Attributes:
        texts: The texts of the N rows.
        locations: File and line of each row.
        targets: (N, heads) int64 index of each head's true label, ``UNLABELLED`` for rows without a label.
        logits: (N, outputs) float32 of each head, by head name.
    """

    texts: Sequence[str]
    locations: Sequence[tuple[Path, int]]
    targets: Integers
    logits: Mapping[str, Floats]


@dataclass(frozen=True)
class WrongAnswer:
    """A wrong prediction.

    Attributes:
        text: The row's text.
        label: Its true label.
        answer: The predicted label.
        probability: Probability of the predicted label, 0 to 1.
        path: File of the row.
        line: Line of the file.
    """

    text: str
    label: str
    answer: str
    probability: float
    path: str
    line: int


@dataclass(frozen=True)
class HeadEvaluation:
    """Evaluation of one head on one split.

    Attributes:
        score: Metrics with the head's temperature and threshold.
        uncalibrated: Calibration at temperature 1; None without labelled rows.
        errors: The wrong predictions with the highest probability, at most 20.
        best_threshold: For a sigmoid head on validation, the threshold with the highest macro-F1, whether the run uses
            it or not; None otherwise.
    """

    score: HeadScore
    uncalibrated: Calibration | None
    errors: tuple[WrongAnswer, ...]
    best_threshold: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the content of ``evaluation.json`` for this head: the score's metrics and the other attributes."""
        content = {
            **self.score.to_json(),
            "uncalibrated": asdict(self.uncalibrated) if self.uncalibrated else None,
            "errors": [asdict(error) for error in self.errors],
        }
        return content if self.best_threshold is None else {**content, "best_threshold": self.best_threshold}


@dataclass(frozen=True)
class Evaluation:
    """Evaluation of a run, the content of ``evaluation.json``.

    Attributes:
        splits: Evaluations by split (``validation``, ``test``) and head name.
        similarity: Quality of the sentence embedding; None without similarity pairs.
    """

    splits: Mapping[str, Mapping[str, HeadEvaluation]]
    similarity: Similarity | None = None

    @property
    def temperatures(self) -> dict[str, float]:
        """Divisor of each head's logits."""
        return {name: found.score.temperature for name, found in self.splits["validation"].items()}

    @property
    def thresholds(self) -> dict[str, float | None]:
        """Minimum probability of the second label of each sigmoid head; None for a softmax head."""
        return {name: found.score.threshold for name, found in self.splits["validation"].items()}

    def to_json(self) -> dict[str, Any]:
        """Returns the content of ``evaluation.json``."""
        content: dict[str, Any] = {
            split: {name: found.to_json() for name, found in heads.items()} for split, heads in self.splits.items()
        }
        return content if self.similarity is None else {**content, "similarity": self.similarity.to_json()}


def evaluate_run(
    heads: Sequence[HeadConfig], splits: Mapping[str, Split], similarity: Similarity | None = None, seed: int = 0
) -> Evaluation:
    """Fits each head's temperature and threshold on validation, and evaluates every split with them.

    Args:
        heads: The heads with their labels, in the order of the target columns.
        splits: ``validation``, which may be empty, and other splits.
        similarity: Quality of the sentence embedding, to include in the result.
        seed: Seed of the resamples for the intervals.
    """
    found: dict[str, dict[str, HeadEvaluation]] = {split: {} for split in splits}
    for column, head in enumerate(heads):
        logits, targets = splits["validation"].logits[head.name], splits["validation"].targets[:, column]
        temperature = fit_temperature(head.kind, logits, targets)
        best = best_threshold(logits, targets, temperature) if head.kind == "sigmoid" else None
        threshold = head.threshold if isinstance(head.threshold, float) else best or 0.5
        for name, split in splits.items():
            evaluated = _evaluate(head, column, split, temperature=temperature, threshold=threshold, seed=seed)
            found[name][head.name] = replace(evaluated, best_threshold=best) if name == "validation" else evaluated
    return Evaluation(found, similarity)


def worst_errors(
    head: HeadConfig, logits: Floats, targets: Integers, temperature: float = 1.0, threshold: float = 0.5
) -> list[tuple[int, int, float]]:
    """Selects a head's wrong predictions with the highest probability, the highest first, at most 20.

    Args:
        head: The head.
        logits: (N, outputs) of the head.
        targets: (N,) indices of the true labels, ``UNLABELLED`` for rows without a label.
        temperature: Divisor of the logits.
        threshold: Minimum probability at which a sigmoid head predicts its second label.

    Returns:
        For each, the number of the row, the index of the predicted label, and its probability.
    """
    predicted = answers(head.kind, logits, temperature, threshold)  # (N,)
    wrong = np.flatnonzero((predicted != targets) & (targets != UNLABELLED))  # (W,)
    probability = np.exp(
        log_probabilities(head.kind, logits[wrong], temperature)[np.arange(len(wrong)), predicted[wrong]]
    )  # (W,)
    order = np.argsort(-probability, kind="stable")[:_MAX_ERRORS]
    return [(int(wrong[index]), int(predicted[wrong[index]]), float(probability[index])) for index in order]


def table(evaluation: Evaluation) -> str:
    """Formats the most important metrics by split and head for a terminal."""
    rows = []
    for split, heads in evaluation.splits.items():
        for name, found in heads.items():
            score = found.score
            interval = " [{:.4f}, {:.4f}]".format(*score.intervals["accuracy"]) if score.rows else ""
            metrics = (score.macro_f1, score.ece, score.majority_baseline)
            rows.append([split, name, f"{score.rows:,}", _format(score.accuracy) + interval, *map(_format, metrics)])
    header = ["split", "head", "rows", "accuracy", "macro-F1", "ECE", "majority"]
    return format_table(header, rows, numeric=["rows", "macro-F1", "ECE", "majority"])


def _evaluate(
    head: HeadConfig, column: int, split: Split, *, temperature: float, threshold: float, seed: int
) -> HeadEvaluation:
    logits, targets, labels = split.logits[head.name], split.targets[:, column], head.labels or ()
    wrong = [
        WrongAnswer(
            text=split.texts[row],
            label=labels[targets[row]],
            answer=labels[answer],
            probability=probability,
            path=str(split.locations[row][0]),
            line=split.locations[row][1],
        )
        for row, answer, probability in worst_errors(head, logits, targets, temperature, threshold)
    ]
    known = labelled(logits, targets)
    return HeadEvaluation(
        score=score(head.kind, labels, logits, targets, temperature=temperature, threshold=threshold, seed=seed),
        uncalibrated=calibration(confidences(head.kind, *known)) if len(known[1]) else None,
        errors=tuple(wrong),
    )


def _format(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
