"""The ``polyhead`` command: texts in, JSON lines out, over one stream."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NoReturn, get_args

import click

from polyhead_client.client import Client
from polyhead_client.conversion import Encoding, Order, Task, TruncationPolicy
from polyhead_client.core.stream_state import Text
from polyhead_client.errors import AccessDeniedError, InvalidRequestError, PolyheadError, UnavailableError
from polyhead_client.types import Answer, Fingerprints, ModelInfo

from .admin import admin
from .jsonl import LineError, items_of, line_of, texts_of
from .options import Server, server_options, with_options
from .top import top

_FAILED, _MISUSED, _INTERRUPTED = 1, 2, 130
# Errors that whoever typed the command can mend.
_MISTAKES = (AccessDeniedError, InvalidRequestError, UnavailableError)

_encoding = click.option(
    "--encoding",
    type=click.Choice(get_args(Encoding)),
    default="float32",
    show_default=True,
    help="Of embeddings on the wire; float16 takes half the bytes, int8 a quarter, binary keeps the signs alone.",
)
_dimensions = click.option(
    "--dimensions", type=click.IntRange(min=1), help="First numbers of each embedding to give.  [default: all]"
)


def _space(_: click.Context, __: click.Parameter, value: str | None) -> Fingerprints | None:
    if value is None:
        return None
    if not re.fullmatch("[0-9a-f]{16}", value):
        raise click.BadParameter("not 16 hexadecimal digits, as polyhead info shows them")
    return Fingerprints(value, {})


def _texts(command: Callable[..., None]) -> Callable[..., None]:
    """Adds what all commands that answer texts share."""
    options = [
        click.argument("texts", metavar="[TEXT]...", nargs=-1),
        click.option("--jsonl", is_flag=True, help='Read {"id": ..., "text": ...} objects from stdin, one a line.'),
        click.option(
            "--truncation",
            type=click.Choice(get_args(TruncationPolicy)),
            default="truncate",
            show_default=True,
            help="What to do with a text that is too long for the model.",
        ),
        click.option(
            "--order",
            type=click.Choice(get_args(Order)),
            default="request",
            show_default=True,
            help="Of the answers: that of the input, or each as soon as it is finished.",
        ),
        click.option("--timings", "include_timings", is_flag=True, help="Say where the time went, in seconds."),
        click.option(
            "--expect-embedding-space",
            "expected_fingerprints",
            metavar="HEX",
            callback=_space,
            help="Refuse texts that another embedding space than this one would answer.",
        ),
    ]
    return server_options(with_options(options, command))


class _Commands(click.Group):
    """Commands that end with one line on stderr when stdin or stdout fails them."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Runs the command line."""
        try:
            return super().main(*arguments, **options)
        except OSError as error:
            _discard_stdout()
            _fail(_FAILED, f"input or output: {error.strerror or error}")


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Ask a polyhead server about texts.

    Texts are arguments, or stdin, one a line. Every answer is one line of JSON on stdout, in the order of the texts,
    and comes as soon as it is there.

    \b
      polyhead analyze "The parcel came late, but the quality is great."
      polyhead sentiment < reviews.txt | jq -r .sentiment.label
      tail -f app.log | polyhead classify
      polyhead embed --jsonl < texts.jsonl > vectors.jsonl
      polyhead info

    Exit code: 0, 1 when an item has an error (its line says which), the call failed, or its input or output did, 2 when
    the command or the target is wrong, 130 when interrupted.
    """  # noqa: D301  the backspace tells click to keep the lines as they are


main.add_command(admin)
main.add_command(top)


@main.command()
@_texts
@_encoding
@_dimensions
@click.option(
    "--tasks",
    metavar="TASK[,TASK...]",
    help=f"Answers to give, of {', '.join(get_args(Task))}.  [default: all that the model has]",
)
def analyze(texts: tuple[str, ...], server: Server, jsonl: bool, tasks: str | None, **options: Any) -> None:
    """Give every answer that the model has about each TEXT, or about each line of stdin.

    \b
      polyhead analyze "Where is my refund?"
      polyhead analyze --tasks classification,sentiment < reviews.txt
    """  # noqa: D301  the backspace tells click to keep the lines as they are
    chosen = [] if tasks is None else [task.strip() for task in tasks.split(",")]
    _run(server, texts, jsonl, lambda client, items: client.stream(items, tasks=chosen, **options))  # type: ignore[arg-type]


@main.command()
@_texts
@_encoding
@_dimensions
def embed(texts: tuple[str, ...], server: Server, jsonl: bool, **options: Any) -> None:
    """Give the embedding of each TEXT, or of each line of stdin.

    \b
      polyhead embed "Where is my refund?" | jq -c .embedding
    """  # noqa: D301  the backspace tells click to keep the lines as they are
    _run(server, texts, jsonl, lambda client, items: client.embed(items, **options))


@main.command()
@_texts
def classify(texts: tuple[str, ...], server: Server, jsonl: bool, **options: Any) -> None:
    """Give the class of each TEXT, or of each line of stdin.

    \b
      polyhead classify < questions.txt | jq -r .classification.scores[0].label
    """  # noqa: D301  the backspace tells click to keep the lines as they are
    _run(server, texts, jsonl, lambda client, items: client.classify(items, **options))


@main.command()
@_texts
def sentiment(texts: tuple[str, ...], server: Server, jsonl: bool, **options: Any) -> None:
    """Give the sentiment of each TEXT, or of each line of stdin.

    \b
      polyhead sentiment "Never again." | jq .sentiment.probability
    """  # noqa: D301  the backspace tells click to keep the lines as they are
    _run(server, texts, jsonl, lambda client, items: client.sentiment(items, **options))


@main.command()
@server_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def info(server: Server, as_json: bool) -> None:
    """Describe the model behind the server: heads, labels, limits, fingerprints, engine, device."""
    with _ended_well(server.target), server.connect() as client:
        model = client.info()
        click.echo(json.dumps(dataclasses.asdict(model), ensure_ascii=False) if as_json else _readable(model))


def _run(
    server: Server, texts: tuple[str, ...], jsonl: bool, ask: Callable[[Client, Iterable[Text]], Iterator[Answer]]
) -> None:
    """Streams the input to the server and the answers to stdout."""
    if texts and jsonl:
        raise click.UsageError("--jsonl reads stdin; give it no TEXT")
    source = _Input(texts or (items_of if jsonl else texts_of)(_stdin()))
    if sys.stdout is None:
        raise click.UsageError("stdout is closed; the answers go there")
    stdout = sys.stdout.buffer
    failed = False
    with _ended_well(server.target), server.connect() as client:
        for answer in ask(client, source):
            failed = failed or answer.error is not None
            stdout.write(line_of(answer))
            stdout.flush()
    if source.error is not None:
        _fail(_MISUSED, str(source.error))
    if failed:
        sys.exit(_FAILED)


class _Input:
    """Texts up to the first line that is not what was promised, so that those before it are still answered."""

    def __init__(self, texts: Iterable[Text]) -> None:
        self._texts = texts
        self.error: LineError | None = None

    def __iter__(self) -> Iterator[Text]:
        try:
            yield from self._texts
        except LineError as error:
            self.error = error


def _stdin() -> BinaryIO:
    """Stdin as bytes, in a file object of its own.

    The thread that reads may still be blocked in it when the process ends: Python aborts when that is ``sys.stdin``.
    """
    stdin = sys.stdin
    if stdin is None:  # Python's answer to a descriptor that is closed
        raise click.UsageError("stdin is closed; give it texts, or give TEXT")
    try:
        return open(stdin.fileno(), "rb", closefd=False)
    except io.UnsupportedOperation:
        return stdin.buffer


@contextmanager
def _ended_well(target: str) -> Iterator[None]:
    """Ends the process with one line on stderr when the call failed, and quietly when its reader or user is gone."""
    try:
        yield
    except PolyheadError as error:
        hint = " (is a server running there? see polyhead-serve --help)" if isinstance(error, UnavailableError) else ""
        _fail(_MISUSED if isinstance(error, _MISTAKES) else _FAILED, f"{target}: {error}{hint}")
    except BrokenPipeError:
        _discard_stdout()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


def _discard_stdout() -> None:
    """Python flushes stdout once more when it ends, and would complain then."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _fail(code: int, message: str) -> NoReturn:
    click.echo(f"polyhead: {' '.join(message.split())}", err=True)
    sys.exit(code)


def _readable(model: ModelInfo) -> str:
    embedding, limits, runtime = model.embedding, model.limits, model.runtime
    rows = [
        ("model", model.model_id),
        ("runs on", f"{runtime.engine}, {runtime.device}, {runtime.variant}"),
        *(("", f"not the first choice: {reason}") for reason in runtime.fallback_reasons),
        ("embedding", f"{embedding.dimensions} dimensions, {embedding.pooling} pooling"),
        ("", "length 1" if embedding.normalized else "not normalized"),
        ("", f"space {model.fingerprints.embedding_space}"),
    ]
    for head in model.heads:
        rows.append(("head", f"{head.name} ({head.kind}), fingerprint {model.fingerprints.heads.get(head.name, '?')}"))
        threshold = "" if head.threshold is None else f", threshold {head.threshold:g}"
        rows.append(("", f"{', '.join(head.labels)}; temperature {head.temperature:g}{threshold}"))
    rows += [
        ("limits", f"{limits.max_tokens:,} tokens a text, {limits.max_characters:,} characters of it looked at"),
        *([("", f"{limits.max_windows:,} windows a text")] if limits.max_windows else []),
        ("", f"{limits.max_items_per_message:,} items and {limits.max_message_bytes:,} bytes a message"),
        ("server", f"{model.server_version}, bundle format {model.bundle_format_version}"),
    ]
    return "\n".join(f"{name:<10}  {value}" for name, value in rows)


if __name__ == "__main__":
    main()
