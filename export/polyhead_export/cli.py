"""The command line of ``polyhead-export``."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from polyhead_training.command_line import silence_transformers

from .command_line import command, report
from .compare.command import compare

if TYPE_CHECKING:
    from .settings import Settings

# Equal to settings.VARIANTS, which takes seconds to import.
VARIANT_NAMES = ("fp32", "int8", "int8-dynamic", "fp16")
_EXPORT = "export"
_INSTALL_EXPORT = "pip install 'polyhead[export]'"
_PATH = click.Path(path_type=Path)


class _DefaultCommandGroup(click.Group):
    """Runs the command ``export`` when no command is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, *ctx.help_option_names, "--version"}:
            args.insert(0, _EXPORT)
        return super().parse_args(ctx, args)


_CONFIG = click.option(
    "--config", metavar="FILE", type=_PATH, help="TOML file with variants, eval_data and [limits.VARIANT] tables."
)


@click.group(
    cls=_DefaultCommandGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    options_metavar="",
    subcommand_metavar="RUN_DIR OUTPUT_DIR | COMMAND ...",
)
@click.version_option(package_name="polyhead", prog_name="polyhead-export", message="%(prog)s %(version)s")
def main() -> None:
    """Export a trained model to a verified bundle; verify, sign and compare bundles; import checkpoints.

    \b
      polyhead-export RUN_DIR OUTPUT_DIR         export a run directory of polyhead-train
      polyhead-export verify BUNDLE              check hashes, graphs, golden outputs and the gate
      polyhead-export sign BUNDLE PRIVATE_KEY    sign a bundle
      polyhead-export compare OLD NEW            count the answers that a new bundle changes
      polyhead-export import CHECKPOINT RUN_DIR  convert a sentence-transformers or classifier checkpoint

    An export writes one ONNX graph with the embedding and all heads, compares its outputs with the trained model's, and
    writes the bundle atomically after every check of the fp32 graph passed. An existing bundle in OUTPUT_DIR is
    replaced; any other existing directory is an error. Write ./verify for a directory that has the name of a command.

    The path of the result is printed to stdout; progress and tables of checks are printed to stderr.

    \b
    Examples:
      polyhead-export runs/tickets bundles/tickets
      polyhead-export runs/tickets bundles/tickets --variant int8 --variant fp16 --eval-data data/test.jsonl
      polyhead-export verify bundles/tickets
      polyhead-serve "$(polyhead-export runs/tickets bundles/tickets)"

    \b
    Exit codes:
      0  success
      1  the model failed its gate, or a file could not be written or uploaded
      2  invalid command line, run directory, input file or bundle
      3  the bundle was written without a requested variant, which failed its gate
    """  # noqa: D301 (click reads the \b)
    # By default SIGTERM ends the process at once, which would leave a partly written bundle behind.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


@main.command(_EXPORT)
@click.argument("run_dir", type=_PATH)
@click.argument("output_dir", type=_PATH)
@click.option(
    "--variant",
    "variants",
    multiple=True,
    type=click.Choice(VARIANT_NAMES),
    help="Variant to make in addition to fp32; repeatable. Overrides the configuration file.  [default: int8]",
)
@click.option(
    "--eval-data",
    metavar="FILE",
    multiple=True,
    type=_PATH,
    help="Held-out labelled rows for the gate, in a format that polyhead-train reads; repeatable.",
)
@_CONFIG
@click.option(
    "--format",
    "extra_format",
    type=click.Choice(["sentence-transformers"]),
    help="Also write the embedding in this format, to OUTPUT_DIR-sentence-transformers.",
)
@click.option("--push-to-hub", metavar="OWNER/NAME", help="Upload the bundle to this private Hugging Face repository.")
def export_command(  # noqa: PLR0917
    run_dir: Path,
    output_dir: Path,
    variants: tuple[str, ...],
    config: Path | None,
    eval_data: tuple[Path, ...],
    extra_format: str | None,
    push_to_hub: str | None,
) -> None:
    """Export a run directory to a bundle.

    \b
    Variants:
      fp32          plain graph; included in every bundle
      int8          8-bit integers, batch-invariant; the server's default on a CPU
      int8-dynamic  8-bit integers with scales per batch; results depend on the other texts in the batch
      fp16          half precision, for GPUs

    A variant other than fp32 that fails its gate is left out of the bundle; the failed checks are printed.

    \b
    Examples:
      polyhead-export runs/tickets bundles/tickets
      polyhead-export runs/tickets bundles/tickets --variant fp16 --eval-data data/test.jsonl
    """  # noqa: D301 (click reads the \b)
    with command():
        silence_transformers()
        from .export import export

        settings = _read_settings(config, variants, eval_data)
        extra_dir = _sibling(output_dir, f"-{extra_format}")
        if extra_format:
            from polyhead_training.runs.run_directory import load_run

            from polyhead_export.interop.export_sentence_transformers import (
                require_writable,
                write_sentence_transformer,
            )

            # Checked first, so that a bad destination fails at once and not after minutes of work.
            require_writable(run := load_run(run_dir), extra_dir)
        bundle = export(run_dir, output_dir, report, settings)
        click.echo(bundle.path)
        if extra_format:
            write_sentence_transformer(run, extra_dir)
            click.echo(extra_dir)
        if push_to_hub:
            from polyhead_export.interop.push_to_hub import push_bundle

            report(push_bundle(bundle, push_to_hub))
        missing = set(settings.required) - set(bundle.manifest.variants)
    if missing:
        sys.exit(3)


@main.command()
@click.argument("bundle", type=_PATH)
@_CONFIG
@click.option("--signature", metavar="FILE", type=_PATH, help="Signature file.  [default: BUNDLE.sig]")
@click.option("--public-key", metavar="FILE", type=_PATH, help="PEM file; checks the signature before anything else.")
def verify(bundle: Path, config: Path | None, signature: Path | None, public_key: Path | None) -> None:
    """Verify a bundle.

    Checks the signature if --public-key is given, then hashes, tokenizer, graphs, golden outputs, and the gate against
    the PyTorch weights in the bundle. The gate uses the limits of --config or the defaults; limits stored in the bundle
    are not trusted. Accuracy and calibration are not measured again.

    Without torch, transformers and onnx, as on a machine that only serves, it checks signature, hashes, tokenizer,
    graphs and golden outputs, and reports what it skipped. Like `polyhead-serve BUNDLE --check`, it then requires
    nothing but polyhead[server].

    \b
    Examples:
      polyhead-export verify bundles/tickets
      polyhead-export verify bundles/tickets --public-key signing.pub
    """  # noqa: D301 (click reads the \b)
    with command():
        from polyhead_bundle import load, verify_signature

        # Checked first: a changed file is reported at once, and not after the import of torch.
        found = load(bundle)
        if public_key:
            verify_signature(found, public_key, signature)
            report(f"signature matches {public_key}")
        elif signature:
            raise click.UsageError("--signature requires --public-key")
        try:
            import onnx  # noqa: F401
            import torch  # noqa: F401

            silence_transformers()
        except ModuleNotFoundError as error:
            _verify_without_torch(bundle, config, str(error.name))
        else:
            from .verify import verify

            verify(bundle, report, _read_settings(config, (), ()))
    click.echo(bundle)


@main.command()
@click.argument("bundle", type=_PATH)
@click.argument("private_key", type=_PATH)
@click.option(
    "--signature",
    metavar="FILE",
    type=_PATH,
    help="Signature file to write, outside the bundle.  [default: BUNDLE.sig]",
)
def sign(bundle: Path, private_key: Path, signature: Path | None) -> None:
    """Sign a bundle with a private key.

    PRIVATE_KEY is a PEM file with an elliptic curve key (P-256, P-384 or P-521). The signature has the format of
    OpenSSF model signing.

    \b
    Examples:
      # Create a key pair, and sign
      openssl ecparam -name prime256v1 -genkey -noout -out key.pem
      openssl ec -in key.pem -pubout -out key.pub
      polyhead-export sign bundles/tickets key.pem
    """  # noqa: D301 (click reads the \b)
    with command():
        from polyhead_bundle import default_signature

        from .signing import sign

        target = signature or default_signature(bundle)
        sign(bundle, target, private_key)
    click.echo(target)


@main.command("import")
@click.argument("checkpoint")
@click.argument("run_dir", type=_PATH)
@click.option("--name", help="Name of the model.  [default: last part of CHECKPOINT]")
@click.option("--head", metavar="NAME", help="Name of the head of a classifier or SetFit model.  [default: topic]")
def import_command(checkpoint: str, run_dir: Path, name: str | None, head: str | None) -> None:
    """Convert a checkpoint to a run directory, without training.

    CHECKPOINT is a folder or hub id of a sentence-transformers model, which becomes a model without heads, or of a
    SetFit model or classifier, whose head becomes `topic` or --head. The outputs are compared with the checkpoint's; a
    checkpoint that cannot be represented exactly is an error.

    \b
    Examples:
      polyhead-export import sentence-transformers/all-MiniLM-L6-v2 runs/minilm
    """  # noqa: D301 (click reads the \b)
    with command():
        silence_transformers()
        from polyhead_export.interop.import_checkpoint import import_checkpoint

        path = import_checkpoint(checkpoint, run_dir, name, report, head)
    click.echo(path)


def _read_settings(config: Path | None, variants: tuple[str, ...], eval_data: tuple[Path, ...]) -> Settings:
    """Reads the configuration file and applies the options of the command line."""
    from .settings import read_settings

    return read_settings(config).with_overrides(variants, eval_data)


def _verify_without_torch(bundle: Path, config: Path | None, missing: str) -> None:
    from .verify_without_torch import verify_without_torch

    if config is not None:
        raise click.UsageError(f"--config sets limits of the gate, which requires {missing}: {_INSTALL_EXPORT}")
    verify_without_torch(bundle, report)
    report(
        "skipped: the gate, the operators of the graphs, the fingerprints and torch/config.json, which require "
        f"{missing}: {_INSTALL_EXPORT}"
    )


def _sibling(directory: Path, suffix: str) -> Path:
    """Returns the path in the same parent whose name is that of ``directory`` with a suffix."""
    # "." and ".." are no names; the directories that they refer to have one.
    named = directory if directory.name not in {"", ".."} else directory.resolve()
    if not named.name:
        raise click.UsageError(f"{directory} is the root directory: choose a directory inside it")
    return named.with_name(named.name + suffix)


main.add_command(compare)
