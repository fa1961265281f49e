"""Calls of one client, run in the client's own environment. Requires the standard library alone.

    python -m tests.interoperability.calls CLIENT < SERVER.json > OUTCOMES.json

imports ``tests.interoperability.clients.CLIENT``, whose functions are registered by ``call`` and ``mistake``, and runs
them against one server::

    @call("openai.OpenAI().embeddings.create", "OpenAI HTTP")
    def create(server: Server) -> Answers:
        ...
        return {"embedding": vectors}
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

# Values for each text: ``embedding`` numbers; ``topic`` and ``sentiment`` probabilities by label, or the label alone.
Answers = dict[str, Sequence[Any]]
# A message is shown in a table; some clients repeat the whole request in it.
_MAX_MESSAGE_CHARACTERS = 400


@dataclass(frozen=True)
class Server:
    """A polyhead server, and how to reach it.

    Attributes:
        grpc: HOST:PORT.
        http: URL without a path.
        model: Name of the served model.
        texts: Texts to send.
        max_items: Maximum number of texts in a request.
        key: API key with the scopes ``infer`` and ``info``; None if the server requires none.
        info_key: API key with the scope ``info`` alone.
        ca: PEM file with the authority of the server's certificate; None for a server in plain text.
    """

    grpc: str
    http: str
    model: str
    texts: list[str]
    max_items: int
    key: str | None = None
    info_key: str | None = None
    ca: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        """Headers, or metadata, of a call with the key."""
        return {"authorization": f"Bearer {self.key}"} if self.key else {}

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """The headers as gRPC takes them."""
        return list(self.headers.items())

    @property
    def ca_bytes(self) -> bytes | None:
        """The content of the authority's file."""
        if self.ca is None:
            return None
        with open(self.ca, "rb") as file:  # noqa: PTH123 - as a user writes it
            return file.read()


Function = Callable[[Server], Answers | Awaitable[Answers]]


@dataclass(frozen=True)
class Call:
    """A registered function.

    Attributes:
        name: The call as the client's users write it, or the mistake.
        protocol: Protocol and transport.
        function: Makes the call.
        kind: ``call``, which must be answered; ``mistake`` and ``limitation``, which the client must refuse.
        plain_only: Why the client cannot make this call over TLS with a key; empty if it can.
    """

    name: str
    protocol: str
    function: Function
    kind: str = "call"
    plain_only: str = ""


_CALLS: list[Call] = []


def call(name: str, protocol: str, *, plain_only: str = "") -> Callable[[Function], Function]:
    """Registers a function that makes a call and returns the answers."""

    def register(function: Function) -> Function:
        _CALLS.append(Call(name, protocol, function, plain_only=plain_only))
        return function

    return register


def mistake(name: str, protocol: str) -> Callable[[Function], Function]:
    """Registers a function that makes a mistake of users; the client must raise."""

    def register(function: Function) -> Function:
        _CALLS.append(Call(name, protocol, function, kind="mistake"))
        return function

    return register


def limitation(name: str, protocol: str) -> Callable[[Function], Function]:
    """Registers a function that users may expect to work and that the client itself refuses; the client must raise."""

    def register(function: Function) -> Function:
        _CALLS.append(Call(name, protocol, function, kind="limitation"))
        return function

    return register


def key_mistakes(protocol: str) -> Callable[[Function], Function]:
    """Registers a call that is made without a key, with a wrong one, and with one that lacks the scope ``infer``."""

    def register(function: Function) -> Function:
        def replaced(key: Callable[[Server], str | None]) -> Function:
            return lambda server: function(replace(server, key=key(server)))

        for name, key in (
            ("no API key", lambda _: None),
            ("wrong API key", lambda _: "mistyped"),
            ("API key without the scope infer", lambda server: server.info_key),
        ):
            _CALLS.append(Call(name, protocol, replaced(key), kind="mistake"))
        return function

    return register


def run(server: Server, only: str = "") -> list[dict[str, Any]]:
    """Makes the registered calls one after the other; an exception ends a call and not the run.

    Args:
        server: Where to send them.
        only: Part of the names to run; empty runs all.
    """
    outcomes = []
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    for one in _CALLS:
        about_keys = "API key" in one.name
        # Refusals that have nothing to do with keys are provoked once, without TLS.
        if only not in one.name or (one.kind != "call" and about_keys != bool(server.key)):
            continue
        if server.key and one.plain_only:
            outcomes.append(_fields(one) | {"skipped": one.plain_only})
        else:
            outcomes.append(_fields(one) | _outcome(one, server, loop))
    return outcomes


def _fields(one: Call) -> dict[str, Any]:
    return {"call": one.name, "protocol": one.protocol, "kind": one.kind}


def _outcome(one: Call, server: Server, loop: asyncio.AbstractEventLoop) -> dict[str, Any]:
    started = time.monotonic()
    try:
        returned = one.function(server)
        # asyncio.run() would leave the thread without an event loop, which some synchronous clients require.
        answers = loop.run_until_complete(returned) if inspect.isawaitable(returned) else returned
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a client raises is the result
        return {"error": _shown(error), "seconds": round(time.monotonic() - started, 2)}
    return {"answers": {name: _plain(values) for name, values in answers.items()}}


def _shown(error: BaseException) -> str:
    """Returns what a user sees of an exception: its class and its message."""
    try:
        message = str(error)
    except Exception as failure:  # noqa: BLE001 - a client's exception may not be printable
        message = f"str() of it raises {type(failure).__name__}: {failure}"
    return f"{type(error).__name__}: {' '.join(message.split())[:_MAX_MESSAGE_CHARACTERS]}"


def _plain(value: Any) -> Any:
    """Returns arrays, numpy numbers and bytes as JSON writes them."""
    if isinstance(value, bytes):
        return value.decode()
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value


def main() -> None:
    """Runs the command line."""
    module = importlib.import_module(f"{__package__}.clients.{sys.argv[1]}")
    server = Server(**json.load(sys.stdin))
    output = os.fdopen(os.dup(1), "w")
    # Clients may print; nothing but the outcomes goes to standard output.
    os.dup2(2, 1)
    with contextlib.redirect_stdout(sys.stderr):
        outcomes = run(server, *sys.argv[2:3])
    # Of a client that is not a Python package.
    versions = module.versions() if hasattr(module, "versions") else {}
    json.dump({"outcomes": outcomes, "versions": versions}, output)


if __name__ == "__main__":
    # The module under its own name, so that the clients register with the same list.
    importlib.import_module("tests.interoperability.calls").main()
