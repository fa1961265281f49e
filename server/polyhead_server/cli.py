"""The command ``polyhead-serve``: flags and environment to settings, settings to a server."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import click

from polyhead_server.lifecycle.entry import EXIT_CANNOT_START, report, run

from .errors import StartupError
from .settings import Settings

_HELP = """Serve BUNDLE over gRPC: an embedding, a class and a sentiment for each text, from one pass.

\b
  polyhead-serve build/bundle
  polyhead-serve build/bundle --listen 0.0.0.0:50051 --tls-cert server.pem --tls-key server.key --api-keys keys.toml
  polyhead-serve build/bundle --listen unix:/run/polyhead.sock
  polyhead-serve build/bundle --workers 4
  POLYHEAD_ENGINE=torch polyhead-serve build/bundle

The server listens at once, and its health service says NOT_SERVING until the bundle's golden texts were answered right
on the engine and device that will serve. SIGTERM and SIGINT drain: accepted items are answered, then the server exits;
a second signal ends it at once. SIGHUP loads the bundle again. With --workers, each listens once it is ready, and
nobody before that.

\b
--engine auto and --device auto try, in this order:
  onnx on cuda (where the installed onnxruntime has CUDA), onnx on cpu, torch on cuda, torch on cpu
What was chosen is in the log, in `polyhead info` and in the metrics; why not what came before, in the first two.

Exit codes: 0 stopped as told, 1 the server failed or cut work off, 2 it cannot start as it was told to.
"""


def _options(command: Any) -> Any:
    """One option, with an environment variable, for each field of ``Settings`` that has a help text."""
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


@click.command(help=_HELP, context_settings={"auto_envvar_prefix": "POLYHEAD", "max_content_width": 120})
@click.argument("bundle", type=click.Path(path_type=Path))
@_options
@click.version_option(package_name="polyhead")
def main(**values: Any) -> None:
    """Runs the command line."""
    try:
        settings = Settings(**values)
    except StartupError as error:
        report(error)
        sys.exit(EXIT_CANNOT_START)
    if settings.workers > 1:
        # uvloop cannot start processes safely once gRPC runs, see ``supervisor``.
        run(settings, _supervise, fast_loop=False)
    else:
        run(settings, _serve)


async def _serve(settings: Settings) -> int:
    from polyhead_server.lifecycle.server import serve

    return await serve(settings)


async def _supervise(settings: Settings) -> int:
    from polyhead_server.workers.supervisor import supervise

    return await supervise(settings)
