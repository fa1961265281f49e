"""``polyhead admin shadow|compare|canary|promote|discard``: a new model beside the served one."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from .admin import RELOAD_TIMEOUT_S, admin, admin_options, call_admin, print_messages, to_json
from .options import FiniteRange, model_option

__all__ = ["admin"]


class Share(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions of click alone
    """A share, as a number from 0 to 1 or in percent."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parses ``0.1`` or ``10%``."""
        if isinstance(value, float):
            return value
        text = str(value).strip()
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = float("nan")
        if not 0 <= share <= 1:
            self.fail(f"{value!r} is not a share such as 0.1 or 10%", param, ctx)
        return share


_model = model_option("Model, if the server has several.  [default: the server's first]")


def _options(command: Callable[..., None]) -> Callable[..., None]:
    return admin_options(_model(command))


_share = click.option(
    "--share",
    type=Share(),
    metavar="SHARE",
    required=True,
    help="Share that the candidate answers, such as 0.1 or 10%.",
)
_force = click.option("--force", is_flag=True, help="Accept another embedding space, or other heads or labels.")


def _absolute(_: click.Context, __: click.Parameter, path: str | None) -> str:
    # The server has another working directory.
    return "" if path is None else os.path.abspath(path)  # noqa: PTH100 - a link stays as it is


@admin.command()
@click.argument("bundle", callback=_absolute)
@_options
@_share
@click.option(
    "--keep-texts",
    metavar="N",
    type=click.IntRange(0, 1000),
    default=0,
    show_default=True,
    help="Keep the last N texts of each head whose answer changed, for compare --show-texts.",
)
@click.option(
    "--priority",
    type=click.Choice(["idle", "normal"]),
    default="idle",
    show_default=True,
    help="Processor time of the candidate: idle, only what nothing else uses; normal, an equal share, which may delay "
    "answers.",
)
def shadow(  # noqa: PLR0917
    bundle: str, target: str, api_key: str | None, model: str | None, share: float, keep_texts: int, priority: str
) -> None:
    """Compare the model in BUNDLE with the served one on live texts.

    The candidate runs in a process of its own and answers a share of the live texts, chosen by their hash, with the
    processor time that is idle otherwise; what it cannot answer in time is dropped and counted. Clients get the
    answers of the served model alone. Prints the candidate. Exit code 2 means that the candidate was rejected, with the
    reason on stderr.

    No text is kept without --keep-texts.

    \b
    Examples:
      polyhead admin shadow bundles/tickets-new --share 10% --target unix:/run/polyhead-admin.sock
    """  # noqa: D301  \b tells click to keep the line breaks
    from polyhead.v1 import admin_service_pb2 as pb2

    level = pb2.ShadowRequest.PRIORITY_NORMAL if priority == "normal" else pb2.ShadowRequest.PRIORITY_IDLE
    request = pb2.ShadowRequest(bundle=bundle, share=share, keep_texts=keep_texts, priority=level)
    response = call_admin(target, api_key, "Shadow", request, model, timeout_s=RELOAD_TIMEOUT_S)
    print_messages([response.candidate])


@admin.command()
@_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option(
    "--html", metavar="FILE", type=click.Path(path_type=Path), help="Also write the comparison as one HTML page."
)
@click.option(
    "--show-texts",
    metavar="N",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Changed texts of each head to include, of those that shadow --keep-texts has kept.",
)
def compare(  # noqa: PLR0917
    target: str, api_key: str | None, model: str | None, as_json: bool, html: Path | None, show_texts: int
) -> None:
    """Print how far the candidate agrees with the served model so far.

    For each head that both have: how many texts get another answer, with a 95 % interval, the most frequent changes,
    and changes weighted by confidence. For the embedding: whether vectors of both models can stand in one index.
    Also how many texts the candidate saw, errors, latencies, and the state of a canary.

    \b
    Examples:
      polyhead admin compare --target unix:/run/polyhead-admin.sock
      polyhead admin compare --html changes.html --show-texts 50 --target unix:/run/polyhead-admin.sock
    """  # noqa: D301  \b tells click to keep the line breaks
    import json

    from polyhead.v1 import admin_service_pb2 as pb2

    from . import comparison, comparison_page

    request = pb2.CompareRequest(include_texts=show_texts > 0)
    found = call_admin(target, api_key, "Compare", request, model)
    for head in found.shadow.heads:
        del head.texts[show_texts:]
    if html:
        html.write_text(comparison_page.as_html(found), encoding="utf-8")
    if as_json:
        click.echo(json.dumps(to_json(found)))
    else:
        click.echo(comparison.as_text(found))


@admin.command()
@click.argument("bundle", callback=_absolute, required=False)
@_options
@_share
@click.option(
    "--max-error-rate",
    type=Share(),
    metavar="SHARE",
    default="1%",
    show_default=True,
    help="Roll back when the share of failed texts exceeds that of the served model by more than this.",
)
@click.option(
    "--max-p99-ratio",
    type=FiniteRange(min=0),
    default=2.0,
    show_default=True,
    help="Roll back when the 99th percentile of the latency, divided by that of the served model, exceeds this; 0 for "
    "no limit.",
)
@click.option(
    "--max-p99-ms",
    type=FiniteRange(0, 3_600_000),
    default=0.0,
    help="Roll back when the 99th percentile of the latency exceeds this number of milliseconds.  [default: no limit]",
)
@click.option(
    "--min-texts",
    type=click.IntRange(1, 1_000_000_000),
    default=100,
    show_default=True,
    help="Texts that the candidate must have answered in the last minute before the limits count.",
)
@_force
def canary(  # noqa: PLR0917
    bundle: str,
    target: str,
    api_key: str | None,
    model: str | None,
    share: float,
    max_error_rate: float,
    max_p99_ratio: float,
    max_p99_ms: float,
    min_texts: int,
    force: bool,
) -> None:
    """Answer a share of the callers with a candidate.

    BUNDLE is the candidate; without it, the one that shadow has loaded. A caller, which is the metadata
    x-polyhead-routing-key, otherwise the name of the API key, otherwise the address of the client, stays with one
    model. The answers of the candidate carry its fingerprints. Calls that state the fingerprints they expect are
    answered by the served model. When a limit is exceeded in the last minute, the served model answers everything
    again. Prints the candidate.

    \b
    Examples:
      polyhead admin canary --share 5% --target unix:/run/polyhead-admin.sock
      polyhead admin canary bundles/tickets-new --share 5% --max-p99-ms 200 --target unix:/run/polyhead-admin.sock
    """  # noqa: D301  \b tells click to keep the line breaks
    from google.protobuf.duration_pb2 import Duration
    from polyhead.v1 import admin_service_pb2 as pb2

    p99 = Duration()
    p99.FromTimedelta(timedelta(milliseconds=max_p99_ms))
    limits = pb2.CanaryLimits(
        error_rate=max_error_rate, p99_ratio=max_p99_ratio, p99=p99 if max_p99_ms else None, min_texts=min_texts
    )
    request = pb2.CanaryRequest(bundle=bundle, share=share, limits=limits, force=force)
    response = call_admin(target, api_key, "Canary", request, model, timeout_s=RELOAD_TIMEOUT_S)
    print_messages([response.candidate])


@admin.command()
@_options
@_force
def promote(target: str, api_key: str | None, model: str | None, force: bool) -> None:
    """Serve the candidate in place of the served model.

    As with reload, requests that the server has accepted are completed with the old model. Prints the new model and
    fingerprints of each worker. Exit code 2 means that the candidate was rejected; the old model stays. A restart or a
    reload takes the promotion back: put the bundle at the path that the server was started with.

    \b
    Examples:
      polyhead admin promote --target unix:/run/polyhead-admin.sock
    """  # noqa: D301  \b tells click to keep the line breaks
    from polyhead.v1 import admin_service_pb2 as pb2

    request = pb2.PromoteRequest(force=force)
    response = call_admin(target, api_key, "Promote", request, model, timeout_s=RELOAD_TIMEOUT_S)
    print_messages(response.workers)


@admin.command()
@_options
def discard(target: str, api_key: str | None, model: str | None) -> None:
    """End the comparison and the canary, and unload the candidate.

    Requests that the candidate has begun to answer are completed, which may take a minute. Prints nothing.

    \b
    Examples:
      polyhead admin discard --target unix:/run/polyhead-admin.sock
    """  # noqa: D301  \b tells click to keep the line breaks
    from polyhead.v1 import admin_service_pb2 as pb2

    call_admin(target, api_key, "Discard", pb2.DiscardRequest(), model, timeout_s=RELOAD_TIMEOUT_S)
