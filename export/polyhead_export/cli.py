"""``polyhead-export``: the export room from the command line."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import click

_VERIFY = "verify"


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    options_metavar="",
)
@click.argument("source", metavar="RUN_DIR|verify")
@click.argument("target", metavar="OUTPUT_DIR|BUNDLE", type=click.Path(path_type=Path))
def main(source: str, target: Path) -> None:
    """Turn a trained model into a verified bundle, or check a bundle again.

    \b
      polyhead-export RUN_DIR OUTPUT_DIR    export what polyhead-train wrote
      polyhead-export verify BUNDLE         check a bundle: hashes, graph, golden answers, gate

    Exporting writes one ONNX graph with the embedding and every head, holds its answers against the trained model's,
    and writes the bundle only when every check passed: whole or not at all. A bundle that stands in OUTPUT_DIR is
    replaced; anything else there is left alone. A run directory that is called "verify" is written ./verify.

    The bundle's path is printed to stdout; progress and the table of checks go to stderr.

    \b
    Examples:
      polyhead-export runs/tickets bundles/tickets
      polyhead-export verify bundles/tickets
      polyhead-serve "$(polyhead-export runs/tickets bundles/tickets)"

    Exit codes: 0 done, 1 the model did not pass, 2 the command line, the run directory or the bundle is at fault.
    """  # noqa: D301 (click reads the \b)
    # Without this a SIGTERM ends the process at once and leaves the half-written bundle behind.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    # PyTorch takes seconds to import; --help needs none of it.
    from polyhead_training.errors import TrainingError

    from .bundle import BundleError
    from .errors import ContentError, ExportError

    began = time.monotonic()
    try:
        path = _verify(target) if source == _VERIFY else _export(Path(source), target)
    except (BundleError, ContentError, TrainingError) as error:
        _fail(error, 2)
    except (ExportError, OSError) as error:
        _fail(error, 1)
    _say(f"done in {time.monotonic() - began:.0f} s")
    click.echo(path)


def _export(run_dir: Path, output_dir: Path) -> Path:
    from .export import export

    _silence_transformers()
    return export(run_dir, output_dir, say=_say).path


def _verify(path: Path) -> Path:
    from .verify import verify

    _silence_transformers()
    return verify(path, say=_say).path


def _say(line: str) -> None:
    click.echo(line, err=True)


def _fail(error: Exception, code: int) -> None:
    _say(f"polyhead-export: {' '.join(str(error).split())}")
    sys.exit(code)


def _silence_transformers() -> None:
    """Its progress bars and load reports are about single weights; what matters is checked and said by us."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
