"""The command ``polyhead-export compare``."""

from __future__ import annotations

from pathlib import Path

import click
from polyhead_training.command_line import silence_transformers

from polyhead_export.command_line import command

_PATH = click.Path(path_type=Path)


def _head_fields(ctx: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    fields = {}
    for value in values:
        head, equals, field = value.partition("=")
        if not (head and equals and field):
            raise click.BadParameter(f"{value!r} is not HEAD=FIELD, such as topic=label", ctx, option)
        fields[head] = field
    return fields


@click.command()
@click.argument("old", type=_PATH)
@click.argument("new", type=_PATH)
@click.option(
    "--eval-data",
    metavar="FILE",
    multiple=True,
    required=True,
    type=_PATH,
    help="Texts, in a format that polyhead-train reads; repeatable.",
)
@click.option("--text", metavar="FIELD", default="text", show_default=True, help="Field of a row that holds the text.")
@click.option(
    "--label",
    "fields",
    metavar="HEAD=FIELD",
    multiple=True,
    callback=_head_fields,
    help="Field of a row that holds the true answer of a head, for the accuracy of both models; repeatable.",
)
@click.option("--old-variant", metavar="NAME", help="Variant of OLD.  [default: int8, or fp32 without it]")
@click.option("--new-variant", metavar="NAME", help="Variant of NEW.  [default: int8, or fp32 without it]")
@click.option("--html", metavar="FILE", type=_PATH, help="Also write the comparison as one HTML page.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option(
    "--show-texts",
    metavar="N",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Changed texts of each head in the JSON and the page.",
)
def compare(  # noqa: PLR0917
    old: Path,
    new: Path,
    eval_data: tuple[Path, ...],
    text: str,
    fields: dict[str, str],
    old_variant: str | None,
    new_variant: str | None,
    html: Path | None,
    as_json: bool,
    show_texts: int,
) -> None:
    """Compare the answers of two bundles on the same texts.

    OLD is the model in use and NEW the one that may replace it. For each head that both have, it prints how many
    texts get another answer (with a 95 % interval), the most frequent changes, and with --label the accuracy of both.
    For the embedding it tells whether vectors of both models can stand in one index. The models may have different
    labels, tokenizers and sizes.

    No text of the data is printed or written without --show-texts.

    \b
    Examples:
      polyhead-export compare bundles/tickets bundles/tickets-new --eval-data data/test.jsonl --label topic=label
      polyhead-export compare bundles/a bundles/b --eval-data mails.csv --html changes.html --show-texts 50
    """  # noqa: D301 (click reads the \b)
    with command():
        silence_transformers()
        from . import rendering
        from .comparison import compare

        found = compare(old, new, eval_data, text=text, fields=fields, variants=(old_variant, new_variant))
        if html:
            html.write_text(rendering.as_html(found, show_texts), encoding="utf-8")
        click.echo(rendering.as_json(found, show_texts) if as_json else rendering.as_table(found))
