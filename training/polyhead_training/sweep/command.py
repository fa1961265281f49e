"""The command ``polyhead-train sweep``."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from polyhead_training.command_line import StopSignal, exit_codes, report, silence_transformers

from .space import Parameter, parse_choice, parse_range

if TYPE_CHECKING:
    from polyhead_training.runs.in_progress import ResumePolicy


def _parsed(parse: Callable[[str], Parameter]) -> Callable[..., list[Parameter]]:
    """Returns a callback that parses the values of an option."""

    def callback(ctx: click.Context, option: click.Parameter, values: tuple[str, ...]) -> list[Parameter]:
        try:
            return [parse(value) for value in values]
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, option) from None

    return callback


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("config_path", metavar="CONFIG.toml", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--range",
    "ranges",
    metavar="KEY=LOW..HIGH[:log]",
    multiple=True,
    callback=_parsed(parse_range),
    help="Field to vary and its range: whole numbers if both limits are, on a logarithmic scale with :log. Repeatable.",
)
@click.option(
    "--choice",
    "choices",
    metavar="KEY=A,B,...",
    multiple=True,
    callback=_parsed(parse_choice),
    help="Field to vary and its values. Repeatable.",
)
@click.option(
    "--trials",
    metavar="N",
    type=click.IntRange(min=2),
    default=12,
    show_default=True,
    help="Combinations of values to try, including the configuration unchanged.",
)
@click.option(
    "--rungs",
    metavar="N",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Rungs of successive halving; 1 trains every trial on all rows.",
)
@click.option(
    "--reduction",
    metavar="N",
    type=click.IntRange(min=2),
    default=3,
    show_default=True,
    help="Each rung keeps the best of N trials and trains them on N times as many rows.",
)
@click.option(
    "--seed",
    metavar="N",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of the tried values and of the rows of each rung.",
)
@click.option(
    "--output-dir",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder of the sweep.  [default: runs/<name>-sweep]",
)
@click.option(
    "--resume/--restart",
    default=None,
    help="Continue the sweep in the folder, or discard it. Without one, both start a new sweep.  "
    "[default: exit with an error if there is one]",
)
@click.option(
    "--set",
    "settings",
    metavar="KEY=VALUE",
    multiple=True,
    help="Override a field of the configuration in every trial: a dotted key and a TOML value. Repeatable.",
)
def sweep(  # noqa: PLR0917 - click passes them by name
    config_path: Path,
    ranges: list[Parameter],
    choices: list[Parameter],
    trials: int,
    rungs: int,
    reduction: int,
    seed: int,
    output_dir: Path | None,
    resume: bool | None,
    settings: tuple[str, ...],
) -> None:
    """Search for better values of fields of CONFIG.toml by successive halving.

    Each trial is a complete training run with other values of the fields in --range and --choice. The first rung trains
    all trials on a small share of the training rows, each next one only the best of them on more, and the last one a
    few on all rows. The score of a trial is the one that selects the best epoch: a mean over the heads on validation.

    By default, 12 trials train on 1/9 of the rows, the best 4 on 1/3 and the best 2 on all, in the time of about five
    runs. Trial 0 is the configuration unchanged. A score on few validation rows is uncertain: check the best
    configuration on rows that the sweep has not seen.

    The sweep writes CONFIG.best.toml beside CONFIG.toml, and the best trial's run directory DIR/best. stdout receives
    the path of the configuration, stderr the results. A sweep that was killed continues with --resume within the run
    that it was training. DIR/study.log is the journal of an Optuna study with all trials.

    A sweep requires pip install 'polyhead[sweep]'.

    \b
    Examples:
      # The learning rate of the second stage, between 1e-5 and 1e-3
      polyhead-train sweep tickets.toml --range training.stages.1.learning_rate=1e-5..1e-3:log
      # Whole numbers and choices; more trials, fewer rungs
      polyhead-train sweep tickets.toml --range training.stages.1.epochs=1..4 \\
        --choice training.average=none,ema --trials 18 --rungs 2
      # Continue the first one after an interruption, then train its result again with another seed
      polyhead-train sweep tickets.toml --range training.stages.1.learning_rate=1e-5..1e-3:log --resume
      polyhead-train tickets.best.toml --set training.seed=1

    \b
    Exit codes:
      0    success
      1    training failed: storage full, hub unreachable
      2    invalid command line, range, configuration, data or backbone, or every trial diverged
      130  stopped by SIGINT; progress is saved
      143  stopped by SIGTERM; progress is saved
    """  # noqa: D301 (click reads the \b)
    parameters = [*ranges, *choices]
    keys = [parameter.key for parameter in parameters]
    if not keys:
        raise click.UsageError("name at least one field to vary with --range or --choice")
    if repeated := sorted({key for key in keys if keys.count(key) > 1}):
        raise click.UsageError(f"{repeated[0]} has several ranges or choices: give it one")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise click.UsageError("a sweep trains in one process: start it without torchrun")
    stop = StopSignal()
    with exit_codes(stop):
        from .halving import Plan
        from .search import Search

        silence_transformers()
        search = Search(
            config_path, settings, parameters, Plan(trials, rungs, reduction), seed, stop=stop, report=report
        )
        policy: ResumePolicy = "refuse" if resume is None else "resume" if resume else "restart"
        run = search.run(output_dir or Path("runs") / f"{search.name}-sweep", policy)
        report(f"best run: {run}")
        click.echo(search.best_path())
