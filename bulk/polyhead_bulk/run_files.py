"""Files in the output folder by which the process that runs a job and its workers see each other."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from .files import locked, remove_abandoned, temporary_path
from .parts import RECORDS
from .plan import Unit


class RunFiles:
    """The files of one run, which the next run deletes if this one is killed.

    One proves to a worker that its node has the same output folder, one asks the workers to stop, and one for each unit
    in progress counts the workers that have begun it.
    """

    def __init__(self, output: Path, token: str) -> None:
        """Args: the output folder, and a name for the run."""
        self.token = token
        self._folder = output / RECORDS
        self._run, self._stop = self._path("run"), self._path("stop")
        self._held = ExitStack()

    def __enter__(self) -> None:
        """Begins the run; the lock tells the next one that this process lives."""
        self._held.enter_context(locked(self._run))

    def __exit__(self, *_: object) -> None:
        """Ends the run."""
        self._held.close()
        self._run.unlink(missing_ok=True)
        self._stop.unlink(missing_ok=True)
        remove_abandoned(self._folder)

    def stop(self) -> None:
        """Asks the workers to stop after the parts that they are writing."""
        if self._run.exists():
            self._stop.touch()

    def is_here(self) -> bool:
        """Returns whether this node has the folder of the process that runs the job."""
        return self._run.exists()

    def is_stopping(self) -> bool:
        """Returns whether the workers shall stop."""
        return self._stop.exists()

    def count_attempt(self, unit: Unit) -> int:
        """Returns how many workers have begun a unit, this one included."""
        with self._attempts(unit).open("ab") as file:
            file.write(b".")
            return file.tell()

    def forget(self, unit: Unit) -> None:
        """Forgets the attempts of a unit that is done."""
        self._attempts(unit).unlink(missing_ok=True)

    def _attempts(self, unit: Unit) -> Path:
        return self._path(f"attempts-{unit.source}-{unit.first}")

    def _path(self, name: str) -> Path:
        return temporary_path(self._folder / name, self.token)
