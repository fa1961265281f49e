"""The command ``polyhead-serve``: flags and environment to settings, settings to a server."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NoReturn

import click

from . import logs
from .errors import StartupError
from .settings import Settings

# A pass that has ended wants the interpreter, to take the next one, while the event loop is at work. By default it
# waits for up to 5 ms, and a core with it.
_SWITCH_S = 0.0005
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
        _leave(error)
    run(settings, _supervise if settings.workers > 1 else _serve)


def run(settings: Settings, work: Callable[[Settings], Coroutine[Any, Any, int]]) -> None:
    """Does a process's work on an event loop, with its log on standard error; ends the process with its exit code."""
    import uvloop

    sys.setswitchinterval(_SWITCH_S)
    logs.configure(settings.log_level, settings.log_format)
    # The log is ours; what libraries say below a warning is noise to an operator.
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    try:
        code = uvloop.run(work(settings))
    except StartupError as error:
        _leave(error)
    if code:
        logging.shutdown()
        # A thread may still be in the engine, and would crash where the interpreter took its own end under its feet.
        os._exit(code)


def _leave(error: StartupError) -> NoReturn:
    click.echo(f"polyhead-serve: {error}", err=True)
    sys.exit(2)


async def _serve(settings: Settings) -> int:
    from .addresses import require_local
    from .lifecycle import serve

    require_local(settings.admin_listen)
    return await serve(settings)


async def _supervise(settings: Settings) -> int:
    from .workers import WorkerDiedError, supervise

    try:
        return await supervise(settings)
    except WorkerDiedError as error:
        click.echo(f"polyhead-serve: {error}", err=True)
        return 1
