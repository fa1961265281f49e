"""Results of a run, read from its files for the training report and the model card."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyhead_training.errors import RunError
from polyhead_training.runs.run_directory import DATA_NAME, EVALUATION_NAME, METRICS_NAME

_RUN_NAME = "run.json"
_SIMILARITY = "similarity"
# With fewer rows, a label that is never predicted may be chance.
_MIN_ROWS = 20


@dataclass(frozen=True)
class Results:
    """Content of a run's files.

    Attributes:
        run: Content of ``run.json``.
        splits: Evaluations of ``evaluation.json`` by split and head name.
        similarity: Evaluation of the sentence embedding; None without similarity pairs.
        metrics: Lines of ``metrics.jsonl``; empty without the file.
        data: Content of ``data.json``; None without the file.
    """

    run: dict[str, Any]
    splits: dict[str, dict[str, Any]]
    similarity: dict[str, Any] | None
    metrics: list[dict[str, Any]]
    data: dict[str, Any] | None

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
            # With a single label among few rows, nothing can be judged.
            if found["rows"] < _MIN_ROWS or found["majority_baseline"] in (None, 1):
                continue
            answered = [label for label, one in found.get("labels", {}).items() if one["answered"]]
            if len(answered) == 1:
                yield f"{split}: head {name!r} predicts {answered[0]!r} for each of the {found['rows']:,} rows"
            elif found["accuracy"] <= found["majority_baseline"]:
                figures = f"accuracy {found['accuracy']:.1%}, baseline {found['majority_baseline']:.1%}"
                yield f"{split}: head {name!r} is no better than its most frequent label ({figures})"


def read_results(folder: Path) -> Results:
    """Reads the files of a run directory.

    Args:
        folder: A complete run directory, or its staging folder.

    Raises:
        RunError: A file is missing or damaged.
    """
    splits = read_evaluation(folder / EVALUATION_NAME)
    metrics, data = folder / METRICS_NAME, folder / DATA_NAME
    lines = metrics.read_text("utf-8").splitlines() if metrics.is_file() else []
    return Results(
        run=_object(folder / _RUN_NAME),
        similarity=splits.pop(_SIMILARITY, None),
        splits=splits,
        metrics=[_parse(metrics, line) for line in lines],
        data=_object(data) if data.is_file() else None,
    )


def read_evaluation(path: Path) -> dict[str, dict[str, Any]]:
    """Reads ``evaluation.json``: metrics by split and head name, and optionally ``similarity``.

    Raises:
        RunError: The file is missing or invalid.
    """
    content = _object(path)
    for key, part in content.items():
        objects = [part] if key == _SIMILARITY else list(part.values()) if isinstance(part, dict) else [None]
        required = {"pairs"} if key == _SIMILARITY else {"rows", "accuracy", "majority_baseline", "intervals"}
        if not all(isinstance(found, dict) and required <= found.keys() for found in objects):
            raise RunError(
                path, f"is not a valid evaluation: {key!r} lacks one of {', '.join(sorted(required))}; train again"
            )
    return content


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
