"""Results of a run, read from its files for the training report and the model card."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyhead_training.errors import RunError
from polyhead_training.measures import measures_of
from polyhead_training.runs.run_directory import (
    COLLECTED_NAME,
    DATA_NAME,
    EVALUATION_NAME,
    LABEL_NOISE_NAME,
    METRICS_NAME,
    REPEATS_NAME,
    RUN_NAME,
)

_SIMILARITY = "similarity"
_RETRIEVAL = "retrieval"
# Values of the parts of evaluation.json that are not a split.
_REQUIRED = {_SIMILARITY: {"pairs"}, _RETRIEVAL: {"queries", "documents", "results"}}
# With fewer rows, a label that is never predicted may be chance.
_MIN_ROWS = 20


@dataclass(frozen=True)
class Results:
    """Content of a run's files.

    Attributes:
        run: Content of ``run.json``.
        splits: Evaluations of ``evaluation.json`` by split and head name.
        similarity: Evaluation of the sentence embedding; None without similarity pairs.
        retrieval: Evaluation of retrieval with the sentence embedding, by task.
        metrics: Lines of ``metrics.jsonl``; empty without the file.
        data: Content of ``data.json``; None without the file.
        repeats: Content of ``repeats.json``; None for a single run.
        label_noise: Content of ``label_noise.json``; None without cross-validation.
        collected: Content of ``collected.json``; None without collected rows.
    """

    run: dict[str, Any]
    splits: dict[str, dict[str, Any]]
    similarity: dict[str, Any] | None
    metrics: list[dict[str, Any]]
    data: dict[str, Any] | None
    repeats: dict[str, Any] | None = None
    label_noise: dict[str, Any] | None = None
    retrieval: dict[str, Any] = field(default_factory=dict)
    collected: dict[str, Any] | None = None

    @property
    def heads(self) -> list[dict[str, Any]]:
        """The heads of ``run.json``, in order."""
        return list(self.run["heads"])

    def best_split(self, head: str) -> str | None:
        """Returns the split to report for a head: test, or validation if test has no labels for it."""
        found = [split for split in ("test", "validation") if self.splits.get(split, {}).get(head, {}).get("rows")]
        return found[0] if found else None


def implausible(splits: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yields a sentence for each head whose predictions on a split show that it learned nothing.

    Args:
        splits: Evaluations of ``evaluation.json`` by split and head name.
    """
    for split, heads in splits.items():
        for name, found in heads.items():
            if found["rows"] >= _MIN_ROWS and (reason := _IMPLAUSIBLE.get(found.get("kind", ""), _one_label)(found)):
                yield f"{split}: head {name!r} {reason}"


def _one_label(found: Mapping[str, Any]) -> str:
    # With a single label, nothing can be judged.
    if found["majority_baseline"] in (None, 1):
        return ""
    answered = [label for label, one in found.get("labels", {}).items() if one["answered"]]
    if len(answered) == 1:
        return f"predicts {answered[0]!r} for each of the {found['rows']:,} rows"
    if found["accuracy"] <= found["majority_baseline"]:
        figures = f"accuracy {found['accuracy']:.1%}, baseline {found['majority_baseline']:.1%}"
        return f"is no better than its most frequent label ({figures})"
    return ""


def _many_labels(found: Mapping[str, Any]) -> str:
    if not any(one["answered"] for one in found["labels"].values()):
        return f"predicts no label for any of the {found['rows']:,} rows"
    if found["micro_f1"] <= found["majority_baseline"]:
        figures = f"micro-F1 {found['micro_f1']:.1%}, baseline {found['majority_baseline']:.1%}"
        return f"is no better than its most frequent label ({figures})"
    return ""


def _ordered(found: Mapping[str, Any]) -> str:
    # Where one label is very frequent, a useful head may be no more accurate than that label: its errors are smaller.
    answered = [label for label, one in found["labels"].items() if one["answered"]]
    if len(answered) == 1 and found["majority_baseline"] != 1:
        return f"predicts {answered[0]!r} for each of the {found['rows']:,} rows"
    if found["qwk"] is not None and found["qwk"] <= 0:
        return f"does not follow the order of its labels (quadratic weighted kappa {found['qwk']:.3f})"
    return ""


def _number(found: Mapping[str, Any]) -> str:
    if found["r2"] is not None and found["pearson"] is None:
        return f"predicts the same number for each of the {found['rows']:,} rows"
    if found["r2"] is not None and found["r2"] <= 0:
        return f"is no better than the mean of the numbers (R2 {found['r2']:.3f})"
    return ""


_IMPLAUSIBLE = {"multilabel": _many_labels, "ordinal": _ordered, "regression": _number}


def read_results(folder: Path) -> Results:
    """Reads the files of a run directory.

    Args:
        folder: A complete run directory, or its staging folder.

    Raises:
        RunError: A file is missing or damaged.
    """
    splits = read_evaluation(folder / EVALUATION_NAME)
    metrics = folder / METRICS_NAME
    lines = metrics.read_text("utf-8").splitlines() if metrics.is_file() else []
    optional = {name: folder / name for name in (DATA_NAME, REPEATS_NAME, LABEL_NOISE_NAME, COLLECTED_NAME)}
    found = {name: _object(path) if path.is_file() else None for name, path in optional.items()}
    return Results(
        run=_object(folder / RUN_NAME),
        similarity=splits.pop(_SIMILARITY, None),
        retrieval=splits.pop(_RETRIEVAL, {}),
        splits=splits,
        metrics=[_parse(metrics, line) for line in lines],
        data=found[DATA_NAME],
        repeats=found[REPEATS_NAME],
        label_noise=found[LABEL_NOISE_NAME],
        collected=found[COLLECTED_NAME],
    )


def read_evaluation(path: Path) -> dict[str, dict[str, Any]]:
    """Reads ``evaluation.json``: metrics by split and head name, and optionally ``similarity`` and ``retrieval``.

    Raises:
        RunError: The file is missing or invalid.
    """
    content = _object(path)
    for key, part in content.items():
        objects = [part] if key == _SIMILARITY else list(part.values()) if isinstance(part, dict) else [None]
        for found in objects:
            required = _REQUIRED.get(key) or _required_keys(found)
            if not isinstance(found, dict) or not required <= found.keys():
                raise RunError(
                    path, f"is not a valid evaluation: {key!r} lacks one of {', '.join(sorted(required))}; train again"
                )
    return content


def _required_keys(found: object) -> set[str]:
    """Returns the keys without which a head's part of ``evaluation.json`` cannot be shown."""
    return {"rows", "intervals", *measures_of(found if isinstance(found, dict) else {}).required}


def _object(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
    except OSError:
        raise RunError(path, "is missing; train again") from None
    return _parse(path, text)


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise RunError(path, f"is not valid JSON: {error}; train again") from None
    if not isinstance(content, dict):
        raise RunError(path, "is not a JSON object; train again")
    return content
