"""API keys: the file that stores them, the scopes that each key grants, and a command that creates keys.

::

    python -m polyhead_server.security.api_keys keys.toml shop --scope infer --scope info --days 90

appends an entry to the file and prints the key, which is stored nowhere. The file contains::

    [[keys]]
    name = "shop"
    sha256 = "<64 hexadecimal digits>"
    scopes = ["infer", "info"]
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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from polyhead.v1 import admin_service_pb2, inference_service_pb2

from polyhead_server.errors import PermissionDeniedError, StartupError, UnauthenticatedError

from .file_watcher import ReloadingFile, read_bytes

# Name of the key that authenticated the current call; empty if the server has no keys. It is set in the task of the
# call and inherited by the tasks that it starts, so that logs and metrics can name the caller.
CALLER: contextvars.ContextVar[str] = contextvars.ContextVar("polyhead_caller", default="")

_INFERENCE = inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"]
_ADMIN = admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"]
_RPCS = {
    method.name: f"/{service.full_name}/{method.name}" for service in (_INFERENCE, _ADMIN) for method in service.methods
}

# Methods of the other protocols that the server speaks, by the scope that allows them.
_OIP, _TEI = "/inference.GRPCInferenceService", "/tei.v1"
_DIALECTS = {
    "infer": frozenset(
        {f"{_OIP}/ModelInfer", f"{_OIP}/ModelStreamInfer"}
        | {
            f"{_TEI}.{service}/{method}"
            for service, methods in {
                "Embed": "Embed EmbedStream EmbedSparse EmbedSparseStream EmbedAll EmbedAllStream",
                "Predict": "Predict PredictStream PredictPair PredictPairStream",
                "Rerank": "Rerank RerankStream",
                "Tokenize": "Tokenize TokenizeStream Decode DecodeStream",
            }.items()
            for method in methods.split()
        }
    ),
    "info": frozenset(
        {f"{_OIP}/{method}" for method in ("ServerMetadata", "ModelMetadata", "ModelConfig", "ModelStatistics")}
        | {f"{_OIP}/RepositoryIndex", f"{_TEI}.Info/Info"}
    ),
}

# The methods that each scope allows. The name of an RPC is a scope as well.
SCOPES: dict[str, frozenset[str]] = {
    "infer": frozenset(_RPCS[method.name] for method in _INFERENCE.methods if method.name != "GetModelInfo")
    | _DIALECTS["infer"],
    "info": frozenset({_RPCS["GetModelInfo"]}) | _DIALECTS["info"],
    "admin": frozenset(_RPCS[method.name] for method in _ADMIN.methods),
    **{name: frozenset({path}) for name, path in _RPCS.items()},
}

_SCHEME = "bearer "
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
# 256 bits. A random key of this size cannot be found from its hash, so a slow hash would add cost to every call and no
# protection.
_KEY_BYTES = 32


@dataclass(frozen=True)
class Key:
    """An entry of the key file.

    Attributes:
        name: Name of the caller.
        digest: SHA-256 of the key.
        methods: Full names of the methods that it may call, such as ``/polyhead.v1.InferenceService/Analyze``.
        expiry_s: Unix time at which the key expires.
    """

    name: str
    digest: bytes
    methods: frozenset[str]
    expiry_s: float = float("inf")


class Keys:
    """The keys of a file, which is read again in the background when it changes."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Reads the file.

        Args:
            path: The key file.
            clock: Returns the Unix time.

        Raises:
            StartupError: The file is invalid; states why.
        """
        self._keys = ReloadingFile([path], lambda: read(path))
        self._clock = clock

    def refresh(self) -> None:
        """Reads the file now if it has changed, instead of within ``POLL_INTERVAL_S``."""
        self._keys.refresh()

    def authorize(self, presented: str, method: str) -> str:
        """Returns the name of the presented key if it may call the method.

        The presented key is compared with every key of the file, even after a match, so that the time reveals nothing.

        Raises:
            UnauthenticatedError: There is no such key, or it has expired.
            PermissionDeniedError: The key does not have a scope for this method.
        """
        digest = hashlib.sha256(presented.encode()).digest()
        matching = [key for key in self._keys.value() if hmac.compare_digest(key.digest, digest)]
        if not matching or matching[0].expiry_s <= self._clock():
            raise UnauthenticatedError
        if method not in matching[0].methods:
            raise PermissionDeniedError(matching[0].name)
        return matching[0].name


def bearer_key(headers: Sequence[str]) -> str:
    """Returns the key in ``authorization: Bearer KEY``.

    Args:
        headers: Values of the header ``authorization``.

    Raises:
        UnauthenticatedError: The header is missing, repeated, or of another scheme.
    """
    if len(headers) != 1 or headers[0][: len(_SCHEME)].lower() != _SCHEME:
        raise UnauthenticatedError
    return headers[0][len(_SCHEME) :]


def read(path: Path) -> tuple[Key, ...]:
    """Reads the keys of a file.

    Raises:
        StartupError: The file is missing, others may write to it, or an entry is invalid; names the entry.
    """
    return _parse(_content(path), path)


def _content(path: Path) -> bytes:
    content = read_bytes(path, "the key file")
    # Anyone who can write to the file can grant themselves every scope. Reading it is harmless: hashes of random keys
    # are not secret.
    if path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise StartupError(f"other users may write to the key file {path}; run chmod go-w on it")
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
        raise StartupError(f"{path} is not a valid key file: {error}") from error
    return keys


def _key(number: int, entry: Any) -> Key:
    match entry:
        case {"name": str(name), "sha256": str(digest), "scopes": [*scopes], **others} if set(others) <= {"expires"}:
            pass
        case _:
            raise ValueError(f"key {number} requires name, sha256 and scopes, may have expires, and nothing else")
    if not _NAME.fullmatch(name):
        raise ValueError(f"key {number}: a name has 1 to 64 letters, digits, and _ . -")
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise ValueError(f"key {name}: sha256 must be 64 lower-case hexadecimal digits")
    for scope in scopes:
        if scope not in SCOPES:
            raise ValueError(f"key {name}: {scope!r} is not a valid scope; the scopes are {', '.join(SCOPES)}")
    methods = frozenset[str]().union(*(SCOPES[scope] for scope in scopes))
    return Key(name, bytes.fromhex(digest), methods, _expiry_s(name, others.get("expires")))


def _expiry_s(name: str, expires: Any) -> float:
    if expires is None:
        return float("inf")
    if not isinstance(expires, datetime.datetime) or expires.tzinfo is None:
        raise ValueError(f"key {name}: expires must be a time with its zone, such as 2027-01-31T00:00:00Z")
    return expires.timestamp()


def _require_distinct(field: str, values: Iterable[object]) -> None:
    seen = list(values)
    if len(set(seen)) < len(seen):
        raise ValueError(f"two keys have the same {field}")


def create(path: Path, name: str, scopes: Iterable[str], expires: datetime.datetime | None) -> str:
    """Creates a key and appends its entry to a file; a new file is readable only by its owner.

    Returns:
        The key.

    Raises:
        StartupError: The file, the name or a scope is invalid; nothing is written.
    """
    key = f"polyhead_{secrets.token_urlsafe(_KEY_BYTES)}"
    digest = hashlib.sha256(key.encode()).hexdigest()
    entry = f"[[keys]]\nname = {_quoted(name)}\nsha256 = {_quoted(digest)}\n"
    entry += f"scopes = [{', '.join(map(_quoted, scopes))}]\n"
    if expires:
        entry += f"expires = {expires.isoformat(timespec='seconds')}\n"
    old = _content(path) if path.exists() else b""
    if old.strip() and _parse(old, path):
        entry, mode = f"\n{entry}", os.O_APPEND
    else:
        # TOML cannot append an entry to an empty list (``keys = []``), so the file is replaced.
        old, mode = b"", os.O_TRUNC
    _parse(old + entry.encode(), path)
    # Written in place and not renamed: the file keeps its owner and mode, so that the server can still read it.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | mode, 0o600), "w") as file:
        file.write(entry)
    return key


def _quoted(text: str) -> str:
    # A JSON string is a valid TOML string.
    return json.dumps(text)


_PROGRAM = "python -m polyhead_server.security.api_keys"


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="polyhead", prog_name=_PROGRAM, message="%(prog)s %(version)s")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    type=click.Choice(list(SCOPES)),
    help="A group of methods, or one method, that the key may call; repeatable.",
)
@click.option("--days", type=click.IntRange(min=1), help="Days until the key expires.  [default: never]")
def main(file: Path, name: str, scopes: tuple[str, ...], days: int | None) -> None:
    """Create a key for NAME, append its hash and scopes to FILE, and print the key. The key itself is not stored.

    A running server reads the changed file without a restart. To revoke a key, remove its entry. A new file is readable
    by its owner alone, whatever the umask says.

    \b
    Examples:
      python -m polyhead_server.security.api_keys keys.toml shop --scope infer --scope info --days 90

    \b
    Exit codes:
      0  success; the key is on stdout
      2  invalid command line, name or file; nothing was written
    """  # noqa: D301 (click reads the \b)
    now = datetime.datetime.now(datetime.UTC)
    try:
        click.echo(create(file, name, scopes, now + datetime.timedelta(days=days) if days else None))
    except (StartupError, OSError) as error:
        click.echo(f"polyhead_server.security.api_keys: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main(prog_name=_PROGRAM)
