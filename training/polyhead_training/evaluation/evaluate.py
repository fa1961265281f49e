"""Evaluation of a run: temperatures and thresholds fitted on validation, then the metrics of every split.

::

    Split validation --calibration--> temperature, threshold --+
                     --selective----> promise -----------------+
    Split validation, Split test --scoring.score---------------+--> Evaluation --to_json--> evaluation.json
                                 --worst_errors----------------+
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from polyhead_training.abstain_config import AbstainConfig
from polyhead_training.data.labels import UNLABELLED
from polyhead_training.measures import metric_tables
from polyhead_training.model_config import HeadConfig
from polyhead_training.terminal import format_table

from .calibration import best_threshold, best_thresholds, fit_temperature
from .prediction_sets import PredictionSets, SetScore, fit_prediction_sets, score_prediction_sets
from .probabilities import (
    Answers,
    Calibration,
    Floats,
    Integers,
    Threshold,
    answers,
    binary_decisions,
    calibration,
    confidences,
    is_labelled,
    labelled,
    log_probabilities,
    probabilities,
)
from .retrieval import Retrieval
from .scoring import Score, score
from .selective import Promise, SelectiveScore, confident_answers, fit_promise, selective_score
from .similarity import Similarity

# Wrong predictions listed per head: enough to show a pattern, few enough to read.
_MAX_ERRORS = 20


@dataclass(frozen=True)
class Split:
    """True answers and model outputs of the rows of a split.

    Attributes:
        texts: The texts of the N rows.
        locations: File and line of each row.
        targets: True answers for the N rows, as in ``Targets.arrays``, by head name.
        logits: (N, outputs) float32 of each head, by head name.
    """

    texts: Sequence[str]
    locations: Sequence[tuple[Path, int]]
    targets: Mapping[str, Answers]
    logits: Mapping[str, Floats]

    def select(self, rows: Sequence[int]) -> Split:
        """Returns the rows with these numbers, in this order."""
        return Split(
            texts=[self.texts[row] for row in rows],
            locations=[self.locations[row] for row in rows],
            targets={name: values[list(rows)] for name, values in self.targets.items()},
            logits={name: values[list(rows)] for name, values in self.logits.items()},
        )


@dataclass(frozen=True)
class WrongAnswer:
    """A wrong prediction.

    Attributes:
        text: The row's text.
        label: Its true label, labels or number.
        answer: The prediction.
        probability: Probability of the predicted label, or of the most probable wrong decision about a label, 0 to 1;
            None for a number.
        path: File of the row.
        line: Line of the file.
    """

    text: str
    label: str
    answer: str
    probability: float | None
    path: str
    line: int


@dataclass(frozen=True)
class HeadEvaluation:
    """Evaluation of one head on one split.

    Attributes:
        score: Metrics with the head's temperature and threshold.
        uncalibrated: Calibration at temperature 1; None without labelled rows.
        errors: The wrong predictions with the highest probability, of a head that predicts numbers those that are the
            furthest off, at most 20.
        best_threshold: For a sigmoid head on validation, the threshold with the highest macro-F1, whether the run uses
            it or not; None otherwise.
        abstention: Coverage and accuracy of a head that was asked to abstain; None for others.
        prediction_sets: Coverage and size of the prediction sets of a head that has them; None for others.
    """

    score: Score
    uncalibrated: Calibration | None
    errors: tuple[WrongAnswer, ...]
    best_threshold: float | None = None
    abstention: SelectiveScore | None = None
    prediction_sets: SetScore | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the content of ``evaluation.json`` for this head: the score's metrics and the other attributes."""
        content = {
            **self.score.to_json(),
            "uncalibrated": asdict(self.uncalibrated) if self.uncalibrated else None,
            "errors": [asdict(error) for error in self.errors],
        }
        if self.abstention is not None:
            content["abstention"] = self.abstention.to_json()
        if self.prediction_sets is not None:
            content["prediction_sets"] = self.prediction_sets.to_json()
        return content if self.best_threshold is None else {**content, "best_threshold": self.best_threshold}


@dataclass(frozen=True)
class Evaluation:
    """Evaluation of a run, the content of ``evaluation.json``.

    Attributes:
        splits: Evaluations by split (``validation``, ``test``) and head name.
        similarity: Quality of the sentence embedding; None without similarity pairs.
        retrieval: Quality of retrieval with it, by task.
        validation: The validation rows, with the outputs of the run's own model; not part of the file.
    """

    splits: Mapping[str, Mapping[str, HeadEvaluation]]
    similarity: Similarity | None = None
    retrieval: Mapping[str, Retrieval] = field(default_factory=dict)
    validation: Split | None = None

    @property
    def temperatures(self) -> dict[str, float]:
        """Divisor of each head's logits."""
        return {name: found.score.temperature for name, found in self.splits["validation"].items()}

    @property
    def thresholds(self) -> dict[str, float | tuple[float, ...] | None]:
        """Minimum probability of the second label of a sigmoid head, of each label of a multilabel head; else None."""
        return {name: found.score.threshold for name, found in self.splits["validation"].items()}

    @property
    def abstentions(self) -> dict[str, SelectiveScore]:
        """Coverage and accuracy on validation of each head that was asked to abstain, by its name."""
        found = {name: one.abstention for name, one in self.splits["validation"].items()}
        return {name: abstention for name, abstention in found.items() if abstention is not None}

    @property
    def prediction_sets(self) -> dict[str, PredictionSets]:
        """What decides the prediction sets of each head that has them, by its name."""
        found = {name: one.prediction_sets for name, one in self.splits["validation"].items()}
        return {name: score.sets for name, score in found.items() if score is not None}

    def to_json(self) -> dict[str, Any]:
        """Returns the content of ``evaluation.json``."""
        content: dict[str, Any] = {
            split: {name: found.to_json() for name, found in heads.items()} for split, heads in self.splits.items()
        }
        if self.similarity is not None:
            content["similarity"] = self.similarity.to_json()
        if self.retrieval:
            content["retrieval"] = {name: found.to_json() for name, found in self.retrieval.items()}
        return content


def evaluate_run(
    heads: Sequence[HeadConfig],
    splits: Mapping[str, Split],
    similarity: Similarity | None = None,
    seed: int = 0,
    retrieval: Mapping[str, Retrieval] | None = None,
    *,
    abstain: Mapping[str, AbstainConfig] | None = None,
    set_coverages: Mapping[str, float] | None = None,
) -> Evaluation:
    """Fits each head's temperature, threshold and promise on validation, and evaluates every split with them.

    Args:
        heads: The heads with their labels.
        splits: ``validation``, which may be empty, and other splits.
        similarity: Quality of the sentence embedding, to include in the result.
        seed: Seed of the resamples for the intervals.
        retrieval: Quality of retrieval by task, to include in the result.
        abstain: What heads that abstain promise, by name.
        set_coverages: Coverage of the prediction sets of heads that have them, by name.
    """
    found: dict[str, dict[str, HeadEvaluation]] = {split: {} for split in splits}
    for head in heads:
        logits, targets = splits["validation"].logits[head.name], splits["validation"].targets[head.name]
        temperature, threshold, best = fit_decisions(head, logits, targets)
        promise = None
        if wanted := (abstain or {}).get(head.name):
            confident = confident_answers(head.kind, logits, targets, temperature, threshold)
            promise = fit_promise(confident, wanted.accuracy, wanted.certainty)
        sets = None
        if coverage := (set_coverages or {}).get(head.name):
            sets = fit_prediction_sets(logits, targets, coverage, temperature)
        for name, split in splits.items():
            evaluated = _evaluate(head, split, promise, temperature=temperature, threshold=threshold, seed=seed)
            if sets:
                scored = score_prediction_sets(sets, split.logits[head.name], split.targets[head.name], temperature)
                evaluated = replace(evaluated, prediction_sets=scored)
            found[name][head.name] = replace(evaluated, best_threshold=best) if name == "validation" else evaluated
    return Evaluation(found, similarity, retrieval or {}, splits["validation"])


def fit_decisions(head: HeadConfig, logits: Floats, targets: Answers) -> tuple[float, Threshold, float | None]:
    """Fits what turns the logits of a head into its decisions.

    Args:
        head: The head with its labels.
        logits: (N, outputs) of the head.
        targets: True answers for the N rows, as in ``Targets.arrays``.

    Returns:
        The temperature; the configured or the best threshold; and for a sigmoid head its best threshold, else None.
    """
    temperature = fit_temperature(head.kind, logits, targets, balanced=head.loss == "logit_adjusted")
    best = best_threshold(logits, targets, temperature) if head.kind == "sigmoid" else None
    threshold: Threshold = head.threshold if isinstance(head.threshold, float) else best or 0.5
    if head.kind == "multilabel" and head.threshold == "best":
        threshold = best_thresholds(logits, targets, temperature)
    return temperature, threshold, best


def worst_errors(
    head: HeadConfig, logits: Floats, targets: Integers, temperature: float = 1.0, threshold: Threshold = 0.5
) -> list[tuple[int, int, float]]:
    """Selects the wrong labels that a head predicts with the highest probability, the highest first, at most 20.

    Args:
        head: The head, which predicts one label.
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


def wrong_answers(
    head: HeadConfig, split: Split, temperature: float = 1.0, threshold: Threshold = 0.5
) -> Iterator[tuple[int, str, str, float | None]]:
    """Yields a head's worst wrong predictions on a split, the worst first, at most 20.

    Yields:
        Number of the row, true answer and prediction as texts, and the probability of the prediction, as in
        ``WrongAnswer``.
    """
    logits, targets, labels = split.logits[head.name], split.targets[head.name], head.labels or ()
    if head.kind == "regression":
        yield from _wrong_numbers(logits, targets)
    elif head.kind == "multilabel":
        yield from _wrong_lists(labels, logits, targets, temperature, threshold)
    else:
        for row, answer, probability in worst_errors(head, logits, targets, temperature, threshold):
            yield row, labels[targets[row]], labels[answer], probability


def _wrong_lists(
    labels: Sequence[str], logits: Floats, targets: Integers, temperature: float, threshold: Threshold
) -> Iterator[tuple[int, str, str, float | None]]:
    predicted = answers("multilabel", logits, temperature, threshold)  # (N, labels)
    present = probabilities("multilabel", logits, temperature)
    decided = np.where(predicted == 1, present, 1.0 - present)  # (N, labels)
    worst = np.where((predicted != targets) & is_labelled(targets)[:, None], decided, 0.0).max(axis=1)  # (N,)
    for row in np.argsort(-worst, kind="stable")[:_MAX_ERRORS]:
        if worst[row]:
            true, found = (", ".join(np.array(labels)[marks[row] == 1]) or "none" for marks in (targets, predicted))
            yield int(row), true, found, float(worst[row])


def _wrong_numbers(outputs: Floats, targets: Floats) -> Iterator[tuple[int, str, str, float | None]]:
    errors = np.nan_to_num(np.abs(outputs[:, 0] - targets))  # (N,)
    for row in np.argsort(-errors, kind="stable")[:_MAX_ERRORS]:
        if errors[row]:
            yield int(row), f"{targets[row]:.6g}", f"{outputs[row, 0]:.6g}", None


def table(evaluation: Evaluation) -> str:
    """Formats the most important metrics by split and head for a terminal, one table for each set of metrics.

    Empty without heads.
    """
    content = {
        split: {name: found.score.to_json() for name, found in heads.items()}
        for split, heads in evaluation.splits.items()
    }
    return "\n".join(
        format_table(["split", "head", "rows", *titles], rows, numeric=["rows", *titles[1:]])
        for titles, rows in metric_tables(content)
    )


def _evaluate(
    head: HeadConfig, split: Split, promise: Promise | None, *, temperature: float, threshold: Threshold, seed: int
) -> HeadEvaluation:
    logits, targets = split.logits[head.name], split.targets[head.name]
    wrong = [
        WrongAnswer(
            text=split.texts[row],
            label=label,
            answer=answer,
            probability=probability,
            path=str(split.locations[row][0]),
            line=split.locations[row][1],
        )
        for row, label, answer, probability in wrong_answers(head, split, temperature, threshold)
    ]
    found = score(
        head.kind, head.labels or (), logits, targets, temperature=temperature, threshold=threshold, seed=seed
    )
    abstention = None
    if promise is not None:
        confident = confident_answers(head.kind, logits, targets, temperature, threshold)
        abstention = selective_score(promise, confident)
    return HeadEvaluation(found, _uncalibrated(head, logits, targets), tuple(wrong), abstention=abstention)


def _uncalibrated(head: HeadConfig, logits: Floats, targets: Answers) -> Calibration | None:
    logits, targets = labelled(logits, targets)
    if not len(targets) or head.kind == "regression":
        return None
    if head.kind == "multilabel":
        return calibration(confidences("sigmoid", *binary_decisions("multilabel", logits, targets)))
    return calibration(confidences(head.kind, logits, targets))
