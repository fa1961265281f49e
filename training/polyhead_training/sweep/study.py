"""The trials of a sweep, in an Optuna study whose journal lies in the folder of the sweep.

::

    SWEEP_DIR/study.log            journal of the study: values, scores and states of the trials
              trials/TRIAL-RUNG    run directories; deleted after their scores are written, but for the last rung
              best                 run directory of the best trial

All trials are asked for at the start. The intermediate value of a trial at step R is its score in rung R, counted from
0. A trial is RUNNING until it diverges (FAIL), a rung ends without promoting it (PRUNED) or the last rung ends
(COMPLETE).
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from polyhead_training.errors import ResumeError
from polyhead_training.runs.in_progress import Identity, ResumePolicy, lock, require_same

from .space import Parameter

JOURNAL_NAME = "study.log"
BEST_NAME = "best"
_TRIALS_NAME = "trials"
_STUDY_NAME = "sweep"
# Attribute of the study.
_IDENTITY = "identity"
# Digits of a drawn number: finer steps do not change a result, and shorter numbers are easier to read.
_DIGITS = 3


class _HaltonSampler(optuna.samplers.QMCSampler):
    """Optuna's sampler by a Halton sequence, for the first trial too, which Optuna's draws independently; rounds."""

    def __init__(self, space: dict[str, BaseDistribution], seed: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            super().__init__(qmc_type="halton", scramble=True, seed=seed)
        self._space = space

    def infer_relative_search_space(
        self,
        study: Study,  # noqa: ARG002
        trial: FrozenTrial,  # noqa: ARG002
    ) -> dict[str, BaseDistribution]:
        return self._space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        values = super().sample_relative(study, trial, search_space)
        for key, one in search_space.items():
            if isinstance(one, FloatDistribution):
                values[key] = min(max(float(f"{values[key]:.{_DIGITS}g}"), one.low), one.high)
        return values


def draw(parameters: Sequence[Parameter], trials: int, seed: int) -> list[FrozenTrial]:
    """Draws the trials of a sweep. The first has no values: it is the configuration unchanged.

    The others are points of a scrambled Halton sequence, which covers the ranges more evenly than independent random
    points. The trials of a smaller sweep with the same seed are the first ones of a larger sweep.

    Args:
        parameters: The fields to vary.
        trials: Number of trials.
        seed: Seed of the sequence.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = {parameter.key: parameter.distribution() for parameter in parameters}
    study = optuna.create_study(sampler=_HaltonSampler(space, seed))
    study.add_trial(create_trial(state=TrialState.RUNNING))
    for _ in range(trials - 1):
        study.ask(space)
    return study.trials


class Sweep:
    """The folder of a sweep and its study.

    Args:
        path: The folder.
        study: The study, with all trials.
    """

    def __init__(self, path: Path, study: Study) -> None:
        self.path = path
        self._study = study

    def run_path(self, trial: int, rung: int) -> Path:
        """Returns the run directory of a trial in a rung."""
        return self.path / _TRIALS_NAME / f"{trial}-{rung}"

    def has_result(self, trial: int, rung: int) -> bool:
        """Returns whether a trial has a score in a rung, or has diverged."""
        found = self._study.trials[trial]
        return rung in found.intermediate_values or found.state == TrialState.FAIL

    def record(self, trial: int, rung: int, score: float | None, *, keep_run: bool) -> None:
        """Writes the score of a trial, None if it diverged; without ``keep_run``, deletes its run directory."""
        if score is None:
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            # The journal holds one study, so that a trial's id in it is its number.
            Trial(self._study, trial).report(score, rung)
        if not keep_run:
            shutil.rmtree(self.run_path(trial, rung), ignore_errors=True)

    def end_rung(self, rung: int, promoted: int | None) -> list[int]:
        """Prunes the trials of a rung but for the best, which it returns, or completes those of the last rung.

        Of trials with equal scores, the earlier one is better. Trials that diverged are left out.

        Args:
            rung: The rung, whose trials all have results.
            promoted: Trials of the next rung; None if it is the last one.
        """
        found = [one for one in self._study.trials if rung in one.intermediate_values]
        ranked = sorted(found, key=lambda one: (-one.intermediate_values[rung], one.number))
        for one in ranked if promoted is None else ranked[promoted:]:
            score = one.intermediate_values[rung] if promoted is None else None
            state = TrialState.COMPLETE if promoted is None else TrialState.PRUNED
            self._study.tell(one.number, score, state, skip_if_finished=True)
        return [one.number for one in ranked[:promoted]]

    def keep_best(self, trial: int, rung: int) -> Path:
        """Keeps the run of the best trial, deletes all others, and returns its directory."""
        target = self.path / BEST_NAME
        if not target.exists():
            self.run_path(trial, rung).rename(target)
        shutil.rmtree(self.path / _TRIALS_NAME, ignore_errors=True)
        return target

    @property
    def scores(self) -> list[list[float | None]]:
        """Scores of each trial, a list of those of its rungs; the last one is None if it diverged."""
        return [
            [*one.intermediate_values.values(), *([None] if one.state == TrialState.FAIL else [])]
            for one in self._study.trials
        ]


@contextmanager
def open_sweep(path: Path, identity: Identity, policy: ResumePolicy, drawn: Sequence[FrozenTrial]) -> Iterator[Sweep]:
    """Opens the folder of a sweep, which no other process may use during the block.

    Args:
        path: The folder.
        identity: Every input that affects the results.
        policy: Action for an existing sweep: continue it, discard it, or raise an error.
        drawn: The trials of a new sweep.

    Raises:
        ResumeError: There is a sweep and the policy is ``refuse``; or its identity differs; or the folder contains
            something else; or another process uses it.
    """
    journal = path / JOURNAL_NAME
    if not journal.exists() and path.exists() and any(path.iterdir()):
        raise ResumeError(path, "exists and is not a sweep; it was left untouched. Choose another --output-dir")
    path.mkdir(parents=True, exist_ok=True)
    with journal.open("ab+") as stream:
        lock(stream, path)
        # A process that was killed within an operation of the journal left Optuna's lock, or half of a line.
        journal.with_name(f"{JOURNAL_NAME}.lock").unlink(missing_ok=True)
        stream.seek(0)
        stream.truncate(stream.read().rfind(b"\n") + 1)
        study = None if policy == "restart" else _started(path, identity, policy)
        yield Sweep(path, study or _new(path, stream, identity, drawn))


def _started(path: Path, identity: Identity, policy: ResumePolicy) -> Study | None:
    """Returns the study of a sweep that has begun to train, None if there is none."""
    if not (path / JOURNAL_NAME).stat().st_size:
        return None
    try:
        study = optuna.load_study(study_name=_STUDY_NAME, storage=_storage(path))
    except (KeyError, TypeError, ValueError) as error:
        raise ResumeError(path / JOURNAL_NAME, f"cannot be read ({error}); start again with --restart") from None
    has_results = any(one.intermediate_values or one.state.is_finished() for one in study.trials)
    if not has_results and not any((path / _TRIALS_NAME).glob("*")):
        return None  # it was killed before it had all of its trials, or failed before its first step
    if policy == "refuse":
        raise ResumeError(path, "contains a sweep: continue it with --resume, or discard it with --restart")
    require_same(path, study.user_attrs.get(_IDENTITY, {}), identity)
    return study


def _new(path: Path, stream: IO[bytes], identity: Identity, drawn: Sequence[FrozenTrial]) -> Study:
    stream.truncate(0)
    for name in (_TRIALS_NAME, BEST_NAME):
        shutil.rmtree(path / name, ignore_errors=True)
    study = optuna.create_study(study_name=_STUDY_NAME, storage=_storage(path), direction="maximize")
    study.add_trials(drawn)
    study.set_user_attr(_IDENTITY, identity)
    return study


def _storage(path: Path) -> JournalStorage:
    journal = str(path / JOURNAL_NAME)
    return JournalStorage(JournalFileBackend(journal, JournalFileOpenLock(journal)))
