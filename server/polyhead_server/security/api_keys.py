"""The keys that callers show, and what each may do: the file that holds them, and how to make one.

::

    python -m polyhead_server.security.api_keys keys.toml shop --right infer --right info --days 90

appends an entry to the file and prints the key, which is stored nowhere. What the file holds is::

    [[keys]]
    name = "shop"
    sha256 = "<64 hexadecimal digits>"
    rights = ["infer", "info"]
    expires = 2027-01-31T00:00:00Z
"""

from __future__ import annotations

import contextvars
import datetime
import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import sys
import time
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from polyhead.v1 import admin_service_pb2, inference_service_pb2

from polyhead_server.errors import PermissionDeniedError, StartupError, UnauthenticatedError

from .file_watcher import ReloadingFile, read_bytes

# The name of the key that the call being answered came with; empty where the server has no keys. Set for the task of
# the call and for all that it starts, so that logs and metrics may say who asked.
CALLER: contextvars.ContextVar[str] = contextvars.ContextVar("polyhead_caller", default="")

_INFERENCE = inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"]
_ADMIN = admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"]
_RPCS = {
    method.name: f"/{service.full_name}/{method.name}" for service in (_INFERENCE, _ADMIN) for method in service.methods
}

# Each right and the methods that it allows; the name of an rpc is a right as well.
RIGHTS: dict[str, frozenset[str]] = {
    "infer": frozenset(_RPCS[method.name] for method in _INFERENCE.methods if method.name != "GetModelInfo"),
    "info": frozenset({_RPCS["GetModelInfo"]}),
    "admin": frozenset(_RPCS[method.name] for method in _ADMIN.methods),
    "reflection": frozenset({"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"}),
    **{name: frozenset({path}) for name, path in _RPCS.items()},
}

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
# 256 bits: nobody finds the key to a hash, so that a slow hash would protect nothing and cost every call.
_KEY_BYTES = 32


@dataclass(frozen=True)
class Key:
    """What is known of a key.

    Attributes:
        name: Of whoever holds it.
        digest: Its SHA-256.
        methods: Full names of the methods that it may call, such as ``/polyhead.v1.InferenceService/Analyze``.
        expiry_s: Unix time from which on it is worth nothing.
    """

    name: str
    digest: bytes
    methods: frozenset[str]
    expiry_s: float = float("inf")


class Keys:
    """The keys of a file, which is read again when it changes."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Reads the file.

        Args:
            path: The file.
            clock: Unix time.

        Raises:
            StartupError: The file cannot be used; says why.
        """
        self._keys = ReloadingFile([path], lambda: read(path))
        self._clock = clock

    def authorize(self, shown: str, method: str) -> str:
        """The name of the key that was shown, if it may call the method.

        Every key of the file is compared, whether one fitted or not, so that the time tells nothing.

        Raises:
            UnauthenticatedError: There is no such key, or not any more.
            PermissionDeniedError: The key is good for other methods.
        """
        digest = hashlib.sha256(shown.encode()).digest()
        fitting = [key for key in self._keys.value() if hmac.compare_digest(key.digest, digest)]
        if not fitting or fitting[0].expiry_s <= self._clock():
            raise UnauthenticatedError
        if method not in fitting[0].methods:
            raise PermissionDeniedError
        return fitting[0].name


def read(path: Path) -> tuple[Key, ...]:
    """The keys of a file.

    Raises:
        StartupError: The file is missing, others may write to it, or an entry is not as it should be; says which.
    """
    return _parse(_content(path), path)


def _content(path: Path) -> bytes:
    content = read_bytes(path, "the file of keys")
    # Whoever writes to it calls what they like. To read it helps nobody: hashes of random keys are no secret.
    if path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise StartupError(f"others may write to the file of keys {path}; chmod go-w takes that away")
    return content


def _parse(content: bytes, path: Path) -> tuple[Key, ...]:
    try:
        entries = tomllib.loads(content.decode())["keys"]
        keys = tuple(_key(number, entry) for number, entry in enumerate(entries, 1))
        _require_distinct("name", (key.name for key in keys))
        _require_distinct("sha256", (key.digest for key in keys))
    except KeyError:
        raise StartupError(f'{path} has no entry "keys"; write "keys = []" for none') from None
    except (TypeError, ValueError) as error:
        raise StartupError(f"{path} is no file of keys: {error}") from error
    return keys


def _key(number: int, entry: Any) -> Key:
    match entry:
        case {"name": str(name), "sha256": str(digest), "rights": [*rights], **others} if set(others) <= {"expires"}:
            pass
        case _:
            raise ValueError(f"key {number} must have name, sha256 and rights, may have expires, and nothing else")
    if not _NAME.fullmatch(name):
        raise ValueError(f"key {number}: a name has 1 to 64 letters, digits, and _ . -")
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise ValueError(f"key {name}: sha256 must be 64 lower-case hexadecimal digits")
    for right in rights:
        if right not in RIGHTS:
            raise ValueError(f"key {name}: {right!r} is no right; there are {', '.join(RIGHTS)}")
    methods = frozenset[str]().union(*(RIGHTS[right] for right in rights))
    return Key(name, bytes.fromhex(digest), methods, _expiry_s(name, others.get("expires")))


def _expiry_s(name: str, expires: Any) -> float:
    if expires is None:
        return float("inf")
    if not isinstance(expires, datetime.datetime) or expires.tzinfo is None:
        raise ValueError(f"key {name}: expires must be a time with its zone, such as 2027-01-31T00:00:00Z")
    return expires.timestamp()


def _require_distinct(what: str, values: Iterable[object]) -> None:
    seen = list(values)
    if len(set(seen)) < len(seen):
        raise ValueError(f"two keys have the same {what}")


def make(path: Path, name: str, rights: Iterable[str], expires: datetime.datetime | None) -> str:
    """Appends a new key to a file, and makes the file, for its owner alone, if there is none.

    Returns:
        The key.

    Raises:
        StartupError: The file, the name or a right is no good; then nothing is written.
    """
    key = f"polyhead_{secrets.token_urlsafe(_KEY_BYTES)}"
    digest = hashlib.sha256(key.encode()).hexdigest()
    entry = f"[[keys]]\nname = {_quoted(name)}\nsha256 = {_quoted(digest)}\n"
    entry += f"rights = [{', '.join(map(_quoted, rights))}]\n"
    if expires:
        entry += f"expires = {expires.isoformat(timespec='seconds')}\n"
    old = _content(path) if path.exists() else b""
    if old.strip() and _parse(old, path):
        entry, way = f"\n{entry}", os.O_APPEND
    else:
        # An empty list, which nothing can be appended to, gives way.
        old, way = b"", os.O_TRUNC
    _parse(old + entry.encode(), path)
    # Not by renaming: the owner and the rights of the file stay, so that the server may still read it.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | way, 0o600), "w") as file:
        file.write(entry)
    return key


def _quoted(text: str) -> str:
    # A string of JSON is one of TOML.
    return json.dumps(text)


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("name")
@click.option(
    "--right", "rights", multiple=True, required=True, type=click.Choice(list(RIGHTS)), help="May be repeated."
)
@click.option("--days", type=click.IntRange(min=1), help="Days after which the key is worth nothing.  [default: never]")
def main(file: Path, name: str, rights: tuple[str, ...], days: int | None) -> None:
    """Make a key for NAME, append its hash and rights to FILE, and print the key; it is stored nowhere.

    A running server takes the new file without a restart. To take a key back, remove its entry.
    """
    now = datetime.datetime.now(datetime.UTC)
    try:
        click.echo(make(file, name, rights, now + datetime.timedelta(days=days) if days else None))
    except (StartupError, OSError) as error:
        click.echo(f"polyhead_server.security.api_keys: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
