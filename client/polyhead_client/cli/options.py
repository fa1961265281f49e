"""The options of the ``polyhead`` command that say where the server is and how to be let in."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import click

from polyhead_client._base import DEFAULT_TARGET
from polyhead_client.client import Client
from polyhead_client.transport.credentials import Tls


@dataclass(frozen=True)
class Server:
    """Where the server is, and what it takes to be let in.

    Attributes:
        target: As a client takes it.
        tls: None for plain TCP.
        api_key: None for none.
        allow_plaintext_key: Whether the key may leave this machine without TLS.
    """

    target: str
    tls: Tls | None
    api_key: str | None = field(repr=False)
    allow_plaintext_key: bool

    def connect(self) -> Client:
        """A client of it."""
        return Client(self.target, tls=self.tls, api_key=self.api_key, allow_plaintext_key=self.allow_plaintext_key)


def server_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds what all commands share, and hands it over as one ``server``."""
    file = click.Path(exists=True, dir_okay=False)

    @functools.wraps(command)
    def with_server(**options: Any) -> None:
        tls, ca, cert, key, name = (options.pop(one) for one in ("tls", "ca", "cert", "key", "server_name"))
        if (cert is None) != (key is None):
            raise click.UsageError("--cert and --key go together; give both")
        key_file = options.pop("api_key_file")
        server = Server(
            target=options.pop("target"),
            tls=Tls(ca, cert, key, name) if tls or ca or cert or name else None,
            # Not a flag: everybody on the machine sees those.
            api_key=_key_in(key_file) if key_file else os.environ.get("POLYHEAD_API_KEY"),
            allow_plaintext_key=options.pop("allow_plaintext_key"),
        )
        command(server=server, **options)

    options = [
        click.option(
            "--target",
            metavar="HOST:PORT",
            default=DEFAULT_TARGET,
            envvar="POLYHEAD_TARGET",
            show_default=True,
            show_envvar=True,
            help="The server to ask, or any name that gRPC resolves.",
        ),
        _tls_option("--tls", is_flag=True, help="Use TLS; any of the next four does too."),
        _tls_option("--ca", type=file, help="PEM file with the certificates to trust.  [default: public ones]"),
        _tls_option("--cert", type=file, help="PEM file with this client's certificate, if the server asks for one."),
        _tls_option("--key", type=file, help="PEM file with the private key of --cert."),
        _tls_option(
            "--server-name", metavar="NAME", help="Name to expect in the server's certificate, not --target's."
        ),
        click.option(
            "--api-key-file",
            type=click.File("rb"),
            help="File that holds the key to send.  [default: $POLYHEAD_API_KEY, if set]",
        ),
        click.option("--allow-plaintext-key", is_flag=True, help="Send the key over a network without TLS."),
    ]
    return with_options(options, with_server)


def _tls_option(flag: str, **settings: Any) -> Callable[..., Any]:
    variable = "POLYHEAD_" + flag.removeprefix("--").replace("-", "_").upper()
    return click.option(flag, envvar=variable, show_envvar=True, **settings)


def _key_in(file: BinaryIO) -> str:
    try:
        return file.read().decode().strip()
    except UnicodeDecodeError:  # its message would show a part of the key
        raise click.BadParameter("holds no UTF-8 text", param_hint="--api-key-file") from None


def with_options(options: list[Callable[..., Any]], command: Callable[..., None]) -> Callable[..., None]:
    """The command with options that its help shows in this order."""
    for option in reversed(options):
        command = option(command)
    return command
