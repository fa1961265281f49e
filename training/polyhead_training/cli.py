"""Command line of polyhead-train."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .command_line import StopSignal, exit_codes, is_main_process, report, silence_transformers
from .sweep.command import sweep

if TYPE_CHECKING:
    from polyhead_training.runs.in_progress import ResumePolicy


class _CommandWithSubcommands(click.Group):
    """A command of its own, unless its first argument is the name of another command."""

    allow_extra_args = False
    allow_interspersed_args = True

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] in self.commands:
            ctx.args = args
            return []
        return click.Command.parse_args(self, ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        if not ctx.args:
            return click.Command.invoke(self, ctx)
        name, *arguments = ctx.args
        with self.commands[name].make_context(name, arguments, parent=ctx) as context:
            return context.command.invoke(context)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        # click asks on behalf of another command for the words before its name, which are no arguments here.
        return [one for one in super().get_params(ctx) if ctx.command is self or not isinstance(one, click.Argument)]


@click.group(
    cls=_CommandWithSubcommands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    invoke_without_command=True,
    subcommand_metavar="| sweep ...",
)
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
    "--seeds",
    metavar="N",
    type=click.IntRange(min=2),
    help="Train N runs, with the seeds from training.seed on, and keep the best on validation. The report has the mean "
    "and the spread of every metric.",
)
@click.option(
    "--folds",
    metavar="N",
    type=click.IntRange(min=2),
    help="Cross-validate on the training rows with N folds, then train on all of them. The run also has the prediction "
    "for each row by a model trained without it, and the rows whose label is likely a mistake.",
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
    seeds: int | None,
    folds: int | None,
    overrides: tuple[str, ...],
) -> None:
    """Train a text classifier and a sentence embedding from labelled texts and text pairs.

    CONFIG.toml names the data, the heads and the training stages. The result is a run directory with the model, its
    evaluation, a model card and report.html. polyhead-export converts it into a bundle that polyhead-serve serves.

    stdout receives the path of the run directory, stderr all messages and progress.

    A run in progress is stored in DIR.in_progress, those of --seeds and --folds in DIR.repeats. SIGINT (Ctrl-C) and
    SIGTERM save a checkpoint there and print the command that resumes it. After a crash, the same command resumes from
    the last periodic checkpoint.

    polyhead-train sweep CONFIG.toml searches for better values of chosen fields; see polyhead-train sweep --help. Write
    ./sweep for a configuration file of that name.

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
      # 8 to 64 rows per label; measure by cross-validation, and list likely mistakes in the labels
      polyhead-train tickets.toml --set training.recipe=few-shot --folds 5
      # Mean and spread over five seeds
      polyhead-train tickets.toml --seeds 5
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
    _require_possible(seeds, folds)
    stop = StopSignal()
    start = time.monotonic()
    with exit_codes(stop):
        # Imported here for the sake of --help.
        from polyhead_training.data.dataset import read_data

        from .config_file import read_config

        config = read_config(config_path, overrides)
        data = read_data(config)
        # Imports torch, which takes seconds: mistakes in the configuration or the rows are reported before.
        from . import train
        from .repeats import Repeats

        silence_transformers()
        destination = output_dir or Path("runs") / config.name
        policy: ResumePolicy = "refuse" if resume is None else "resume" if resume else "restart"
        runs = Repeats(config, destination, data, max_steps, policy, stop, report)
        if dry_run:
            train.dry_run(config, data, report)
            runs.check(folds)
            return
        runs.train(seeds, folds)
    from .units import format_duration

    report(f"completed in {format_duration(time.monotonic() - start)}")
    if is_main_process():
        click.echo(destination)


def _require_possible(seeds: int | None, folds: int | None) -> None:
    if seeds and folds:
        raise click.UsageError("--seeds and --folds: choose one of them")
    if (seeds or folds) and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise click.UsageError("--seeds and --folds run in one process: start polyhead-train without a launcher")


main.add_command(sweep)
