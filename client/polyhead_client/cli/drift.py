"""``polyhead drift``: compares recent texts with the validation texts of a model."""

from __future__ import annotations

import contextlib
import importlib
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import click
from polyhead.commands import DRIFT_OF_FILES, missing_package

from .admin import get_drift, target_option
from .drift_page import as_html
from .drift_report import DriftReport, as_json, as_text, from_message
from .failure import CommandError, discard_stdout
from .options import FiniteRange, api_key_option, model_option

_EXIT_DRIFT, _EXIT_USAGE, _EXIT_TOO_FEW, _EXIT_INTERRUPTED = 1, 2, 3, 130
_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("output", required=False, type=_PATH)
@click.option("--bundle", metavar="DIR", type=_PATH, help="Bundle that answered the texts of OUTPUT.")
@target_option(required=False)
@api_key_option
@model_option("Model, if the server has several.  [default: the server's first]")
@click.option(
    "--min-distance",
    metavar="D",
    type=FiniteRange(min=0),
    default=0.1,
    show_default=True,
    help="Smallest distance that counts as drift, for OUTPUT; a server has its own, --drift-min-distance.",
)
@click.option("--html", metavar="FILE", type=_PATH, help="Also draw the comparison as one HTML page.")
@click.option("--json", "as_json_object", is_flag=True, help="Print one JSON object instead of a table.")
@click.pass_context
def drift(  # noqa: PLR0917
    context: click.Context,
    output: Path | None,
    bundle: Path | None,
    target: str | None,
    api_key: str | None,
    model: str | None,
    min_distance: float,
    html: Path | None,
    as_json_object: bool,
) -> None:
    """Compare recent texts with the validation texts of the model.

    Without OUTPUT, the recent texts are those of a running server, which --target names by its admin service. OUTPUT is
    a folder that "polyhead bulk" has written, and --bundle the model that it was written with; this requires
    polyhead[bulk].

    Compares the predicted labels and the confidence of each head, lengths, truncation, unknown tokens, novelty, and the
    mean of the embeddings, as far as they are known. Shows counts and shares, never a text.

    \b
    Examples:
      polyhead drift --target unix:/run/polyhead-admin.sock
      polyhead drift answers --bundle bundles/tickets --html drift.html

    \b
    Exit codes:
      0    no drift
      1    drift
      2    nothing was compared: wrong command line, no such server or files, no reference, or a failure
      3    not enough texts yet: fewer than two blocks of time, or of rows, have any
      130  interrupted
    """  # noqa: D301  \b tells click to keep the line breaks
    if output is not None and context.get_parameter_source("target") is click.core.ParameterSource.ENVIRONMENT:
        target = None
    if (output is None) == (target is None):
        raise click.UsageError("give either OUTPUT and --bundle, or --target")
    if (output is None) != (bundle is None):
        raise click.UsageError("OUTPUT and --bundle belong together; give both")
    with _failures_are_no_drift():
        if target is None:
            report = _of_files(output, bundle, min_distance)
        else:
            report = from_message(get_drift(target, api_key, model))
        if html:
            html.write_text(as_html(report), encoding="utf-8")
        _print(as_json(report).encode() if as_json_object else as_text(report))  # JSON is UTF-8 everywhere
    if report.drifted:
        sys.exit(_EXIT_DRIFT)
    if not report.is_tested:
        sys.exit(_EXIT_TOO_FEW)


def _print(text: str | bytes) -> None:
    try:
        click.echo(text)
    except BrokenPipeError:
        # A reader that stops early still gets the exit code.
        discard_stdout()


@contextlib.contextmanager
def _failures_are_no_drift() -> Iterator[None]:
    """Ends a failure of any kind with another exit code than 1, with which Python and click would end it."""
    try:
        yield
    except CommandError as error:
        raise CommandError(_EXIT_USAGE, error.message) from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise CommandError(_EXIT_USAGE, f"{where}{error.strerror or error}") from error
    except KeyboardInterrupt:
        sys.exit(_EXIT_INTERRUPTED)
    except Exception:  # noqa: BLE001 - a defect
        traceback.print_exc()
        sys.exit(_EXIT_USAGE)


def _of_files(output: Path | None, bundle: Path | None, min_distance: float) -> DriftReport:
    try:
        files = importlib.import_module(DRIFT_OF_FILES)
    except ModuleNotFoundError as error:
        raise CommandError(_EXIT_USAGE, f"drift: {missing_package(error, 'bulk')}") from error
    report: DriftReport = files.compare_output(output, bundle, min_distance)
    return report
