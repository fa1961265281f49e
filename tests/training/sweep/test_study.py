from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import TrialState
from polyhead_training.errors import ResumeError
from polyhead_training.sweep.space import parse_choice, parse_range
from polyhead_training.sweep.study import draw, open_sweep

IDENTITY = {"seed": 0}
DRAWN = draw([parse_range("rate=1e-5..1e-1:log"), parse_choice("average=none,ema")], 4, seed=0)


def opened(path: Path, policy: str = "refuse", identity: dict[str, int] = IDENTITY) -> Any:
    return open_sweep(path, identity, policy, DRAWN)  # type: ignore[arg-type]


def states(path: Path) -> list[TrialState]:
    storage = JournalStorage(JournalFileBackend(str(path / "study.log")))
    return [one.state for one in optuna.load_study(study_name="sweep", storage=storage).trials]


def test_trials_start_unchanged_cover_the_range_and_grow_with_their_number() -> None:
    parameters = [parse_range("rate=1e-5..1e-1:log"), parse_choice("average=none,ema"), parse_range("n=1..4")]
    trials = [one.params for one in draw(parameters, 17, seed=3)]
    assert trials[0] == {}
    assert [one.params for one in draw(parameters, 5, seed=3)] == trials[:5]
    assert [one.params for one in draw(parameters, 5, seed=4)] != trials[:5]
    decades = [math.floor(math.log10(trial["rate"])) for trial in trials[1:]]
    assert {decade: decades.count(decade) for decade in sorted(decades)} == {-5: 4, -4: 4, -3: 4, -2: 4}
    assert sum(trial["average"] == '"ema"' for trial in trials[1:]) in (7, 8, 9)
    assert {trial["n"] for trial in trials[1:]} == {1, 2, 3, 4}


def test_drawn_values_have_few_digits_and_stay_inside_the_range() -> None:
    values = [one.params["a"] for one in draw([parse_range("a=0.12345..0.12355")], 20, seed=0)[1:]]
    assert all(0.12345 <= value <= 0.12355 for value in values)
    assert all(len(f"{one.params['b']}") <= 5 for one in draw([parse_range("b=0.1..0.9")], 20, seed=0)[1:])


def test_best_trials_are_promoted_and_the_earlier_one_of_equal_ones(tmp_path: Path) -> None:
    path = tmp_path / "sweep"
    with opened(path) as sweep:
        for trial, score in enumerate([0.5, None, 0.9, 0.5]):
            sweep.record(trial, 0, score, keep_run=False)
        assert sweep.end_rung(0, 2) == [2, 0]
        assert states(path) == [TrialState.RUNNING, TrialState.FAIL, TrialState.RUNNING, TrialState.PRUNED]
        sweep.record(0, 1, 0.7, keep_run=True)
        sweep.record(2, 1, 0.6, keep_run=True)
        for _ in range(2):  # a killed sweep ends its last rung again
            assert sweep.end_rung(0, 2) == [2, 0]
            assert sweep.end_rung(1, None) == [0, 2]
        assert sweep.scores == [[0.5, 0.7], [None], [0.9, 0.6], [0.5]]
    assert states(path) == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE, TrialState.PRUNED]


def test_results_survive_and_their_runs_do_not(tmp_path: Path) -> None:
    with opened(tmp_path / "sweep") as sweep:
        sweep.run_path(3, 0).mkdir(parents=True)
        sweep.record(3, 0, 0.5, keep_run=False)
        sweep.run_path(3, 1).mkdir(parents=True)
        sweep.record(3, 1, None, keep_run=True)
        assert not sweep.run_path(3, 0).exists()
        assert sweep.run_path(3, 1).exists()
    with opened(tmp_path / "sweep", "resume") as again:
        assert again.scores == [[], [], [], [0.5, None]]
        assert again.has_result(3, 1)
        assert not again.has_result(2, 0)


def test_half_of_a_line_and_the_lock_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    with opened(tmp_path / "sweep") as sweep:
        sweep.record(0, 0, 0.5, keep_run=False)
    journal = tmp_path / "sweep/study.log"
    with journal.open("a") as stream:
        stream.write(json.dumps({"op_code": 7})[:-4])
    (tmp_path / "sweep/study.log.lock").touch()
    for trial in range(1, 3):
        with opened(tmp_path / "sweep", "resume") as sweep:
            sweep.record(trial, 0, 0.25, keep_run=False)
    assert sweep.scores == [[0.5], [0.25], [0.25], []]


def test_finished_sweep_keeps_the_best_run_alone_and_finishes_again(tmp_path: Path) -> None:
    with opened(tmp_path / "sweep") as sweep:
        for trial in range(2):
            sweep.run_path(trial, 2).mkdir(parents=True)
            (sweep.run_path(trial, 2) / "run.json").write_text(str(trial))
        for _ in range(2):
            best = sweep.keep_best(1, 2)
            assert (best / "run.json").read_text() == "1"
            assert sorted(path.name for path in sweep.path.iterdir()) == ["best", "study.log"]


@pytest.mark.parametrize(
    ("policy", "identity", "message"),
    [
        ("refuse", IDENTITY, "contains a sweep: continue it with --resume"),
        ("resume", {"seed": 1}, "was started with seed = 0, this start has 1"),
    ],
)
def test_existing_sweep_is_not_mixed_with_another(
    tmp_path: Path, policy: str, identity: dict[str, int], message: str
) -> None:
    with opened(tmp_path / "sweep") as sweep:
        sweep.run_path(0, 0).mkdir(parents=True)
    with pytest.raises(ResumeError, match=message), opened(tmp_path / "sweep", policy, identity):
        pass


def test_sweep_is_not_run_twice_at_once(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(ResumeError, match="another process"), opened(tmp_path, "restart"):
        pass


@pytest.mark.parametrize("lines", [0, 1, 3, 6])
def test_sweep_that_was_killed_while_its_trials_were_written_is_replaced(tmp_path: Path, lines: int) -> None:
    with opened(tmp_path):
        pass
    journal = tmp_path / "study.log"
    written = journal.read_text().splitlines(keepends=True)
    assert len(written) == 6  # the study, four trials, its identity
    journal.write_text("".join(written[:lines]))
    with opened(tmp_path, identity={"seed": 1}) as sweep:
        assert sweep.scores == [[]] * 4
        sweep.record(0, 0, 0.5, keep_run=False)
    with opened(tmp_path, "resume", {"seed": 1}) as sweep:
        assert sweep.scores == [[0.5], [], [], []]


def test_restart_discards_the_results(tmp_path: Path) -> None:
    with opened(tmp_path / "sweep") as sweep:
        sweep.record(3, 0, 0.5, keep_run=False)
    with opened(tmp_path / "sweep", "restart", {"seed": 1}) as sweep:
        assert sweep.scores == [[]] * 4
    with opened(tmp_path / "sweep", "resume", {"seed": 1}) as sweep:
        assert sweep.scores == [[]] * 4


def test_other_folder_and_damaged_state_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ResumeError, match="is not a sweep; it was left untouched"), opened(tmp_path, "restart"):
        pass
    for content in ("[]\n", "{}\n", "none\n", '{"op_code": 0\n{}\n'):
        (tmp_path / "study.log").write_text(content)
        with pytest.raises(ResumeError, match=r"cannot be read .*--restart"), opened(tmp_path, "resume"):
            pass
    assert (tmp_path / "notes.txt").read_text() == "mine"
