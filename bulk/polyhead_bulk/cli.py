"""The command ``polyhead bulk``; what it requires is imported when it runs."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import click
from polyhead.commands import missing_package
from polyhead_client.cli.failure import CommandError
from polyhead_client.cli.options import connection_options, server_options_from, with_options

from .options import MAX_WINDOWS, TASKS, Encoding, ListType, Truncation

_EXIT_USAGE = 2
# Formats of standard input, and of files whose extension does not tell.
_INPUT_FORMATS = ("jsonl", "csv", "parquet", "arrow", "arrow-stream")


def _names(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in (value or "").split(",") if name.strip()))


def _shard(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[int, int]:
    if value is None:
        return 0, 1
    first, _, second = value.partition("/")
    if not (first.isdecimal() and second.isdecimal() and int(first) < int(second)):
        raise click.BadParameter(f"{value}: expected I/N with I from 0 to N - 1, such as 0/4")
    return int(first), int(second)


def _column_types(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for value in values:
        name, separator, kind = value.rpartition("=")
        if not separator or not name:
            raise click.BadParameter(f"{value}: expected NAME=TYPE, such as stars=double")
        found[name] = kind
    return found


_MODEL = (
    click.option("--bundle", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Bundle to load."),
    click.option(
        "--inference-engine",
        type=click.Choice(("auto", "onnx", "torch")),
        default="auto",
        show_default=True,
        help="Inference engine for --bundle. auto tries onnx, then torch.",
    ),
    click.option(
        "--device",
        type=click.Choice(("auto", "cpu", "cuda")),
        default="auto",
        show_default=True,
        help="Device for --bundle. auto tries cuda if the engine supports it, then cpu.",
    ),
    click.option(
        "--variant",
        default="auto",
        show_default=True,
        help="Variant of the bundle. auto selects int8 on a CPU if the bundle contains it, otherwise fp32.",
    ),
    click.option(
        "--threads",
        type=click.IntRange(min=0),
        default=0,
        help="Compute threads for --bundle; with --engine ray, cores of each worker.  [default: one per core, or two "
        "on a GPU; 1 with --engine ray]",
    ),
    click.option(
        "--public-key",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        help="PEM file with the public key of the bundle's signer, whose signature is then verified.",
    ),
)
_COLUMNS = (
    click.option(
        "--text-column",
        default="text",
        show_default=True,
        metavar="NAME",
        help="Column of the texts. review.body is the field body of the struct column review.",
    ),
    click.option("--id-column", metavar="NAME", help="Column to copy to the output first."),
    click.option(
        "--keep",
        callback=_names,
        metavar="NAME[,NAME...]",
        help="Further columns to copy to the output; * for all.  [default: none]",
    ),
    click.option(
        "--column-type",
        "column_types",
        multiple=True,
        callback=_column_types,
        metavar="NAME=TYPE",
        help="Arrow type of a kept column of JSON Lines or CSV, such as stars=double. Repeatable.  [default: "
        "that of the first rows of JSON Lines; string for CSV]",
    ),
    click.option(
        "--input-format",
        type=click.Choice(_INPUT_FORMATS),
        help="Format of standard input and of files whose extension does not tell.  [default: jsonl]",
    ),
)
_ANSWERS = (
    click.option(
        "--tasks",
        callback=_names,
        metavar="TASK[,TASK...]",
        help=f"Tasks to compute: {', '.join(TASKS)}.  [default: all that the model has]",
    ),
    click.option(
        "--truncation",
        type=click.Choice(get_args(Truncation)),
        default="truncate",
        show_default=True,
        help="For texts over the token limit: read only the beginning, give the row an error, or read "
        "overlapping windows and pool their outputs.",
    ),
    click.option(
        "--prompt",
        metavar="NAME",
        help="Prompt of the model to put before each text, such as passage.  [default: none]",
    ),
    click.option(
        "--max-windows",
        type=click.IntRange(min=1),
        default=MAX_WINDOWS,
        show_default=True,
        help="Maximum number of windows of a text, with --bundle.",
    ),
    click.option(
        "--embedding-encoding",
        type=click.Choice(get_args(Encoding)),
        default="float32",
        show_default=True,
        help="Type of the embedding's numbers. int8 adds the column embedding_scale, by which to multiply; "
        "binary packs the signs of eight numbers into a byte.",
    ),
    click.option(
        "--dimensions", type=click.IntRange(min=1), help="Number of leading values of each embedding.  [default: all]"
    ),
    click.option(
        "--novelty",
        is_flag=True,
        help="Add the column novelty: how new each text is to the model, 0 to 1.",
    ),
    click.option(
        "--prediction-sets",
        is_flag=True,
        help="Add the column HEAD_prediction_set for heads with prediction sets: labels among which the true one is "
        "with the probability that polyhead info shows.",
    ),
    click.option(
        "--list-type",
        type=click.Choice(get_args(ListType)),
        default="fixed",
        show_default=True,
        help="Arrow type of embeddings and probabilities: fixed_size_list, or list for readers that do not "
        "support it, such as ClickHouse.",
    ),
    click.option(
        "--on-error",
        type=click.Choice(("null", "fail")),
        default="null",
        show_default=True,
        help="For a row without an answer: leave its answers null and state the reason in the column error, "
        "or end the job.",
    ),
)
_RUN = (
    click.option(
        "--engine",
        type=click.Choice(("local", "ray")),
        default="local",
        show_default=True,
        help="Compute in this process, or on the nodes of a Ray cluster, which share inputs and OUT.",
    ),
    click.option(
        "--ray-address",
        metavar="ADDRESS",
        help="Ray cluster, of which this machine is a node: HOST:PORT or auto.  [default: RAY_ADDRESS, otherwise the "
        "cluster on this machine, or a new one]",
    ),
    click.option(
        "--ray-send-bundle",
        is_flag=True,
        help="Send the bundle to the nodes through Ray's object store. Otherwise they read it from the same path.",
    ),
    click.option(
        "--output-format",
        type=click.Choice(("parquet", "jsonl")),
        default="parquet",
        show_default=True,
        help="Format of the parts.",
    ),
    click.option(
        "--part-rows",
        type=click.IntRange(min=1),
        default=65_536,
        show_default=True,
        help="Largest number of rows of a part. A crash loses the part that is being written.",
    ),
    click.option(
        "--shard",
        callback=_shard,
        metavar="I/N",
        help="Make only the parts of process I (from 0) of N, which may run at once with the same OUT.",
    ),
    click.option("--limit", type=click.IntRange(min=1), metavar="ROWS", help="Answer only the first rows."),
    click.option(
        "--dry-run",
        is_flag=True,
        help="Write nothing; print the inputs, the output columns and an estimate of the time.",
    ),
)


def _check_engine(options: Mapping[str, Any]) -> None:
    """Rejects flags that do not fit the engine."""
    if options["engine"] == "ray":
        if options["bundle"] is None:
            raise click.UsageError("--engine ray requires --bundle: more nodes do not make a server faster")
        if options["limit"] is not None or options["shard"] != (0, 1):
            raise click.UsageError("--engine ray divides the whole input among the nodes: omit --limit and --shard")
    elif options["ray_address"] is not None or options["ray_send_bundle"]:
        raise click.UsageError("--ray-address and --ray-send-bundle require --engine ray")


@click.command(short_help="Analyze files of texts; write files of answers.")
@click.argument("inputs", nargs=-1, required=True, metavar="IN...")
@click.argument("output", type=click.Path(file_okay=False, path_type=Path), metavar="OUT")
@functools.partial(with_options, [_MODEL[0]])
@functools.partial(with_options, connection_options(default_target=None))
@functools.partial(with_options, [*_MODEL[1:], *_COLUMNS, *_ANSWERS, *_RUN])
@click.pass_context
def bulk(context: click.Context, /, inputs: tuple[str, ...], output: Path, **options: Any) -> None:
    """Analyze files of texts and write the answers to files, with a bundle in this process or with a server.

    Reads Parquet, JSON Lines, CSV and Arrow files: names, quoted globs, folders (also with Hive partitions), URLs that
    pyarrow or fsspec opens (s3://, gs://, https://), or - for stdin. Requires --bundle DIR or --target HOST:PORT.

    Writes one part for each 65,536 rows of a file, in the order of the input, and OUT/_manifest.json. A part is
    complete or absent. The same command continues a job that was stopped or killed: complete parts are kept, others are
    made. Another model, other options or changed inputs are refused.

    \b
    Examples:
      polyhead bulk 'reviews/*.parquet' out --bundle bundle --text-column review.body --id-column id
      polyhead bulk reviews.jsonl.gz out --target 127.0.0.1:50051 --keep stars --tasks sentiment
      polyhead bulk reviews out --bundle bundle --shard 0/4
      polyhead bulk /data/reviews /data/out --bundle /bundles/1 --engine ray

    Output columns: the id, the kept columns, "embedding", and "HEAD_label" and "HEAD_probabilities" (in the order of
    the labels) of each head, "truncated", "tokens" (of the whole text), and "error" for a row without an answer.

    The first Ctrl-C or SIGTERM completes the part that is being written; the second one drops it.

    \b
    Exit codes:
      0    every row of the input, or of the shard, is in a part
      1    an input cannot be read, a part cannot be written, a row failed with --on-error fail, or the model failed
      2    wrong command line, columns that do not fit, or an OUT that holds another job; nothing was written
      130  stopped by Ctrl-C or SIGTERM; the same command continues
    """  # noqa: D301  \b tells click to keep the line breaks
    if (
        options["bundle"] is not None
        and context.get_parameter_source("target") is click.core.ParameterSource.ENVIRONMENT
    ):
        options["target"] = None
    if (options["bundle"] is None) == (options["target"] is None):
        raise click.UsageError("give either --bundle DIR or --target HOST:PORT")
    _check_engine(options)
    server = None
    try:
        if options["bundle"] is None:
            server = server_options_from(options)
        from .command import execute

        if options["engine"] == "ray" and not options["dry_run"]:
            importlib.import_module(".ray_data", __package__)
    except ModuleNotFoundError as error:
        extra = "ray" if options["engine"] == "ray" else "bulk"
        raise CommandError(_EXIT_USAGE, f"bulk: {missing_package(error, extra)}") from error
    sys.exit(execute(inputs, output, options, server))
