"""Several training runs in place of one: with several seeds, or as a cross-validation.

::

    seeds: rows --train, each seed--> RUN_DIR.repeats/seed-S --the best on validation, repeats.json--> RUN_DIR
    folds: rows without a fold --train, each fold--> RUN_DIR.repeats/fold-K.npz, out-of-fold logits
           all rows --train--> RUN_DIR.repeats/final --repeats.json, label_noise.json, out_of_fold.jsonl--> RUN_DIR
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from polyhead_bundle.atomic_directory import recover

from polyhead_training.data.collected import is_selected
from polyhead_training.data.dataset import Data, Row
from polyhead_training.data.duplicates import duplicate_sets
from polyhead_training.data.folds import assign_folds, fold_warnings, require_sets
from polyhead_training.evaluation.evaluate import Evaluation, Split
from polyhead_training.evaluation.label_noise import label_noise
from polyhead_training.evaluation.out_of_fold import fold_scores, has_fold, prediction_lines, read_folds, write_fold
from polyhead_training.evaluation.scoring import selection_score
from polyhead_training.evaluation.spread import spread
from polyhead_training.reporting.model_card import write_card
from polyhead_training.reporting.report import write_report
from polyhead_training.runs.in_progress import IDENTITY_NAME, Identity, ResumePolicy, read_json, require_same
from polyhead_training.runs.run_directory import (
    EVALUATION_NAME,
    LABEL_NOISE_NAME,
    OUT_OF_FOLD_NAME,
    REPEATS_NAME,
    require_replaceable,
    staged_run,
    write_json,
)

from . import train
from .config import Config
from .errors import ConfigError, ResumeError, StorageError
from .features import SharedVectors
from .measures import measures_of, show_spread
from .model_config import HeadConfig
from .terminal import Report, format_table


@dataclass(frozen=True)
class Repeats:
    """One run or several that end in one run directory.

    Attributes:
        config: The configuration.
        destination: The run directory; an existing run there is replaced.
        data: The rows. All runs of several seeds share the validation rows.
        max_steps: Steps of each run after which it ends early; None for no limit.
        policy: Action for runs in progress.
        stop: Returns whether to stop; called once per step.
        report: Receives messages for the terminal.
    """

    config: Config
    destination: Path
    data: Data
    max_steps: int | None = None
    policy: ResumePolicy = "refuse"
    stop: Callable[[], bool] = lambda: False
    report: Report = print

    def train(self, seeds: int | None = None, folds: int | None = None) -> None:
        """Trains one run, or several with seeds or folds.

        Raises:
            TrainingError: As for ``train.train``; with ``folds``, there may be fewer different texts.
        """
        if seeds:
            self.train_seeds(seeds)
        elif folds:
            self.train_folds(folds)
        else:
            train.train(
                self.config,
                self.destination,
                data=self.data,
                max_steps=self.max_steps,
                policy=self.policy,
                stop=self.stop,
                report=self.report,
            )

    def train_seeds(self, seeds: int) -> None:
        """Trains with the seeds from ``training.seed`` on and keeps the run with the best mean score on validation.

        Raises:
            TrainingError: As for ``train.train``.
        """
        first = self.config.training.seed
        with self._folder({"seeds": seeds}) as folder:
            if folder is None:
                return
            names = {seed: f"seed-{seed}" for seed in range(first, first + seeds)}
            for index, (seed, name) in enumerate(names.items()):
                self.report(f"seed {seed}, run {index + 1} of {seeds}")
                self._train(_with_training(self.config, seed=seed), folder / name, self.data, describe=index == 0)
            evaluations = {seed: read_json(folder / name / EVALUATION_NAME) for seed, name in names.items()}
            embedding = bool(self.config.data.embedding)
            scores = {
                seed: -math.inf if (score := selection_score(found, teaches_embedding=embedding)) is None else score
                for seed, found in evaluations.items()
            }
            # The first of equally good ones, also where there is no validation row.
            best = max(scores, key=lambda seed: scores[seed])
            content: dict[str, Any] = {"seeds": list(names), "kept": best, "spread": spread(list(evaluations.values()))}
            self.report(f"{table(content['spread'], self.data.heads)}\nkept: seed {best}{_reason(scores[best])}")
            self._publish(folder / names[best], content)

    def train_folds(self, folds: int) -> None:
        """Trains a model per fold on the other folds, then the final model on all rows.

        Raises:
            ConfigError: There are no heads, or fewer different texts than folds.
            TrainingError: As for ``train.train``.
        """
        rows, assigned = self._assigned(folds)
        with self._folder({"folds": folds}) as folder:
            if folder is None:
                return
            for fold in range(folds):
                self._train_fold(folder, rows, assigned, fold, folds)
            split = read_folds(folder, rows, assigned, folds)
            # What is fitted on texts that were chosen for their answers would not hold for others.
            numbers = [number for number, row in enumerate(rows) if not is_selected(row)]
            representative = split.select(numbers)
            final = replace(self.data, train=tuple(rows))
            if self._splits:
                # The predictions of the folds take the place of validation.
                empty = tuple(split for split in self.data.empty if split != "validation")
                final = replace(final, validation=(), empty=empty)
            self.report(f"final run on all {len(rows):,} rows")
            config = _with_training(self.config, select="last")
            self._train(config, folder / "final", final, split=representative, describe=True)
            scores = read_json(folder / "final" / EVALUATION_NAME)["validation"]
            # Regression heads have none.
            temperatures = {name: one["temperature"] for name, one in scores.items() if "temperature" in one}
            noise = label_noise(self.data.heads, split, temperatures)
            for name, found in noise.items():
                self.report(f"head {name!r}: {found['found']:,} of {found['rows']:,} labels are likely mistakes")
            evaluations = fold_scores(self.data.heads, representative, [assigned[number] for number in numbers], folds)
            content: dict[str, Any] = {"folds": folds, "spread": spread(evaluations)}
            self.report(table(content["spread"], self.data.heads))
            write_json(folder / "final" / LABEL_NOISE_NAME, noise)
            lines = prediction_lines(self.data.heads, split, assigned, scores)
            (folder / "final" / OUT_OF_FOLD_NAME).write_text("".join(lines), "utf-8")
            self._publish(folder / "final", content)

    def check(self, folds: int | None) -> None:
        """Reports what a cross-validation cannot measure.

        Raises:
            ConfigError: There are no heads, or fewer different texts than folds.
        """
        if folds:
            self._assigned(folds)

    @property
    def _splits(self) -> bool:
        """Whether validation was taken from the training rows, to which it returns."""
        return not self.config.data.validation

    def _assigned(self, folds: int) -> tuple[list[Row], list[int]]:
        if not self.data.heads:
            no_head = "model.heads is empty, so there is no answer to predict; use --seeds"
            raise ConfigError(self.config.source, "--folds", no_head)
        if self._splits and self.config.data.validation_fraction:
            contradiction = "and --folds: every fold is validation once; remove it"
            fraction = self.config.data.validation_fraction
            raise self.config.error("data.validation_fraction", f"{fraction} {contradiction}")
        found = (*self.data.train, *(self.data.validation if self._splits else ()))
        rows = sorted(found, key=lambda row: (row.source, row.line))
        sets = duplicate_sets([row.text for row in rows])
        if reason := require_sets(sets, folds):
            raise ConfigError(self.config.source, "--folds", reason)
        for warning in fold_warnings(sets, rows, self.data.heads, folds):
            self.report(f"warning: {warning}")
        if self.config.training.teacher is not None:
            fix = "train it on other rows, or remove training.teacher"
            self.report(
                f"warning: a teacher that has seen these rows reveals their labels to the models of the folds: {fix}"
            )
        return rows, assign_folds(sets, rows, folds, self.config.training.seed)

    def _train_fold(self, folder: Path, rows: Sequence[Row], assigned: Sequence[int], fold: int, folds: int) -> None:
        """Trains on the other folds, and keeps the logits of this fold."""
        name = f"fold-{fold + 1}"
        if has_fold(folder, fold):
            return
        # A run that was complete before its logits were stored.
        shutil.rmtree(folder / name, ignore_errors=True)
        held = tuple(row for row, one in zip(rows, assigned, strict=True) if one == fold)
        others = tuple(row for row, one in zip(rows, assigned, strict=True) if one != fold)
        self.report(f"fold {fold + 1} of {folds}: {len(others):,} rows train, {len(held):,} are predicted")
        data = replace(
            self.data,
            train=others,
            validation=held,
            test=(),
            similarity=(),
            retrieval=(),
            empty=(),
            collected=None,
        )
        # The best epoch on the held-out rows would flatter the predictions for them.
        evaluation = self._train(_with_training(self.config, select="last"), folder / name, data)
        if evaluation is None or evaluation.validation is None:
            raise ResumeError(folder, "changed while a fold was trained; start again with --restart")
        write_fold(folder, fold, evaluation.validation)
        shutil.rmtree(folder / name)

    def _train(
        self, config: Config, folder: Path, data: Data, *, split: Split | None = None, describe: bool = False
    ) -> Evaluation | None:
        return train.train(
            config,
            folder,
            data=data,
            out_of_fold=split,
            shared=self._shared(folder.parent),
            describe=describe,
            max_steps=self.max_steps,
            policy="resume",
            stop=self.stop,
            report=self.report,
        )

    def _shared(self, folder: Path) -> SharedVectors | None:
        """Opens the backbone's vectors that all runs in a folder share; returns None if a stage trains the backbone."""
        training = self.config.training
        parts = {part for stage in training.stages for part in stage.train}
        is_frozen = all(part == "pooling" or part.startswith("head") for part in parts)
        if not is_frozen or not training.feature_cache_mb:
            return None
        return SharedVectors(folder / "vectors", training.feature_cache_mb)

    @contextmanager
    def _folder(self, kind: dict[str, int]) -> Iterator[Path | None]:
        """Opens the folder of the runs; yields None if a complete run directory has the same inputs already."""
        target = self.destination.resolve()
        require_replaceable(target)
        recover(target)
        identity = {**kind, **_identity(self.config, self.data, self.max_steps)}
        folder = target.with_name(target.name + ".repeats")
        if not folder.exists() and self.policy == "resume" and _completed(target) == identity:
            self.report(f"{self.destination} is complete; nothing to resume")
            yield None
            return
        try:
            _prepare(folder, identity, self.policy)
            yield folder
            shutil.rmtree(folder)
        except OSError as error:
            raise StorageError(Path(error.filename or folder), error) from error

    def _publish(self, run: Path, content: dict[str, Any]) -> None:
        """Makes a complete run, with what the other runs add to it, the run directory."""
        with staged_run(self.destination) as staging:
            shutil.copytree(run, staging, dirs_exist_ok=True)
            write_json(staging / REPEATS_NAME, {**content, "identity": read_json(run.parent / IDENTITY_NAME)})
            write_report(staging)
            write_card(staging)


def table(found: Mapping[str, Any], heads: Sequence[HeadConfig]) -> str:
    """Formats the mean and the spread of the most important metrics for a terminal, one table for each set of metrics.

    Args:
        found: The result of ``spread``.
        heads: The heads.
    """
    tables: dict[tuple[str, ...], list[list[str]]] = {}
    for split in ("validation", "test"):
        for head in heads:
            if metrics := found.get(split, {}).get(head.name):
                keys = measures_of({"kind": head.kind}).keys
                values = [show_spread(metrics.get(key)) for key in keys.values()]
                tables.setdefault(tuple(keys), []).append([split, head.name, *values])
    return "\n".join(
        format_table(["split", "head", *(f"{title}, mean ± sd" for title in titles)], rows)
        for titles, rows in tables.items()
    )


def _with_training(config: Config, **changes: Any) -> Config:
    return config.model_copy(update={"training": config.training.model_copy(update=changes)})


def _reason(score: float) -> str:
    if math.isfinite(score):
        return f", mean score {score:.4f} on validation"
    return ", the first, as validation has no labelled rows to choose by"


def _identity(config: Config, data: Data, max_steps: int | None) -> Identity:
    return {"config": config.model_dump(mode="json"), "max_steps": max_steps, "rows_sha256": data.rows_sha256()}


def _completed(target: Path) -> Identity | None:
    path = target / REPEATS_NAME
    found = read_json(path).get("identity") if path.is_file() else None
    return dict(found) if found else None


def _prepare(folder: Path, identity: Identity, policy: ResumePolicy) -> None:
    """Creates the folder of the runs, or continues with an existing one."""
    path = folder / IDENTITY_NAME
    if folder.exists() and not path.is_file() and any(folder.iterdir()):
        raise ResumeError(folder, "exists and was not written by polyhead-train; choose another --output-dir")
    if path.exists() and policy == "refuse":
        reason = "contains runs in progress: continue them with --resume, or discard them with --restart"
        raise ResumeError(folder, reason)
    if path.exists() and policy == "resume":
        require_same(folder, read_json(path), identity)
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_json(path, identity)
