"""A sweep from the configuration to the best run and the best configuration.

::

    Config, parameters --draw--> trials --train, rung by rung--> scores --promote--> best run, CONFIG.best.toml
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from polyhead_training.config_file import read_config, read_values
from polyhead_training.data.dataset import read_data
from polyhead_training.errors import ConfigError, DivergenceError, StorageError
from polyhead_training.evaluation.scoring import selection_score
from polyhead_training.runs.in_progress import ResumePolicy
from polyhead_training.runs.run_directory import EVALUATION_NAME
from polyhead_training.terminal import Report, discard, format_table
from polyhead_training.train import train
from polyhead_training.units import format_duration

from .halving import Plan, subset
from .space import Parameter, overrides
from .study import Sweep, draw, open_sweep
from .toml_text import toml_text


class Search:
    """Trains the trials of a sweep and finds the best.

    Args:
        config_path: The configuration.
        settings: Overrides for every trial.
        parameters: The fields to vary.
        plan: Sizes of the rungs.
        seed: Seed of the trials' values and of the rows of a rung.
        stop: Returns whether to stop; called once per training step.
        report: Receives messages for the terminal.

    Raises:
        ConfigError: The configuration is invalid with the values of a trial.
    """

    def __init__(
        self,
        config_path: Path,
        settings: Sequence[str],
        parameters: Sequence[Parameter],
        plan: Plan,
        seed: int,
        *,
        stop: Callable[[], bool],
        report: Report,
    ) -> None:
        self.config_path = config_path
        self.plan = plan
        self.seed = seed
        self.stop = stop
        self.report = report
        self.keys = [parameter.key for parameter in parameters]
        self.trials = draw(parameters, plan.trials, seed)
        self.settings = [[*settings, *overrides(trial.params)] for trial in self.trials]
        # All of them now: a mistake must not end a sweep after hours.
        self.configs = [read_config(config_path, one) for one in self.settings]

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.configs[0].name

    def run(self, destination: Path, policy: ResumePolicy) -> Path:
        """Trains every rung; returns the best trial's run directory.

        Args:
            destination: Folder of the sweep.
            policy: Action for an existing sweep.

        Raises:
            TrainingError: The data or the backbone cannot be used, training was stopped, or all trials diverged.
        """
        plan = self.plan
        with open_sweep(destination, self._identity(), policy, self.trials) as sweep:
            trials = list(range(plan.trials))
            for rung in range(plan.rungs):
                share = f"{plan.share(rung):.1%} of the training rows"
                self.report(f"rung {rung + 1} of {plan.rungs}: {len(trials)} trials, {share}")
                for trial in trials:
                    if not sweep.has_result(trial, rung):
                        self._run_trial(sweep, trial, rung)
                trials = sweep.end_rung(rung, plan.count(rung + 1) if rung + 1 < plan.rungs else None)
                if not trials:
                    reason = "every trial diverged: lower the ranges of the learning rates"
                    raise ConfigError(self.config_path, "", reason)
            self.report(self._table(sweep.scores))
            self._write_best(trials[0], sweep.scores[trials[0]][-1])
            return sweep.keep_best(trials[0], plan.rungs - 1)

    def _identity(self) -> dict[str, Any]:
        configs = {str(trial): config.model_dump(mode="json") for trial, config in enumerate(self.configs)}
        # A continued sweep must not compare scores on other rows.
        rows = read_data(self.configs[0]).rows_sha256()
        return {**asdict(self.plan), "seed": self.seed, "trial": configs, "rows_sha256": rows}

    def _run_trial(self, sweep: Sweep, trial: int, rung: int) -> None:
        config, run, start = self.configs[trial], sweep.run_path(trial, rung), time.monotonic()
        data = read_data(config)
        if not any(answer is not None for row in data.validation for answer in row.labels) and not (
            config.data.embedding and data.similarity
        ):
            raise self._not_comparable()
        data = replace(data, train=subset(data.train, self.plan.share(rung), self.seed))
        run.parent.mkdir(exist_ok=True)
        try:
            train(config, run, data=data, policy="resume", stop=self.stop, report=discard)
        except DivergenceError as error:
            self.report(f"  trial {trial} diverged in stage {error.stage!r}, step {error.step}")
            score = None
        else:
            score = self._score(run)
        sweep.record(trial, rung, score, keep_run=rung + 1 == self.plan.rungs)
        values = ", ".join(f"{key} = {value}" for key, value in self.trials[trial].params.items()) or "unchanged"
        duration = format_duration(time.monotonic() - start)
        self.report(f"  trial {trial} ({values}): score {_shown(score)}, {duration}")

    def _score(self, run: Path) -> float:
        evaluation = json.loads((run / EVALUATION_NAME).read_text(encoding="utf-8"))
        found = selection_score(evaluation, teaches_embedding=bool(self.configs[0].data.embedding))
        if found is None:
            raise self._not_comparable()
        return found

    def _not_comparable(self) -> ConfigError:
        reason = "has no labelled rows, so that trials cannot be compared: name files with labelled rows"
        return self.configs[0].error("data.validation", reason)

    def _table(self, scores: Sequence[Sequence[float | None]]) -> str:
        """Returns a table of the trials, those that came furthest with the best scores first."""
        order = sorted(range(len(scores)), key=lambda trial: (-len(scores[trial]), -(scores[trial][-1] or 0.0), trial))
        rungs = [f"score at {self.plan.share(rung):.1%}" for rung in range(self.plan.rungs)]
        rows = []
        for trial in order:
            values = [str(self.trials[trial].params.get(key, "unchanged")) for key in self.keys]
            found = [_shown(score) for score in scores[trial]]
            rows.append([str(trial), *values, *found, *[""] * (self.plan.rungs - len(found))])
        return format_table(["trial", *self.keys, *rungs], rows, numeric=["trial", *rungs])

    def best_path(self) -> Path:
        """Returns the path of the best configuration, beside the configuration, so that relative paths stay valid."""
        return self.config_path.with_suffix(".best.toml")

    def _write_best(self, trial: int, score: float | None) -> None:
        values: Mapping[str, Any] = read_values(self.config_path, self.settings[trial])
        header = (
            f"# The best of {self.plan.trials} trials of polyhead-train sweep {self.config_path.name}: "
            f"score {_shown(score)} on validation.\n\n"
        )
        try:
            self.best_path().write_text(header + toml_text(values), encoding="utf-8")
        except OSError as error:
            raise StorageError(self.best_path(), error) from error


def _shown(score: float | None) -> str:
    return "diverged" if score is None else f"{score:.4f}"
