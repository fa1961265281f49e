"""What a run says about itself: temperatures and thresholds from validation, then the scores of every split.

::

    Split validation --calibrate--> temperature, threshold --+
    Split validation, Split test --scores.score--------------+--> Evaluation --to_json--> evaluation.json
                                 --worst_errors--------------+
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from polyhead_training.config import HeadConfig
from polyhead_training.loop.loss import UNLABELLED

from .calibration import best_threshold, fit_temperature
from .metrics import HeadScore, score
from .probabilities import Calibration, Floats, Integers, answers, calibration, certainties, labelled, log_probabilities
from .similarity import Similarity

# Enough to see a pattern, few enough to read.
_MAX_ERRORS = 20


@dataclass(frozen=True)
class Split:
    """What a model answered for some rows.

    Attributes:
        texts: The texts of the N rows.
        places: Where each row stands: its file and line.
        targets: (N, heads) int64 index of each head's true label, ``UNLABELLED`` where the row has none.
        logits: (N, outputs) float32 of each head, by its name.
    """

    texts: Sequence[str]
    places: Sequence[tuple[Path, int]]
    targets: Integers
    logits: Mapping[str, Floats]


@dataclass(frozen=True)
class WrongAnswer:
    """A wrong answer.

    Attributes:
        text: The row's text.
        label: Its label.
        answer: What the head answered.
        probability: How probable the head found it, 0 to 1.
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
    """Everything that is known about one head on one split.

    Attributes:
        score: With the head's temperature and threshold.
        uncalibrated: The probabilities at temperature 1; None without labelled rows.
        errors: The wrong answers that the head was surest of, at most 20.
        best_threshold: Of a sigmoid head on validation the threshold of the highest macro-F1, whether it is used or
            not; None elsewhere.
    """

    score: HeadScore
    uncalibrated: Calibration | None
    errors: tuple[WrongAnswer, ...]
    best_threshold: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The figures as ``evaluation.json`` has them: those of the score, with the others beside them."""
        content = {
            **self.score.to_json(),
            "uncalibrated": asdict(self.uncalibrated) if self.uncalibrated else None,
            "errors": [asdict(error) for error in self.errors],
        }
        return content if self.best_threshold is None else {**content, "best_threshold": self.best_threshold}


@dataclass(frozen=True)
class Evaluation:
    """Everything that ``evaluation.json`` says.

    Attributes:
        splits: By split (``validation``, ``test``) and the head's name.
        similarity: What the sentence embedding is worth; None without pairs of texts.
    """

    splits: Mapping[str, Mapping[str, HeadEvaluation]]
    similarity: Similarity | None = None

    @property
    def temperatures(self) -> dict[str, float]:
        """What each head's logits are divided by."""
        return {name: found.score.temperature for name, found in self.splits["validation"].items()}

    @property
    def thresholds(self) -> dict[str, float | None]:
        """Probability from which on each sigmoid head answers its second label; None for a softmax head."""
        return {name: found.score.threshold for name, found in self.splits["validation"].items()}

    def to_json(self) -> dict[str, Any]:
        """The content of ``evaluation.json``."""
        content: dict[str, Any] = {
            split: {name: found.to_json() for name, found in heads.items()} for split, heads in self.splits.items()
        }
        return content if self.similarity is None else {**content, "similarity": self.similarity.to_json()}


def evaluate_run(
    heads: Sequence[HeadConfig], splits: Mapping[str, Split], similarity: Similarity | None = None, seed: int = 0
) -> Evaluation:
    """Fits each head's temperature and threshold on validation, and scores every split with them.

    Args:
        heads: The heads with their labels, in the order of the columns of the targets.
        splits: ``validation``, which may have no rows, and others.
        similarity: What the sentence embedding is worth, to be written down along.
        seed: Seed of the resamples that the intervals come from.
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
    """The wrong answers that a head was surest of, the surest first, at most 20.

    Args:
        head: The head.
        logits: (N, outputs) of the head.
        targets: (N,) indices of the true labels, ``UNLABELLED`` where there is none.
        temperature: What the logits are divided by.
        threshold: Probability from which on a sigmoid head answers its second label.

    Returns:
        Number of the row, index of the answer, probability of the answer.
    """
    answered = answers(head.kind, logits, temperature, threshold)  # (N,)
    wrong = np.flatnonzero((answered != targets) & (targets != UNLABELLED))  # (W,)
    sure = np.exp(log_probabilities(head.kind, logits[wrong], temperature)[np.arange(len(wrong)), answered[wrong]])
    order = np.argsort(-sure, kind="stable")[:_MAX_ERRORS]
    return [(int(wrong[place]), int(answered[wrong[place]]), float(sure[place])) for place in order]


def table(evaluation: Evaluation) -> list[str]:
    """The most important figures by split and head, as lines for a terminal."""
    lines = [f"{'split':<12}{'head':<16}{'rows':>8}  {'accuracy':<24}{'macro-F1':>8}{'ECE':>8}{'majority':>10}"]
    for split, heads in evaluation.splits.items():
        for name, found in heads.items():
            score = found.score
            interval = " [{:.4f}, {:.4f}]".format(*score.intervals["accuracy"]) if score.rows else ""
            figures = f"{_figure(score.accuracy) + interval:<24}{_figure(score.macro_f1):>8}{_figure(score.ece):>8}"
            lines.append(f"{split:<12}{name:<16}{score.rows:>8,}  {figures}{_figure(score.majority_baseline):>10}")
    return lines


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
            path=str(split.places[row][0]),
            line=split.places[row][1],
        )
        for row, answer, probability in worst_errors(head, logits, targets, temperature, threshold)
    ]
    known = labelled(logits, targets)
    return HeadEvaluation(
        score=score(head.kind, labels, logits, targets, temperature=temperature, threshold=threshold, seed=seed),
        uncalibrated=calibration(certainties(head.kind, *known)) if len(known[1]) else None,
        errors=tuple(wrong),
    )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
