"""``polyhead admin``: reload, drain and inspect a running server through its admin service."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from .failure import CommandError, describe
from .options import api_key_option, model_option, with_options

# gRPC takes longer to import than --help should take.
if TYPE_CHECKING:
    from google.protobuf import message
    from polyhead.v1 import admin_service_pb2 as pb2

_model_option = model_option("Model, if the server has several.  [default: all]")
SERVICE = "polyhead.v1.AdminService"


def target_option(*, required: bool) -> Callable[..., Any]:
    """Returns the option for the address of the admin service."""
    return click.option(
        "--target",
        metavar="HOST:PORT|unix:PATH",
        required=required,
        envvar="POLYHEAD_ADMIN_TARGET",
        show_envvar=True,
        help="Address of the admin service, as given to polyhead-serve --admin-listen.",
    )


def admin_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of a connection to the admin service, which a command receives as ``target`` and ``api_key``."""
    return with_options([target_option(required=True), api_key_option], command)


# A model may take minutes to load, and the workers load it one after the other; so may what waits for a load.
RELOAD_TIMEOUT_S = 1800.0
TIMEOUT_S = 30.0


@click.group()
def admin() -> None:
    """Reload, drain or inspect a running server, or roll out a new model.

    Every command applies to all workers of the server and requires its admin service, which listens on an address of
    its own.

    \b
    Examples:
      polyhead-serve bundles/tickets --admin-listen unix:/run/polyhead-admin.sock
      polyhead admin stats --target unix:/run/polyhead-admin.sock

    Output is JSON, unless a command says otherwise; reload, promote and stats print one line per worker and model.
    Durations are in seconds. If the server requires API keys, --api-key-file or $POLYHEAD_API_KEY provides one with the
    scope "admin".
    """  # noqa: D301  \b tells click to keep the line breaks


@admin.command()
@admin_options
@click.option(
    "--force", is_flag=True, help="Accept a bundle with a different embedding space, different heads or labels."
)
@_model_option
def reload(target: str, api_key: str | None, force: bool, model: str | None) -> None:
    """Load the bundle again from its path and switch to it.

    Requests that the server has accepted are completed with the old model. Prints the new model and fingerprints of
    each worker. Exit code 2 means that the new bundle was rejected, with the reason on stderr; the old model stays.
    A server with several models reloads all of them, one after the other, or the one that --model names.

    \b
    Examples:
      polyhead admin reload --target unix:/run/polyhead-admin.sock
    """  # noqa: D301  \b tells click to keep the line breaks
    from polyhead.v1 import admin_service_pb2 as pb2

    request = pb2.ReloadRequest(force=force)
    response = call_admin(target, api_key, "Reload", request, model, timeout_s=RELOAD_TIMEOUT_S)
    print_messages(response.workers)


@admin.command()
@admin_options
def drain(target: str, api_key: str | None) -> None:
    """Report NOT_SERVING to health checks, so that load balancers send no new requests.

    The server continues to answer the requests that reach it. Prints nothing.

    \b
    Examples:
      polyhead admin drain --target unix:/run/polyhead-admin.sock
    """  # noqa: D301  \b tells click to keep the line breaks
    from polyhead.v1 import admin_service_pb2 as pb2

    call_admin(target, api_key, "Drain", pb2.DrainRequest())


@admin.command()
@admin_options
@_model_option
def stats(target: str, api_key: str | None, model: str | None) -> None:
    """Print queue lengths, counters and state of each worker.

    Counters start at zero when a worker starts. See "polyhead top" for rates.

    \b
    Examples:
      polyhead admin stats --target unix:/run/polyhead-admin.sock | jq .queued_items
    """  # noqa: D301  \b tells click to keep the line breaks
    print_messages(get_stats(target, api_key, model).workers)


def get_stats(target: str, api_key: str | None, model: str | None = None) -> pb2.GetStatsResponse:
    """Returns the statistics of each worker, of one of its models or of all.

    Raises:
        CommandError: The call failed.
    """
    from polyhead.v1 import admin_service_pb2 as pb2

    response: pb2.GetStatsResponse = call_admin(target, api_key, "GetStats", pb2.GetStatsRequest(), model)
    return response


def get_drift(target: str, api_key: str | None, model: str | None = None) -> pb2.GetDriftResponse:
    """Returns the comparison of a server's traffic with the validation texts of its model, or of one of its models.

    Raises:
        CommandError: The call failed, or the server makes no comparison.
    """
    from polyhead.v1 import admin_service_pb2 as pb2

    response: pb2.GetDriftResponse = call_admin(target, api_key, "GetDrift", pb2.GetDriftRequest(), model)
    return response


def call_admin(
    target: str,
    api_key: str | None,
    method: str,
    request: message.Message,
    model: str | None = None,
    *,
    timeout_s: float = TIMEOUT_S,
) -> Any:
    """Calls a method of the admin service and returns the response.

    Raises:
        CommandError: The call failed.
    """
    import grpc
    from polyhead.v1 import admin_service_pb2_grpc

    from polyhead_client.errors import PolyheadError, map_grpc_errors
    from polyhead_client.transport import channel
    from polyhead_client.transport.credentials import authorization, model_metadata
    from polyhead_client.transport.diagnosis import Diagnosis
    from polyhead_client.transport.target import parse

    try:
        parsed = parse(target)
        metadata = authorization(api_key, parsed, None, allow_plaintext_key=False) + model_metadata(model)
        with map_grpc_errors(), grpc.insecure_channel(target, channel.NO_PROXY) as opened:
            stub = admin_service_pb2_grpc.AdminServiceStub(opened)
            return getattr(stub, method)(request, timeout=timeout_s, metadata=metadata)
    except PolyheadError as failure:
        error, hint = failure, ""
        if failure.code in {"UNAVAILABLE", "UNIMPLEMENTED", "DEADLINE_EXCEEDED"}:
            error = Diagnosis(parsed, None, SERVICE, "--admin-listen").explain(failure)
            if not error.reason:
                hint = " (was the server started with --admin-listen?)"
        exit_code = 1 if error.code in {"INTERNAL", "UNKNOWN"} else 2
        raise CommandError(exit_code, f"{describe(target, error)}{hint}") from error


def print_messages(messages: Iterable[message.Message]) -> None:
    """Prints each message as a line of JSON."""
    for one in messages:
        click.echo(json.dumps(to_json(one)))


def to_json(value: Any) -> Any:
    """Converts a message or its field; durations become seconds. Protobuf's own JSON makes large numbers text."""
    from google.protobuf import message
    from google.protobuf.duration_pb2 import Duration

    if isinstance(value, Duration):
        return value.ToTimedelta().total_seconds()
    if isinstance(value, message.Message):
        return {field.name: to_json(getattr(value, field.name)) for field in value.DESCRIPTOR.fields}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_json(one) for one in value]
    return value
