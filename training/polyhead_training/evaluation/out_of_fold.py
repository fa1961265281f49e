"""Predictions of a cross-validation: one file of logits per fold, then one prediction for each row.

::

    rows of each fold --write_fold--> fold-K.npz --read_folds--> Split of all rows --prediction_lines--> JSON lines
                                                                                   --fold_scores-------> metrics of each
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyhead_training.data.dataset import Row
from polyhead_training.model_config import HeadConfig
from polyhead_training.runs.checkpoint import replacing

from .evaluate import Split, fit_decisions
from .probabilities import Integers, answers, is_labelled, log_probabilities
from .scoring import score

# Prefixes of the names of heads.
_TARGETS, _LOGITS = "targets.", "logits."


def has_fold(folder: Path, fold: int) -> bool:
    """Returns whether the predictions of a fold, counted from 0, are stored in a folder."""
    return _path(folder, fold).exists()


def write_fold(folder: Path, fold: int, split: Split) -> None:
    """Stores targets and logits of the rows of a fold durably."""
    arrays: dict[str, Any] = {_LOGITS + name: values for name, values in split.logits.items()}
    arrays |= {_TARGETS + name: values for name, values in split.targets.items()}
    with replacing(_path(folder, fold)) as stream:
        np.savez(stream, **arrays)


def read_folds(folder: Path, rows: Sequence[Row], assigned: Sequence[int], folds: int) -> Split:
    """Assembles the predictions of all folds in the order of the rows.

    Args:
        folder: The folder of ``write_fold``.
        rows: All rows.
        assigned: For each row, its fold, counted from 0.
        folds: Number of folds.
    """
    parts: dict[str, Any] = {}
    for fold in range(folds):
        numbers = np.flatnonzero(np.array(assigned) == fold)
        with np.load(_path(folder, fold), allow_pickle=False) as stored:
            for name in stored.files:
                values = stored[name]
                parts.setdefault(name, np.zeros((len(rows), *values.shape[1:]), values.dtype))[numbers] = values
    return Split(
        texts=[row.text for row in rows],
        locations=[(row.path, row.line) for row in rows],
        targets=_named(parts, _TARGETS),
        logits=_named(parts, _LOGITS),
    )


def _named(parts: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): values for name, values in parts.items() if name.startswith(prefix)}


def fold_scores(heads: Sequence[HeadConfig], split: Split, assigned: Sequence[int], folds: int) -> list[dict[str, Any]]:
    """Scores the predictions for each fold with temperatures and thresholds that are fitted on those for the others.

    Fitted on the fold itself, the thresholds of rare labels would follow the few rows that they are measured on.

    Args:
        heads: The heads.
        split: The rows.
        assigned: For each row, its fold, counted from 0.
        folds: Number of folds.

    Returns:
        For each fold the metrics of every head on ``validation``, as in ``evaluation.json``, without intervals.
    """
    found: list[dict[str, Any]] = []
    for fold in range(folds):
        held = np.array(assigned) == fold  # (rows,)
        scores = {}
        for head in heads:
            logits, targets = split.logits[head.name], split.targets[head.name]
            temperature, threshold, _ = fit_decisions(head, logits[~held], targets[~held])
            scores[head.name] = score(
                head.kind,
                head.labels or (),
                logits[held],
                targets[held],
                temperature=temperature,
                threshold=threshold,
                intervals=False,
            ).to_json()
        found.append({"validation": scores})
    return found


def prediction_lines(
    heads: Sequence[HeadConfig], split: Split, assigned: Sequence[int], scores: Mapping[str, Any]
) -> Iterator[str]:
    """Yields the lines of ``out_of_fold.jsonl``: place and fold of a row, and for each head its answer and prediction.

    Heads with one label per row have ``label``, ``predicted`` and ``probability``, multilabel heads ``labels`` and
    ``predicted``, regression heads ``value`` and ``predicted``. The answer is null in rows without one.

    Args:
        heads: The heads.
        split: All rows.
        assigned: For each row, its fold, counted from 0.
        scores: Evaluation of each head on these rows, by head name, with its temperature and threshold.
    """
    contents = {head.name: _contents(head, split, scores[head.name]) for head in heads}
    for number, (path, line) in enumerate(split.locations):
        content: dict[str, Any] = {"path": str(path), "line": line, "fold": assigned[number] + 1}
        content |= {name: rows[number] for name, rows in contents.items()}
        yield json.dumps(content, ensure_ascii=False) + "\n"


def _contents(head: HeadConfig, split: Split, scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the answer and the prediction of a head in each row."""
    labels, targets, logits = head.labels or (), split.targets[head.name], split.logits[head.name]
    known = is_labelled(targets)  # (N,)
    temperature = scores.get("temperature", 1.0)
    threshold = scores.get("threshold") or 0.5
    predicted = answers(head.kind, logits, temperature, threshold)
    if head.kind == "regression":
        return [
            {"value": _decimal(target) if is_known else None, "predicted": _decimal(answer)}
            for target, is_known, answer in zip(targets, known, predicted, strict=True)
        ]
    if head.kind == "multilabel":
        return [
            {"labels": _chosen(labels, target) if is_known else None, "predicted": _chosen(labels, answer)}
            for target, is_known, answer in zip(targets, known, predicted, strict=True)
        ]
    probabilities = np.exp(log_probabilities(head.kind, logits, temperature))  # (N, labels)
    return [
        {
            "label": labels[target] if is_known else None,
            "predicted": labels[answer],
            "probability": round(float(row[answer]), 6),
        }
        for target, is_known, answer, row in zip(targets, known, predicted, probabilities, strict=True)
    ]


def _decimal(value: Any) -> float:
    """Returns the shortest decimal of a number of the model: 0.1, not the 0.10000000149011612 of the equal float64."""
    return float(str(np.float32(value)))


def _chosen(labels: Sequence[str], marks: Integers) -> list[str]:
    return [label for label, mark in zip(labels, marks, strict=True) if mark == 1]


def _path(folder: Path, fold: int) -> Path:
    return folder / f"fold-{fold + 1}.npz"
