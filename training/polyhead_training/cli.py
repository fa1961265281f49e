"""Command line of polyhead-train."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from polyhead_training.runs.in_progress import ResumePolicy

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _StopSignal:
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
        _report(f"{signal.Signals(number).name}: saving a checkpoint after this step; repeat to end immediately")


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="polyhead", prog_name="polyhead-train", message="%(prog)s %(version)s")
@click.argument("config_path", metavar="CONFIG.toml", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--output-dir",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Run directory to write. A complete run in it is replaced after the new one is complete.  "
    "[default: runs/<name>]",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Validate the configuration, the data and the backbone, print the data quality report, and exit.",
)
@click.option(
    "--resume/--restart",
    default=None,
    help="Continue the run in progress from its last checkpoint, or discard it. Without a run in progress, both start "
    "a new run.  [default: exit with an error if there is one]",
)
@click.option(
    "--max-steps",
    metavar="N",
    type=click.IntRange(min=1),
    help="Stop training after N optimizer steps, then evaluate and write the run as usual.",
)
@click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help="Override a field of the configuration: a dotted key and a TOML value. Repeatable.",
)
def main(  # noqa: PLR0917 - click passes them by name
    config_path: Path,
    output_dir: Path | None,
    dry_run: bool,
    resume: bool | None,
    max_steps: int | None,
    overrides: tuple[str, ...],
) -> None:
    """Train a text classifier with a sentence embedding from labelled texts.

    CONFIG.toml names the data, the heads and the training stages. The result is a run directory with the model, its
    evaluation, a model card and report.html. polyhead-export converts it into a bundle that polyhead-serve serves.

    stdout receives the path of the run directory, stderr all messages and progress.

    A run in progress is stored in DIR.in_progress. SIGINT (Ctrl-C) and SIGTERM save a checkpoint there and print the
    command that resumes it. After a crash, the same command resumes from the last periodic checkpoint.

    \b
    Minimal configuration (a label may be absent or null in any row):
      name = "tickets"
      [data]
      train = "tickets.jsonl"      # {"text": "...", "label": "billing", "sentiment": 1}

    \b
    Examples:
      # Check the data, then train into runs/tickets
      polyhead-train tickets.toml --dry-run
      polyhead-train tickets.toml
      # Try 20 steps elsewhere
      polyhead-train tickets.toml --output-dir runs/try --max-steps 20
      # Change fields without editing the file
      polyhead-train tickets.toml --set training.batch_size=16 --set training.stages.0.epochs=2
      # Continue after an interruption
      polyhead-train tickets.toml --resume
      # Train on two GPUs, or in two processes
      torchrun --nproc-per-node 2 -m polyhead_training tickets.toml

    \b
    Exit codes:
      0    success
      1    training failed: diverged, storage full, hub unreachable
      2    invalid command line, configuration, data or backbone
      130  stopped by SIGINT; progress is saved
      143  stopped by SIGTERM; progress is saved
    """  # noqa: D301 (click reads the \b)
    # Spinning OpenMP threads slow training several times on shared cores. OpenMP reads this when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    stop = _StopSignal()
    # Imported here for the sake of --help.
    from safetensors import SafetensorError

    from polyhead_training.data.dataset import read_data

    from .config_file import read_config
    from .errors import DivergenceError, HubError, StoppedError, StorageError, TrainingError
    from .units import format_duration

    start = time.monotonic()
    try:
        config = read_config(config_path, overrides)
        data = read_data(config)
        # Imports torch, which takes seconds: mistakes in the configuration or the rows are reported before.
        from . import train

        _silence_transformers()
        if dry_run:
            train.dry_run(config, data, _report)
            return
        destination = output_dir or Path("runs") / config.name
        policy: ResumePolicy = "refuse" if resume is None else "resume" if resume else "restart"
        train.train(config, destination, data=data, max_steps=max_steps, policy=policy, stop=stop, report=_report)
    except StoppedError as error:
        _report(f"polyhead-train: {error}; resume with\n  {_resume_command()}")
        sys.exit(128 + (stop.signal or signal.SIGTERM))
    except TrainingError as error:
        _report_error(error)
        sys.exit(1 if isinstance(error, DivergenceError | HubError | StorageError) else 2)
    except (OSError, SafetensorError) as error:
        _report_error(error)
        sys.exit(1)
    _report(f"completed in {format_duration(time.monotonic() - start)}")
    if _is_main_process():
        click.echo(destination)


def _resume_command() -> str:
    arguments = [argument for argument in sys.argv[1:] if argument not in ("--resume", "--restart")]
    program = [sys.argv[0]]
    if Path(sys.argv[0]).name == "__main__.py":
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        launcher = ["torchrun", "--nproc-per-node", str(processes)] if processes > 1 else ["python"]
        program = [*launcher, "-m", "polyhead_training"]
    return shlex.join([*program, *arguments, "--resume"])


def _is_main_process() -> bool:
    # Launchers of several processes set RANK.
    return os.environ.get("RANK", "0") == "0"


def _report(message: str) -> None:
    """Prints a message to stderr, in the main process only."""
    if _is_main_process():
        click.echo(message, err=True)


def _report_error(error: Exception) -> None:
    """Prints an error to stderr, in every process: it may have occurred in one of them only."""
    process = "" if _is_main_process() else f" (process {os.environ['RANK']})"
    click.echo(f"polyhead-train{process}: {error}", err=True)


def _silence_transformers() -> None:
    """Disables transformers' own warnings and progress bars; training checks and reports what matters itself."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
