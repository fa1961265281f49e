"""The ``polyhead-serve`` command: builds the settings from flags and environment variables, and starts the server."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import click

from polyhead_server.lifecycle.entry import EXIT_CANNOT_START, report, run

from .errors import StartupError
from .served_models import parse_bundles
from .settings import Settings

_HELP = """Serve BUNDLE over gRPC: embeddings and the answers of all heads from one forward pass.

\b
Examples:
  polyhead-serve bundles/tickets
  polyhead-serve bundles/tickets --listen 0.0.0.0:50051 --tls-cert server.pem --tls-key server.key --api-keys keys.toml
  polyhead-serve bundles/tickets --listen unix:/run/polyhead.sock
  polyhead-serve bundles/tickets --workers 4
  polyhead-serve bundles/tickets --fronts 4
  polyhead-serve tickets=bundles/tickets reviews=bundles/reviews
  POLYHEAD_ENGINE=torch polyhead-serve bundles/tickets
  polyhead-serve bundles/tickets --check --public-key signing.pub

The server listens immediately. Its health service reports NOT_SERVING until the model has reproduced the bundle's
golden outputs on the selected engine and device. With --workers or --fronts, each process starts to listen once it is
ready.

SIGTERM and SIGINT drain the server: it answers every accepted item, then exits; a second signal exits immediately.
SIGHUP reloads the bundle.

Several bundles, each as NAME=BUNDLE, are served on one address. A request names its model; one without a name is
answered by the first.

\b
--engine auto and --device auto select the first that works:
  onnx on cuda (if the installed onnxruntime supports CUDA), onnx on cpu, torch on cuda, torch on cpu

The log, `polyhead info` and the metrics show the selection; the log and `polyhead info` also show why each earlier
choice was rejected.

\b
Exit codes:
  0  stopped by a signal after answering all accepted items, or --check passed
  1  the server failed, or exited before answering all accepted items
  2  the server cannot start as configured, or --check failed
"""


def _options(command: Any) -> Any:
    """Adds an option with an environment variable for each field of ``Settings`` that has a help text."""
    for field in reversed(dataclasses.fields(Settings)):
        if "help" in field.metadata:
            name = field.name.replace("_", "-")
            choices = field.metadata["choices"]
            command = click.option(
                f"--{name}",
                is_flag=isinstance(field.default, bool),
                default=field.default,
                type=click.Choice(choices) if choices else type(field.default),
                help=field.metadata["help"],
                show_default=True,
                show_envvar=True,
            )(command)
    return command


@click.command(
    help=_HELP,
    context_settings={
        "auto_envvar_prefix": "POLYHEAD",
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
    },
)
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLE | NAME=BUNDLE...")
@click.option(
    "--check",
    is_flag=True,
    help="Verify hashes, graphs, golden outputs and, with --public-key, the signature of BUNDLE on the selected engine "
    "and device, and the files that other flags name; then exit without listening.",
)
@_options
@click.version_option(package_name="polyhead", prog_name="polyhead-serve", message="%(prog)s %(version)s")
def main(bundles: tuple[str, ...], check: bool, **values: Any) -> None:
    """Runs the command line."""
    try:
        settings = Settings(**{**values, **_bundle_settings(bundles, values["served_name"])})
    except StartupError as error:
        report(error)
        sys.exit(EXIT_CANNOT_START)
    if check:
        from polyhead_server.lifecycle.check import run_check

        run_check(settings)
    if settings.workers > 1 or settings.fronts:
        # uvloop cannot start processes safely once gRPC runs, see ``supervisor``.
        run(settings, _supervise, fast_loop=False)
    else:
        run(settings, _serve)


def _bundle_settings(bundles: tuple[str, ...], served_name: str) -> dict[str, Any]:
    """Returns the settings that the positional arguments stand for.

    Raises:
        StartupError: They are invalid, or name one model otherwise than ``--served-name``.
    """
    found = parse_bundles(bundles)
    if served_name and found.get("served_name", served_name) != served_name:
        raise StartupError(f"the model has two names, {found['served_name']} and --served-name {served_name}")
    return found


async def _serve(settings: Settings) -> int:
    from polyhead_server.lifecycle.server import serve

    return await serve(settings)


async def _supervise(settings: Settings) -> int:
    from polyhead_server.workers.supervisor import supervise

    return await supervise(settings)
