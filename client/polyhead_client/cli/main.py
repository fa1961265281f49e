"""The ``polyhead`` command: texts in, JSON lines out, over one stream."""

from __future__ import annotations

import importlib
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, get_args

import click
from polyhead.commands import SUBCOMMANDS

from polyhead_client.choices import Encoding, Order, Task, TruncationPolicy

from .candidate import admin
from .drift import drift
from .failure import CommandError, discard_stdout
from .options import ServerOptions, server_options, with_options
from .top import top

# numpy and gRPC take longer to import than --help should take.
if TYPE_CHECKING:
    from polyhead_client.client import Client
    from polyhead_client.types import Answer, Fingerprints


_EXIT_FAILED, _EXIT_USAGE, _EXIT_INTERRUPTED = 1, 2, 130

_encoding = click.option(
    "--encoding",
    type=click.Choice(get_args(Encoding)),
    default="float32",
    show_default=True,
    help="Encoding of embeddings on the wire: float16 takes half the bytes, int8 a quarter, binary keeps only signs.",
)
_dimensions = click.option(
    "--dimensions", type=click.IntRange(min=1), help="Number of leading values of each embedding.  [default: all]"
)


def _parse_embedding_space(_: click.Context, __: click.Parameter, value: str | None) -> Fingerprints | None:
    from polyhead_client.types import Fingerprints

    if value is None:
        return None
    if not re.fullmatch("[0-9a-f]{16}", value):
        raise click.BadParameter("expected 16 hexadecimal digits, as printed by polyhead info")
    return Fingerprints(value, {})


def _text_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of all commands that send texts."""
    options = [
        click.argument("texts", metavar="[TEXT]...", nargs=-1),
        click.option(
            "--jsonl",
            is_flag=True,
            help='Read {"text": ...} objects from stdin, one per line, with or without "id". Other fields are ignored.',
        ),
        click.option(
            "--truncation",
            type=click.Choice(get_args(TruncationPolicy)),
            default="truncate",
            show_default=True,
            help="For texts over the token limit: read only the beginning, return an error, or read overlapping "
            "windows and pool their outputs.",
        ),
        click.option(
            "--prompt",
            metavar="NAME",
            help="Prompt of the model to put before each text, such as query; polyhead info lists them.  "
            "[default: none]",
        ),
        click.option(
            "--order",
            type=click.Choice(get_args(Order)),
            default="request",
            show_default=True,
            help="Order of the answers: input order, or each as soon as it is done.",
        ),
        click.option("--timings", "include_timings", is_flag=True, help="Add the server's time per step, in seconds."),
        click.option(
            "--novelty",
            "include_novelty",
            is_flag=True,
            help="Add how new each text is to the model, 0 to 1; 0.99 is newer than 99 % of its validation texts.",
        ),
        click.option(
            "--prediction-sets",
            "include_prediction_sets",
            is_flag=True,
            help="Add the prediction sets of heads that have them: labels among which the true one is with the "
            "probability that polyhead info shows.",
        ),
        click.option(
            "--expect-embedding-space",
            "expected_fingerprints",
            metavar="HEX",
            callback=_parse_embedding_space,
            help="Return an error for every text if the server's embedding space differs from this one.",
        ),
    ]
    return server_options(with_options(options, command))


class _Commands(click.Group):
    """A group whose commands end with one line on stderr when stdin or stdout fails.

    Commands of other packages are imported when they are run or listed.
    """

    def list_commands(self, context: click.Context) -> list[str]:
        """Returns the names of all commands."""
        return sorted([*super().list_commands(context), *SUBCOMMANDS])

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Returns a command by its name."""
        if name not in SUBCOMMANDS:
            return super().get_command(context, name)
        command: click.Command = getattr(importlib.import_module(SUBCOMMANDS[name]), name)
        return command

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Runs the command line."""
        if isinstance(sys.stdout, io.TextIOWrapper):  # a label may contain what the encoding of the terminal does not
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            return super().main(*arguments, **options)
        except OSError as error:
            discard_stdout()
            failure = CommandError(_EXIT_FAILED, f"input or output: {error.strerror or error}")
            failure.show()
            sys.exit(failure.exit_code)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="polyhead", prog_name="polyhead", message="%(prog)s %(version)s")
def main() -> None:
    """Analyze texts with a polyhead server.

    A text is an argument, or a line of stdin. Each answer is one line of JSON on stdout, written as soon as it
    arrives, in the order of the texts.

    \b
    Examples:
      polyhead analyze "The parcel came late, but the quality is great."
      polyhead sentiment < reviews.txt | jq -r .sentiment.label
      tail -f app.log | polyhead classify
      polyhead embed --jsonl < texts.jsonl > embeddings.jsonl
      polyhead info

    "polyhead COMMAND --help" describes the options and the output of a command.

    \b
    Exit codes:
      0    success: every text has a result
      1    a text or line has an error, the call failed, or input or output failed
      2    wrong command line, wrong credentials, or no server at --target; nothing was answered
      130  interrupted
    """  # noqa: D301  \b tells click to keep the line breaks


main.add_command(admin)
main.add_command(drift)
main.add_command(top)


@main.command()
@_text_options
@_encoding
@_dimensions
@click.option(
    "--tasks",
    metavar="TASK[,TASK...]",
    help=f"Tasks to compute: {', '.join(get_args(Task))}.  [default: all that the model has]",
)
def analyze(texts: tuple[str, ...], server: ServerOptions, jsonl: bool, tasks: str | None, **options: Any) -> None:
    """Compute the embedding of each TEXT and the answers of all heads.

    Reads one text per line from stdin if no TEXT is given. Output fields: "id" (the number of the text from 0, or its
    id with --jsonl), "embedding", "classification", "sentiment", "label_sets", "scores", and "truncation" (how much of
    the text the model read). A head that abstains adds its "confidence", and whether it "abstained". A text that cannot
    be analyzed has "error" (code, reason, message) instead.

    \b
    Examples:
      polyhead analyze "Where is my refund?"
      polyhead analyze --tasks classification,sentiment < reviews.txt
    """  # noqa: D301  \b tells click to keep the line breaks
    selected = [] if tasks is None else [task.strip() for task in tasks.split(",")]
    _run(server, texts, jsonl, lambda client, items: client.stream(items, tasks=selected, **options))  # type: ignore[arg-type]


@main.command()
@_text_options
@_encoding
@_dimensions
def embed(texts: tuple[str, ...], server: ServerOptions, jsonl: bool, **options: Any) -> None:
    """Compute the embedding of each TEXT.

    Reads one text per line from stdin if no TEXT is given. Output field: "embedding", a list of numbers. Embeddings are
    comparable only within one embedding space, which "polyhead info" prints.

    \b
    Examples:
      polyhead embed "Where is my refund?" | jq -c .embedding
      polyhead embed --dimensions 128 --jsonl < texts.jsonl > embeddings.jsonl
    """  # noqa: D301  \b tells click to keep the line breaks
    _run(server, texts, jsonl, lambda client, items: client.stream_embed(items, **options))


@main.command()
@_text_options
def classify(texts: tuple[str, ...], server: ServerOptions, jsonl: bool, **options: Any) -> None:
    """Compute the class of each TEXT.

    Reads one text per line from stdin if no TEXT is given. Output field: "classification", with the "probability" of
    every label in "scores", most probable first.

    \b
    Examples:
      polyhead classify < questions.txt | jq -r .classification.scores[0].label
    """  # noqa: D301  \b tells click to keep the line breaks
    _run(server, texts, jsonl, lambda client, items: client.stream_classify(items, **options))


@main.command()
@_text_options
def sentiment(texts: tuple[str, ...], server: ServerOptions, jsonl: bool, **options: Any) -> None:
    """Compute the sentiment of each TEXT.

    Reads one text per line from stdin if no TEXT is given. Output field: "sentiment", with the "probability" of the
    positive label, and the "label" that follows from the model's threshold.

    \b
    Examples:
      polyhead sentiment "Never again." | jq .sentiment.probability
    """  # noqa: D301  \b tells click to keep the line breaks
    _run(server, texts, jsonl, lambda client, items: client.stream_sentiment(items, **options))


@main.command()
@_text_options
def labels(texts: tuple[str, ...], server: ServerOptions, jsonl: bool, **options: Any) -> None:
    """Compute the labels of each TEXT: those of a multilabel head that apply.

    Reads one text per line from stdin if no TEXT is given. Output field: "label_sets", one for each multilabel head,
    with the "probability" of every label in "scores", most probable first, and the "labels" at or above their
    thresholds.

    \b
    Examples:
      polyhead labels < reviews.txt | jq -c .label_sets[0].labels
    """  # noqa: D301  \b tells click to keep the line breaks
    _run(server, texts, jsonl, lambda client, items: client.stream(items, tasks=["labels"], **options))


@main.command()
@_text_options
def score(texts: tuple[str, ...], server: ServerOptions, jsonl: bool, **options: Any) -> None:
    """Compute the score of each TEXT, such as a number of stars.

    Reads one text per line from stdin if no TEXT is given. Output field: "scores", one for each ordinal or regression
    head, with its "value"; for an ordinal head also its "label" and the "probabilities" of its labels.

    \b
    Examples:
      polyhead score "Broke after a week." | jq .scores[0].value
    """  # noqa: D301  \b tells click to keep the line breaks
    _run(server, texts, jsonl, lambda client, items: client.stream(items, tasks=["score"], **options))


@main.command()
@server_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def info(server: ServerOptions, as_json: bool) -> None:
    """Describe the model behind the server.

    Prints its heads and labels, limits on requests, fingerprints, and the engine, device and variant in use.

    \b
    Examples:
      polyhead info
      polyhead info --json | jq -r .fingerprints.embedding_space
    """  # noqa: D301  \b tells click to keep the line breaks
    from .info import render

    with _mapped_errors(server.target), server.connect() as client:
        model = client.info()
        # JSON is UTF-8, whatever the encoding of stdout.
        click.echo(json.dumps(model.to_dict(), ensure_ascii=False).encode() if as_json else render(model))


def _run(
    server: ServerOptions,
    texts: tuple[str, ...],
    jsonl: bool,
    call: Callable[[Client, Iterable[Any]], Iterator[Answer]],
) -> None:
    """Streams the input to the server and the answers to stdout."""
    from .jsonl import format_answer, read_items, read_texts

    if texts and jsonl:
        raise click.UsageError("--jsonl reads stdin and cannot be combined with TEXT arguments")
    source = texts or (read_items if jsonl else read_texts)(_open_stdin())
    if sys.stdout is None:
        raise click.UsageError("stdout is closed, and the answers are written to it")
    stdout = sys.stdout.buffer
    answered = failed = 0
    with _mapped_errors(server.target, lambda: answered), server.connect() as client:
        for answer in call(client, source):
            answered += 1
            failed += answer.error is not None
            stdout.write(format_answer(answer))
            stdout.flush()
    if failed:
        sys.exit(_EXIT_FAILED)


def _open_stdin() -> BinaryIO:
    """Opens stdin as bytes, in a file object of its own.

    The reader thread may still be blocked in it when the process ends, and Python aborts if that is ``sys.stdin``.
    """
    stdin = sys.stdin
    if stdin is None:  # the descriptor is closed
        raise click.UsageError("stdin is closed; provide texts on it, or as TEXT arguments")
    try:
        return open(stdin.fileno(), "rb", closefd=False)
    except io.UnsupportedOperation:
        return stdin.buffer


@contextmanager
def _mapped_errors(target: str, answered: Callable[[], int] = int) -> Iterator[None]:
    """Ends the process with one line on stderr if the call fails, and silently on a broken pipe or Ctrl-C.

    Args:
        target: Address of the server.
        answered: Returns the number of answers that were printed; after the first, a failure is no usage error.
    """
    from polyhead_client.errors import AccessDeniedError, InvalidRequestError, PolyheadError, UnavailableError

    from .failure import describe, is_unexplained

    # Errors that the user of the command can fix.
    usage_errors = (AccessDeniedError, InvalidRequestError, UnavailableError)
    try:
        yield
    except PolyheadError as error:
        hint = " (is a server running there? see polyhead-serve --help)" if is_unexplained(error) else ""
        exit_code = _EXIT_USAGE if isinstance(error, usage_errors) and not answered() else _EXIT_FAILED
        progress = f" (after {answered()} answers; the other texts have none)" if answered() else ""
        raise CommandError(exit_code, f"{describe(target, error)}{hint}{progress}") from error
    except BrokenPipeError:
        discard_stdout()
    except KeyboardInterrupt:
        sys.exit(_EXIT_INTERRUPTED)
