"""Data sets with one head each: their files, the configuration that trains on them, and the scores of any system.

::

    NAME_train, NAME_dev --open_task--> Task: Config, Data, Prepared (train, validation and test rows as token ids)
    a system's logits of validation and test --scores--> metrics of the head's kind

The test rows are the published dev set. The validation rows are a tenth of the training rows, drawn with the seed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from polyhead_training.config import Config
from polyhead_training.config_file import read_config
from polyhead_training.data.dataset import Data, read_data
from polyhead_training.data.preparation import Prepared, prepare
from polyhead_training.evaluation.calibration import best_thresholds
from polyhead_training.evaluation.scoring import score
from polyhead_training.model_types import HeadKind
from polyhead_training.sweep.toml_text import toml_text

from bench.harness import texts as files

Logits = NDArray[Any]
HEAD = "target"
# Metrics of each kind of head.
METRICS: Mapping[str, tuple[str, ...]] = {
    "softmax": ("accuracy", "macro_f1"),
    "sigmoid": ("accuracy", "macro_f1"),
    "multilabel": ("micro_f1", "macro_f1", "mean_average_precision"),
    "ordinal": ("mae", "qwk", "spearman"),
    "regression": ("mae", "spearman", "r2"),
}


class HeadSet(NamedTuple):
    """A data set, and the settings that its size and its texts call for.

    Attributes:
        kind: Kind of the head.
        field: Data field of its answers.
        max_tokens: Maximum tokens per text.
        epochs: Epochs of fine-tuning.
        source: Name of the files, if not that of the set.
        labels_beside: Name of the files that hold the answers on equal lines, if not the same.
    """

    kind: HeadKind
    field: str
    max_tokens: int
    epochs: int
    source: str | None = None
    labels_beside: str | None = None


@dataclass(frozen=True)
class Task:
    """A data set with a configuration for it.

    Attributes:
        kind: Kind of the head.
        config: The configuration.
        data: Its rows.
    """

    kind: HeadKind
    config: Config
    data: Data

    @cached_property
    def prepared(self) -> Prepared:
        """The rows as token ids, and the backbone."""
        return prepare(self.config, self.data)

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels in the order of the logits."""
        return self.data.heads[0].labels or ()

    def targets(self, split: str) -> NDArray[Any]:
        """Returns the true answers of a split, as ``Targets.arrays`` does."""
        return self.prepared.splits[split].labels.arrays()[0]

    def scores(self, logits: Mapping[str, Logits]) -> dict[str, float | None]:
        """Returns the metrics of the test rows; for a multilabel head also those at the thresholds of validation.

        Args:
            logits: (N, outputs) of ``validation`` and ``test``.
        """
        found = self._metrics(logits["test"], 0.5)
        if self.kind == "multilabel":
            tuned = self._metrics(logits["test"], best_thresholds(logits["validation"], self.targets("validation")))
            found |= {f"tuned_{name}": tuned[name] for name in ("micro_f1", "macro_f1")}
        return found

    def _metrics(self, logits: Logits, threshold: float | Sequence[float]) -> dict[str, float | None]:
        labels, targets = list(self.labels), self.targets("test")
        found: Any = score(self.kind, labels, logits, targets, threshold=threshold, intervals=False)
        return {name: getattr(found, name) for name in METRICS[self.kind]}


def open_task(
    folder: Path,
    name: str,
    task: HeadSet,
    work_dir: Path,
    *,
    rows: int | None = None,
    overrides: Sequence[str] = (),
) -> Task:
    """Writes the rows and the configuration of a data set, and reads them.

    Args:
        folder: Folder with the data sets.
        name: Name of the set.
        task: The set.
        work_dir: Folder to write.
        rows: Maximum number of training rows, at random.
        overrides: Overrides of the configuration.
    """
    train, test = (list(_rows(folder, f"{task.source or name}_{part}", task)) for part in ("train", "dev"))
    if rows is not None and rows < len(train):
        train = random.Random(0).sample(train, rows)
    if task.kind != "regression":
        known = {label for row in train for label in _labels(row[HEAD])}
        test = [row for row in (_known(row, known) for row in test) if row is not None]
    for split, found in (("train", train), ("test", test)):
        lines = [json.dumps(row) + "\n" for row in found]
        (work_dir / f"{name}-{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    (work_dir / f"{name}.toml").write_text(toml_text(_configuration(name, task)), encoding="utf-8")
    config = read_config(work_dir / f"{name}.toml", overrides)
    return Task(task.kind, config, read_data(config))


def _configuration(name: str, task: HeadSet) -> dict[str, Any]:
    stage = {
        "name": "all",
        "train": ["all"],
        "epochs": task.epochs,
        "learning_rate": 1e-4,
        "learning_rates": {"heads": 5e-4, "pooling": 5e-4},
    }
    head: dict[str, Any] = {"name": HEAD, "kind": task.kind}
    if task.kind == "multilabel":
        head["threshold"] = "best"
    if task.kind == "sigmoid":
        head["labels"] = ["negative", "positive"]
    return {
        "name": name.replace(" ", "-"),
        "model": {"max_tokens": task.max_tokens, "heads": [head]},
        "data": {"train": f"{name}-train.jsonl", "test": f"{name}-test.jsonl"},
        "training": {"batch_size": 32, "distillation": 0, "stages": [stage]},
    }


def _rows(folder: Path, source: str, task: HeadSet) -> Iterator[dict[str, Any]]:
    rows = files.read(folder / f"{source}.jsonl.gz")
    beside = rows
    if task.labels_beside:
        beside = files.read(folder / f"{task.labels_beside}_{source.rpartition('_')[2]}.jsonl.gz")
    for row, answers in zip(rows, beside, strict=True):
        if answers[task.field] is not None:
            yield {"text": row["text"], HEAD: answers[task.field]}


def _labels(target: object) -> list[object]:
    return target if isinstance(target, list) else [target]


def _known(row: dict[str, Any], known: set[object]) -> dict[str, Any] | None:
    """Returns a test row without the labels that no training row has; None for one that has only such a label."""
    target = row[HEAD]
    if isinstance(target, list):
        return {**row, HEAD: [label for label in target if label in known]}
    return row if target in known else None


def as_ordinal_logits(probabilities: NDArray[Any]) -> Logits:
    """Returns the logits of an ordinal head, (N, labels - 1), from (N, labels) probabilities of a classifier."""
    above = 1.0 - np.cumsum(probabilities, axis=1)[:, :-1]  # P(answer is above label j)
    clipped = np.clip(above, 1e-9, 1 - 1e-9)
    return np.asarray(np.log(clipped) - np.log1p(-clipped))


def number_as_ordinal_logits(values: NDArray[Any], labels: Sequence[str]) -> Logits:
    """Returns the logits of an ordinal head, (N, labels - 1), that predict the label nearest to each of (N,) values."""
    numbers = np.array([float(label) for label in labels])
    return np.asarray(10.0 * (values[:, None] - (numbers[:-1] + numbers[1:]) / 2))
