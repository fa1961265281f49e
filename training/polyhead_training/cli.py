"""``polyhead-train``: the training room from the command line."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import click


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("config_path", metavar="CONFIG.toml", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--output-dir", type=click.Path(path_type=Path), help="Run directory to write.  [default: runs/<name>]")
@click.option("--max-steps", type=click.IntRange(min=1), help="End training after this many steps; for a quick try.")
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Override a field of the configuration.")
def main(config_path: Path, output_dir: Path | None, max_steps: int | None, overrides: tuple[str, ...]) -> None:
    r"""Train a model from labelled texts, as a TOML file says, and write a run directory.

    The directory's path is printed to stdout; what happens meanwhile goes to stderr. A run that stands in the output
    directory already is replaced, once the new one is complete. Export it with polyhead-export.

    \b
    The smallest configuration; each label of a row may be absent or null:
      name = "tickets"
      [data]
      train = "tickets.jsonl"      # {"text": "...", "label": "billing", "sentiment": 1}

    \b
    Examples:
      polyhead-train tickets.toml
      polyhead-train tickets.toml --output-dir runs/try --max-steps 20
      polyhead-train tickets.toml --set training.batch_size=16 --set training.stages.1.epochs=3

    Exit codes: 0 done, 1 training failed, 2 the command line, the configuration or the data is at fault.
    """
    # Threads that spin while they wait make training several times slower where the cores are shared. OpenMP reads
    # this once, when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Without this a SIGTERM ends the process at once and leaves the half-written run behind.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    # Half of what training needs takes seconds to import; --help needs none of it.
    from safetensors import SafetensorError

    from .config_file import read_config
    from .errors import DivergenceError, HubError, TrainingError
    from .evaluate import table
    from .train import train

    _silence_transformers()
    began = time.monotonic()
    try:
        config = read_config(config_path, overrides)
        destination = output_dir or Path("runs") / config.name
        scores = train(config, destination, max_steps, say=_say)
    except TrainingError as error:
        _say(f"polyhead-train: {error}")
        sys.exit(1 if isinstance(error, DivergenceError | HubError) else 2)
    # A full disk, which the library that writes the weights reports in its own way.
    except (OSError, SafetensorError) as error:
        _say(f"polyhead-train: {error}")
        sys.exit(1)
    for line in table(scores):
        _say(line)
    _say(f"done in {time.monotonic() - began:.0f} s")
    click.echo(destination)


def _say(line: str) -> None:
    click.echo(line, err=True)


def _silence_transformers() -> None:
    """Its progress bars and load reports are about single weights; what matters is checked and said by us."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
