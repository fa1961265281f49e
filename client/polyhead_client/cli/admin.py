"""``polyhead admin``: what an operator asks of a running server, on the address of its admin service."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click
import grpc
from google.protobuf import message
from google.protobuf.duration_pb2 import Duration
from polyhead.v1 import admin_service_pb2 as pb2
from polyhead.v1 import admin_service_pb2_grpc

from polyhead_client.errors import PolyheadError, UnavailableError, map_grpc_errors
from polyhead_client.transport import channel
from polyhead_client.transport.credentials import authorization

target_option = click.option(
    "--target",
    metavar="HOST:PORT|unix:PATH",
    required=True,
    envvar="POLYHEAD_ADMIN_TARGET",
    show_envvar=True,
    help="The server's --admin-listen.",
)
# A model may take minutes to load, and workers load it one after the other.
_RELOAD_S = 1800.0
_ANSWER_S = 30.0


@click.group()
def admin() -> None:
    """Reload, drain or look into a running server, all of its workers at once.

    \b
      polyhead-serve build/bundle --admin-listen unix:/run/polyhead-admin.sock
      polyhead admin reload --target unix:/run/polyhead-admin.sock

    Answers are lines of JSON on stdout, one a worker; durations are seconds. Where the server has keys, the one in
    $POLYHEAD_API_KEY is sent, which needs the right "admin".
    """  # noqa: D301  the backspace tells click to keep the lines as they are


@admin.command()
@target_option
@click.option("--force", is_flag=True, help="Also take a bundle with another embedding space, or other heads.")
def reload(target: str, force: bool) -> None:
    """Load the bundle once more from where it lies, and answer with it from then on.

    What was accepted before is answered by the model that was there before. Exit code 2 says that the new bundle was
    refused, and why; then the old model stays.
    """
    request = pb2.ReloadRequest(force=force)
    _print(_call(target, lambda stub, key: stub.Reload(request, timeout=_RELOAD_S, metadata=key)).workers)


@admin.command()
@target_option
def drain(target: str) -> None:
    """Let the health service say NOT_SERVING, so that balancers send nothing more; calls are answered as before."""
    _call(target, lambda stub, key: stub.Drain(pb2.DrainRequest(), timeout=_ANSWER_S, metadata=key))


@admin.command()
@target_option
def stats(target: str) -> None:
    """Describe what each worker is doing now.

    \b
      polyhead admin stats --target unix:/run/polyhead-admin.sock | jq .queued_items
    """  # noqa: D301  the backspace tells click to keep the lines as they are
    _print(current_stats(target).workers)


def current_stats(target: str) -> pb2.GetStatsResponse:
    """What each worker is doing now; ends the process with one line on stderr where that cannot be had."""
    request = pb2.GetStatsRequest()
    response: pb2.GetStatsResponse = _call(
        target, lambda stub, key: stub.GetStats(request, timeout=_ANSWER_S, metadata=key)
    )
    return response


def _call(target: str, ask: Callable[[Any, Any], Any]) -> Any:
    """Asks, with the key as metadata; ends the process with one line on stderr where that fails."""
    try:
        key = authorization(os.environ.get("POLYHEAD_API_KEY"), target, None, allow_plaintext_key=False)
        with map_grpc_errors(), grpc.insecure_channel(target, channel.NO_PROXY) as opened:
            return ask(admin_service_pb2_grpc.AdminServiceStub(opened), key)
    except PolyheadError as error:
        hint = " (was the server started with --admin-listen?)" if isinstance(error, UnavailableError) else ""
        click.echo(f"polyhead: {target}: {' '.join(str(error).split())}{hint}", err=True)
        sys.exit(1 if error.code in {"INTERNAL", "UNKNOWN"} else 2)


def _print(workers: Iterable[message.Message]) -> None:
    for worker in workers:
        click.echo(json.dumps(_plain(worker)))


def _plain(value: Any) -> Any:
    """A message's field as JSON knows it; durations in seconds. Protobuf's own way makes strings of large numbers."""
    if isinstance(value, Duration):
        return value.ToTimedelta().total_seconds()
    if isinstance(value, message.Message):
        return {field.name: _plain(getattr(value, field.name)) for field in value.DESCRIPTOR.fields}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(one) for one in value]
    return value
