"""``polyhead-train``: the training room from the command line."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import click

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Stop:
    """From the first time it is asked, notes the first signal that wants the end; the second ends the process."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._listening = False

    def __call__(self) -> bool:
        if not self._listening:
            self._listening = True
            for number in _SIGNALS:
                signal.signal(number, self._note)
        return self.signal is not None

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        for other in _SIGNALS:
            signal.signal(other, signal.SIG_DFL)
        _say(f"{signal.Signals(number).name}: saving after this step; once more ends at once")


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("config_path", metavar="CONFIG.toml", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--output-dir", type=click.Path(path_type=Path), help="Run directory to write.  [default: runs/<name>]")
@click.option("--dry-run", is_flag=True, help="Validate the configuration and the data, and train nothing.")
@click.option(
    "--resume/--restart",
    default=None,
    help="Go on with an unfinished run, or discard it; a run that is not there starts from the beginning either way.",
)
@click.option("--max-steps", type=click.IntRange(min=1), help="End training after this many steps; for a quick try.")
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Override a field of the configuration.")
def main(  # noqa: PLR0917 - click passes them by name
    config_path: Path,
    output_dir: Path | None,
    dry_run: bool,
    resume: bool | None,
    max_steps: int | None,
    overrides: tuple[str, ...],
) -> None:
    """Train a model from labelled texts, as a TOML file says, and write a run directory with report.html.

    The directory's path is printed to stdout; what happens meanwhile goes to stderr. A run that stands in the output
    directory already is replaced, once the new one is complete. Export it with polyhead-export.

    Until then everything is in <output directory>.unfinished. SIGINT and SIGTERM save a checkpoint there and print the
    command that goes on from it; after a crash the same command goes on from the last checkpoint.

    \b
    The smallest configuration; each label of a row may be absent or null:
      name = "tickets"
      [data]
      train = "tickets.jsonl"      # {"text": "...", "label": "billing", "sentiment": 1}

    \b
    Examples:
      polyhead-train tickets.toml --dry-run
      polyhead-train tickets.toml
      polyhead-train tickets.toml --output-dir runs/try --max-steps 20
      polyhead-train tickets.toml --set training.batch_size=16 --set training.seed=1
      torchrun --nproc-per-node 2 -m polyhead_training tickets.toml

    \b
    Exit codes:
      0    done
      1    training failed
      2    the command line, the configuration or the data is at fault
      130  stopped by SIGINT, 143 by SIGTERM; everything up to there is saved
    """  # noqa: D301 (click reads the \b)
    # Threads that spin while they wait make training several times slower where the cores are shared. OpenMP reads
    # this once, when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    stop = _Stop()
    # Half of what training needs takes seconds to import; --help needs none of it.
    from safetensors import SafetensorError

    from polyhead_training.runs.in_progress import Unfinished

    from .config_file import read_config
    from .errors import DivergenceError, HubError, StoppedError, StorageError, TrainingError
    from .train import check, train

    _silence_transformers()
    began = time.monotonic()
    try:
        config = read_config(config_path, overrides)
        if dry_run:
            check(config, _say)
            return
        destination = output_dir or Path("runs") / config.name
        policy: Unfinished = "refuse" if resume is None else "resume" if resume else "restart"
        train(config, destination, max_steps=max_steps, policy=policy, stop=stop, say=_say)
    except StoppedError as error:
        _say(f"polyhead-train: {error}; go on with\n  {_resume_command()}")
        sys.exit(128 + (stop.signal or signal.SIGTERM))
    except TrainingError as error:
        _say_error(error)
        sys.exit(1 if isinstance(error, DivergenceError | HubError | StorageError) else 2)
    except (OSError, SafetensorError) as error:
        _say_error(error)
        sys.exit(1)
    _say(f"done in {time.monotonic() - began:.0f} s")
    if _is_main_process():
        click.echo(destination)


def _resume_command() -> str:
    given = [argument for argument in sys.argv[1:] if argument not in ("--resume", "--restart")]
    program = [sys.argv[0]]
    if Path(sys.argv[0]).name == "__main__.py":
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        launcher = ["torchrun", "--nproc-per-node", str(processes)] if processes > 1 else ["python"]
        program = [*launcher, "-m", "polyhead_training"]
    return shlex.join([*program, *given, "--resume"])


def _is_main_process() -> bool:
    # Launchers of several processes number them so.
    return os.environ.get("RANK", "0") == "0"


def _say(line: str) -> None:
    """What all processes would say alike is said once."""
    if _is_main_process():
        click.echo(line, err=True)


def _say_error(error: Exception) -> None:
    """In every process: it may be the only one that met it."""
    process = "" if _is_main_process() else f" (process {os.environ['RANK']})"
    click.echo(f"polyhead-train{process}: {error}", err=True)


def _silence_transformers() -> None:
    """Its progress bars and load reports are about single weights; what matters is checked and said by us."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
