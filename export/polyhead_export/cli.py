"""``polyhead-export``: the export room from the command line."""

from __future__ import annotations

import errno
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from .settings import Settings

# settings.VARIANTS, spelt out here because importing it takes seconds.
_VARIANTS = ("fp32", "int8", "int8-dynamic", "fp16")
_EXPORT = "export"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MAKE_ROOM = "what was there before is untouched: make room there, and run the same command again"
_PATH = click.Path(path_type=Path)


class _Commands(click.Group):
    """``export`` is what is meant when no command is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, *ctx.help_option_names}:
            args.insert(0, _EXPORT)
        return super().parse_args(ctx, args)


_CONFIG = click.option("--config", type=_PATH, help="TOML file with variants, labelled and [limits.VARIANT].")


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    options_metavar="",
    subcommand_metavar="RUN_DIR OUTPUT_DIR | COMMAND ...",
)
def main() -> None:
    """Turn a trained model into a verified bundle, or check, sign and import.

    \b
      polyhead-export RUN_DIR OUTPUT_DIR         export what polyhead-train wrote
      polyhead-export verify BUNDLE              check a bundle: hashes, graphs, golden answers, gate
      polyhead-export sign BUNDLE PRIVATE_KEY    sign a bundle
      polyhead-export import CHECKPOINT RUN_DIR  make a run of a sentence-transformers or classifier checkpoint

    Exporting writes one ONNX graph with the embedding and every head, holds its answers against the trained model's,
    and writes the bundle only when every check passed: whole or not at all. A bundle that stands in OUTPUT_DIR is
    replaced; anything else there is left alone. A directory that is called like a command is written ./verify.

    What was written is printed to stdout; progress and the tables of checks go to stderr.

    \b
    Examples:
      polyhead-export runs/tickets bundles/tickets
      polyhead-export runs/tickets bundles/tickets --variant int8 --variant fp16 --eval-data data/test.jsonl
      polyhead-export verify bundles/tickets
      polyhead-serve "$(polyhead-export runs/tickets bundles/tickets)"

    Exit codes: 0 done, 1 the model did not pass or something could not be written or uploaded, 2 the command line, the
    run directory, a file that was read or the bundle is at fault, 3 the bundle was written without a variant that was
    asked for.
    """  # noqa: D301 (click reads the \b)
    # Without this a SIGTERM ends the process at once and leaves the half-written bundle behind.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


@main.command(_EXPORT)
@click.argument("run_dir", type=_PATH)
@click.argument("output_dir", type=_PATH)
@click.option(
    "--variant",
    "variants",
    multiple=True,
    type=click.Choice(_VARIANTS),
    help="Make this one besides fp32; may be repeated. The configuration's without it.  [default: int8]",
)
@click.option(
    "--eval-data", "labelled", multiple=True, type=_PATH, help="Held-out labelled file for the gate; may be repeated."
)
@_CONFIG
@click.option(
    "--format",
    "also",
    type=click.Choice(["sentence-transformers"]),
    help="Write OUTPUT_DIR-sentence-transformers, too, which other programs can read.",
)
@click.option("--push-to-hub", metavar="OWNER/NAME", help="Upload the bundle to this private hub repository.")
def export_command(  # noqa: PLR0917
    run_dir: Path,
    output_dir: Path,
    variants: tuple[str, ...],
    config: Path | None,
    labelled: tuple[Path, ...],
    also: str | None,
    push_to_hub: str | None,
) -> None:
    """Export a run directory into a bundle.

    \b
    Variants:
      fp32          the plain graph; every bundle has it
      int8          8-bit integers; the same answer alone and in any batch; what the server takes on a CPU
      int8-dynamic  8-bit integers with scales of the whole batch: an answer depends on its company
      fp16          half precision, for GPUs

    A variant other than fp32 that does not pass its gate is left out, and the numbers are said.
    """  # noqa: D301 (click reads the \b)
    with _work():
        from .export import export

        settings = _read_settings(config, variants, labelled)
        neighbour = _beside(output_dir, f"-{also}")
        if also:
            from polyhead_training.runs.run_directory import load_run

            from polyhead_export.interop.sentence_transformers import require_writable, write_sentence_transformer

            # Before the minutes of work, not after them.
            require_writable(run := load_run(run_dir), neighbour)
        found = export(run_dir, output_dir, _say, settings)
        click.echo(found.path)
        if also:
            write_sentence_transformer(run, neighbour)
            click.echo(neighbour)
        if push_to_hub:
            from polyhead_export.interop.hub import push_bundle

            _say(push_bundle(found, push_to_hub))
        left_out = set(settings.required) - set(found.manifest.variants)
    if left_out:
        sys.exit(3)


@main.command()
@click.argument("bundle", type=_PATH)
@_CONFIG
@click.option("--signature", type=_PATH, help="File that sign wrote; BUNDLE.sig when absent.")
@click.option("--public-key", type=_PATH, help="Check the signature with this key (PEM) before anything else.")
def verify(bundle: Path, config: Path | None, signature: Path | None, public_key: Path | None) -> None:
    """Check a bundle again: signature, hashes, tokenizer, graphs, golden answers, gate."""
    with _work():
        from .verify import verify

        if signature or public_key:
            _verify_signature(bundle, signature, public_key)
        verify(bundle, _say, _read_settings(config, (), ()))
    click.echo(bundle)


@main.command()
@click.argument("bundle", type=_PATH)
@click.argument("private_key", type=_PATH)
@click.option("--signature", type=_PATH, help="File to write; BUNDLE.sig when absent. It lies beside the bundle.")
def sign(bundle: Path, private_key: Path, signature: Path | None) -> None:
    """Sign a bundle with an elliptic curve key (PEM), in the format of OpenSSF model signing.

    \b
    Make a key with:
      openssl ecparam -name prime256v1 -genkey -noout -out key.pem
      openssl ec -in key.pem -pubout -out key.pub
    """  # noqa: D301 (click reads the \b)
    target = signature or _beside(bundle, ".sig")
    with _work():
        from .signing import sign

        sign(bundle, target, private_key)
    click.echo(target)


@main.command("import")
@click.argument("checkpoint")
@click.argument("run_dir", type=_PATH)
@click.option("--name", help="Name of the model; the checkpoint's own when absent.")
def import_command(checkpoint: str, run_dir: Path, name: str | None) -> None:
    """Make a run directory of a checkpoint, to be exported and served without training.

    CHECKPOINT is a folder or a hub id of a sentence-transformers model (it becomes a model without heads) or of a BERT,
    RoBERTa or DistilBERT classifier. The answers stay the checkpoint's; what cannot be kept is refused.
    """
    with _work():
        from polyhead_export.interop.import_checkpoint import import_checkpoint

        path = import_checkpoint(checkpoint, run_dir, name, _say)
    click.echo(path)


@contextmanager
def _work() -> Iterator[None]:
    """Says what went wrong, in one line, with the exit code; and how long it took when nothing did."""
    # PyTorch takes seconds to import; --help needs none of it.
    from polyhead_bundle import BundleError
    from polyhead_training.errors import TrainingError

    from polyhead_export.interop.import_checkpoint import CheckpointError
    from polyhead_export.interop.sentence_transformers import InterchangeError

    from .errors import ContentError, ExportError, SettingsError
    from .signing import SigningError

    _silence_transformers()
    began = time.monotonic()
    faults: tuple[Any, ...] = (BundleError, CheckpointError, ContentError, InterchangeError, SettingsError)
    try:
        yield
    except (*faults, SigningError, TrainingError) as error:
        _fail(error, 2)
    except ExportError as error:
        _fail(error, 1)
    except OSError as error:
        _fail(OSError(f"{error}; {_MAKE_ROOM}") if error.errno in _FULL else error, 1)
    _say(f"done in {time.monotonic() - began:.0f} s")


def _read_settings(config: Path | None, variants: tuple[str, ...], labelled: tuple[Path, ...]) -> Settings:
    """The configuration with what the command line adds."""
    from .settings import read_settings

    return read_settings(config).extended(variants, labelled)


def _verify_signature(bundle: Path, signature: Path | None, public_key: Path | None) -> None:
    from .signing import verify_signature

    if public_key is None:
        raise click.UsageError("--signature needs --public-key")
    verify_signature(bundle, signature or _beside(bundle, ".sig"), public_key)
    _say(f"signature is that of {public_key}")


def _beside(directory: Path, suffix: str) -> Path:
    """``directory`` with a longer name."""
    # "." and ".." have no name of their own; what they mean has.
    named = directory if directory.name not in {"", ".."} else directory.resolve()
    if not named.name:
        raise click.UsageError(f"{directory} has nothing beside it: name a directory in it")
    return named.with_name(named.name + suffix)


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
