"""What a finished run says about itself, read back from its files for the report and the model card."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyhead_training.errors import RunError
from polyhead_training.runs.run_directory import DATA_NAME, EVALUATION_NAME, METRICS_NAME

_RUN_NAME = "run.json"
_SIMILARITY = "similarity"


@dataclass(frozen=True)
class Results:
    """The content of a run's files.

    Attributes:
        run: ``run.json``.
        splits: ``evaluation.json`` by split and head.
        similarity: Its figures about the sentence embedding; None without pairs of texts.
        metrics: The lines of ``metrics.jsonl``; none without the file.
        data: ``data.json``; None without the file.
    """

    run: dict[str, Any]
    splits: dict[str, dict[str, Any]]
    similarity: dict[str, Any] | None
    metrics: list[dict[str, Any]]
    data: dict[str, Any] | None

    @property
    def heads(self) -> list[dict[str, Any]]:
        """The heads, in order, as ``run.json`` has them."""
        return list(self.run["heads"])

    def best_split(self, head: str) -> str | None:
        """The split that says most about a head: test, or validation where test has no label for it."""
        found = [split for split in ("test", "validation") if self.splits.get(split, {}).get(head, {}).get("rows")]
        return found[0] if found else None


def read_results(folder: Path) -> Results:
    """Reads the files of a run directory.

    Args:
        folder: What ``polyhead-train`` wrote, or is about to.

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
    """Reads ``evaluation.json``: figures by split and head, and perhaps ``similarity``.

    Raises:
        RunError: It is missing, or not what ``polyhead-train`` writes.
    """
    content = _object(path)
    for key, part in content.items():
        found = [part] if key == _SIMILARITY else list(part.values()) if isinstance(part, dict) else [None]
        needed = {"pairs"} if key == _SIMILARITY else {"rows", "accuracy", "majority_baseline", "intervals"}
        if not all(isinstance(figures, dict) and needed <= figures.keys() for figures in found):
            raise RunError(
                path, f"is not what polyhead-train writes: {key!r} has no {', '.join(sorted(needed))}; train again"
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
        raise RunError(path, f"is not what polyhead-train writes: {error}; train again") from None
    if not isinstance(content, dict):
        raise RunError(path, "is not what polyhead-train writes: no JSON object; train again")
    return content
