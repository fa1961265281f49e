"""Command-line options for the connection to a server."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from polyhead_client.choices import DEFAULT_TARGET

# numpy and gRPC take longer to import than --help should take.
if TYPE_CHECKING:
    from polyhead_client.client import Client
    from polyhead_client.transport.credentials import Tls


class FiniteRange(click.FloatRange):
    """A range of numbers; ``click.FloatRange`` accepts NaN in every range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parses a number."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


@dataclass(frozen=True)
class ServerOptions:
    """The address of a server and the credentials for it.

    Attributes:
        target: Target of the client.
        tls: None for plain TCP.
        api_key: None for no key.
        allow_plaintext_key: Allow sending the key to another machine without TLS.
        model: Name of the model; None for the server's first one.
    """

    target: str
    tls: Tls | None
    api_key: str | None = field(repr=False)
    allow_plaintext_key: bool
    model: str | None = None

    def connect(self) -> Client:
        """Creates a client."""
        from polyhead_client.client import Client

        return Client(
            self.target,
            tls=self.tls,
            api_key=self.api_key,
            allow_plaintext_key=self.allow_plaintext_key,
            model=self.model,
        )


def server_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the connection options to a command, which receives them as one ``server`` argument."""

    @functools.wraps(command)
    def with_server(**options: Any) -> None:
        command(server=server_options_from(options), **options)

    return with_options(connection_options(DEFAULT_TARGET), with_server)


def server_options_from(options: dict[str, Any]) -> ServerOptions:
    """Takes the values of the connection options out of those of a command.

    Raises:
        click.UsageError: They contradict each other.
    """
    from polyhead_client.transport.credentials import Tls

    tls, ca, cert, key, name = (options.pop(one) for one in ("tls", "ca", "cert", "key", "server_name"))
    if (cert is None) != (key is None):
        raise click.UsageError("--cert and --key belong together; give both")
    return ServerOptions(
        target=options.pop("target"),
        tls=Tls(ca, cert, key, name) if tls or ca or cert or name else None,
        api_key=options.pop("api_key"),
        allow_plaintext_key=options.pop("allow_plaintext_key"),
        model=options.pop("model"),
    )


def connection_options(default_target: str | None) -> list[Callable[..., Any]]:
    """Returns the connection options.

    Args:
        default_target: Target without the flag; None for a command that can do without a server.
    """
    file = click.Path(exists=True, dir_okay=False)
    return [
        click.option(
            "--target",
            metavar="HOST:PORT",
            default=default_target,
            envvar="POLYHEAD_TARGET",
            show_default=True,
            show_envvar=True,
            help="Address of the server, or any other target that gRPC resolves, such as unix:PATH.",
        ),
        _tls_option("--tls", is_flag=True, help="Use TLS. Implied by --ca, --cert and --server-name."),
        _tls_option(
            "--ca", type=file, help="PEM file with the trusted certificates.  [default: the roots that gRPC ships]"
        ),
        _tls_option("--cert", type=file, help="PEM file with the client certificate, for servers that require one."),
        _tls_option("--key", type=file, help="PEM file with the private key of --cert."),
        _tls_option(
            "--server-name",
            metavar="NAME",
            help="Expected name in the server's certificate.  [default: the host in --target]",
        ),
        api_key_option,
        click.option("--allow-plaintext-key", is_flag=True, help="Send the API key to another machine without TLS."),
        model_option(
            "Model that answers, for a server with several; polyhead info lists them.  [default: the server's first]"
        ),
    ]


def model_option(text: str) -> Callable[..., Any]:
    """Returns the option that names a model.

    Args:
        text: What the model is for, and the default.
    """
    return click.option(
        "--model",
        metavar="NAME",
        envvar="POLYHEAD_MODEL",
        show_envvar=True,
        help=text,
    )


def _tls_option(flag: str, **settings: Any) -> Callable[..., Any]:
    variable = "POLYHEAD_" + flag.removeprefix("--").replace("-", "_").upper()
    return click.option(flag, envvar=variable, show_envvar=True, **settings)


def _read_key(_: click.Context, __: click.Parameter, path: str | None) -> str | None:
    if path is None:
        return os.environ.get("POLYHEAD_API_KEY")
    try:
        with click.open_file(path, "rb") as file:
            return bytes(file.read()).decode().strip()
    except UnicodeDecodeError:  # its message would reveal a part of the key
        raise click.BadParameter("not valid UTF-8 text") from None


# No flag takes the key itself: every user of the machine can read command lines.
api_key_option = click.option(
    "--api-key-file",
    "api_key",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    metavar="FILE",
    envvar="POLYHEAD_API_KEY_FILE",
    show_envvar=True,
    callback=_read_key,
    help="File that contains the API key.  [default: the key in $POLYHEAD_API_KEY, if set]",
)


def with_options(options: list[Callable[..., Any]], command: Callable[..., None]) -> Callable[..., None]:
    """Adds options to a command, whose help lists them in this order."""
    for option in reversed(options):
        command = option(command)
    return command
