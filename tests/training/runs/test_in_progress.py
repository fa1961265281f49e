"""Folders of runs in progress are locked, never taken from other files, and deleted after the run is complete."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from polyhead_training.config import Config
from polyhead_training.errors import ResumeError
from polyhead_training.runs.in_progress import IDENTITY_NAME, Identity, difference, in_progress_path, in_progress_run
from polyhead_training.train import train

from tests.support.tiny_training import Killed, ignore


def leave_in_progress(destination: Path, identity: Identity) -> None:
    """Leaves a run in progress with a checkpoint and trackers."""

    def fail(folder: Path) -> None:
        (folder / "last.safetensors").touch()
        (folder / "trackers").mkdir()
        raise Killed

    with pytest.raises(Killed), in_progress_run(destination, identity, "refuse") as folder:
        fail(folder)


def test_two_processes_cannot_train_into_one_directory(tmp_path: Path) -> None:
    with in_progress_run(tmp_path / "run", {}, "refuse"):
        second = in_progress_run(tmp_path / "run", {}, "restart")
        with pytest.raises(ResumeError, match="another process is training in it"):
            second.__enter__()
        assert (tmp_path / "run.in_progress" / IDENTITY_NAME).exists()


def test_folder_of_something_else_is_not_used(tmp_path: Path) -> None:
    folder = in_progress_path(tmp_path / "run")
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(ResumeError, match="is not a run in progress; it was left untouched"):
        in_progress_run(tmp_path / "run", {}, "restart").__enter__()
    assert (folder / "thesis.txt").read_text() == "years of work"


def test_folder_is_kept_after_a_failure_and_deleted_after_success(tmp_path: Path) -> None:
    leave_in_progress(tmp_path / "run", {"seed": 1})
    assert (tmp_path / "run.in_progress" / "last.safetensors").exists()
    with in_progress_run(tmp_path / "run", {"seed": 1}, "resume") as folder:
        assert (folder / "last.safetensors").exists()
    assert not (tmp_path / "run.in_progress").exists()


def test_restart_discards_everything_but_resume_keeps_it(tmp_path: Path) -> None:
    leave_in_progress(tmp_path / "run", {"seed": 1})
    with pytest.raises(ResumeError, match="was started with seed = 1, this start has 2"):
        in_progress_run(tmp_path / "run", {"seed": 2}, "resume").__enter__()
    with in_progress_run(tmp_path / "run", {"seed": 2}, "restart") as folder:
        assert [path.name for path in folder.iterdir()] == [IDENTITY_NAME]


def test_run_killed_during_cleanup_is_complete(
    configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(path: str | Path, **options: Any) -> None:
        if ".in_progress" in str(path):
            raise Killed
        rmtree(path, **options)

    rmtree = shutil.rmtree
    config = configure("training.trackers=['tensorboard']")
    with monkeypatch.context() as patch:
        # Cleanup deletes the checkpoint first, then the trackers' folder.
        patch.setattr(shutil, "rmtree", die)
        with pytest.raises(Killed):
            train(config, tmp_path / "run", max_steps=1, report=ignore)
    assert (tmp_path / "run.in_progress").exists()
    assert not (tmp_path / "run.in_progress" / "last.safetensors").exists()
    assert train(config, tmp_path / "run", max_steps=1, policy="resume", report=ignore) is None
    # The run is replaceable with its trackers' files, and the leftover folder does not block a new run.
    shutil.rmtree(tmp_path / "run")
    assert train(config, tmp_path / "run", max_steps=1, report=ignore)


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 2}}, None),
        ({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}}, "b.c = 2, this start has 3"),
        ({"a": 1}, {"a": 1, "b": 2}, "b = null, this start has 2"),
    ],
)
def test_difference_describes_the_first_field_that_differs(
    before: dict[str, object], now: dict[str, object], expected: str | None
) -> None:
    assert difference(before, now) == expected
