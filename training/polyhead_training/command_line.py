"""What the commands of polyhead-train share: stop signals, messages and exit codes."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from .errors import DivergenceError, HubError, StoppedError, StorageError, TrainingError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """Handles SIGINT and SIGTERM from the first call on: the first signal requests a stop, the second kills."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._installed = False

    def __call__(self) -> bool:
        """Returns whether a signal requested a stop."""
        if not self._installed:
            self._installed = True
            for number in _SIGNALS:
                signal.signal(number, self._handle)
        return self.signal is not None

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        for other in _SIGNALS:
            signal.signal(other, signal.SIG_DFL)
        report(f"{signal.Signals(number).name}: saving a checkpoint after this step; repeat to end immediately")


@contextmanager
def exit_codes(stop: StopSignal) -> Iterator[None]:
    """Ends the process with a message and an exit code if the block raises an error that users can correct.

    Args:
        stop: The signal that stopped the run, if one did.
    """
    from safetensors import SafetensorError

    # Spinning OpenMP threads slow training several times on shared cores. OpenMP reads this when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        yield
    except StoppedError as error:
        report(f"polyhead-train: {error}; resume with\n  {_resume_command()}")
        sys.exit(128 + (stop.signal or signal.SIGTERM))
    except TrainingError as error:
        _report_error(error)
        sys.exit(1 if isinstance(error, DivergenceError | HubError | StorageError) else 2)
    except (OSError, SafetensorError) as error:
        _report_error(error)
        sys.exit(1)


def is_main_process() -> bool:
    """Returns whether this is the process that reports and writes; launchers of several processes set RANK."""
    return os.environ.get("RANK", "0") == "0"


def report(message: str) -> None:
    """Prints a message to stderr, in the main process only."""
    if is_main_process():
        click.echo(message, err=True)


def silence_transformers() -> None:
    """Disables transformers' own warnings and progress bars; training and export report what matters themselves."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _resume_command() -> str:
    arguments = [argument for argument in sys.argv[1:] if argument not in ("--resume", "--restart")]
    program = [sys.argv[0]]
    if Path(sys.argv[0]).name == "__main__.py":
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        launcher = ["torchrun", "--nproc-per-node", str(processes)] if processes > 1 else ["python"]
        program = [*launcher, "-m", "polyhead_training"]
    return shlex.join([*program, *arguments, "--resume"])


def _report_error(error: Exception) -> None:
    """Prints an error to stderr, in every process: it may have occurred in one of them only."""
    process = "" if is_main_process() else f" (process {os.environ['RANK']})"
    click.echo(f"polyhead-train{process}: {error}", err=True)
