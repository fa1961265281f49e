"""Converts between ``Manifest`` and ``bundle.json``: one canonical form, strict parsing, errors that name the field."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from .errors import FormatError
from .manifest import FORMAT_VERSION, READABLE_VERSIONS, Manifest, check_manifest


def render(manifest: Manifest) -> bytes:
    """Serializes a manifest in its canonical form.

    Returns:
        UTF-8 JSON with sorted keys, an indent of two spaces, a final newline, and ``digest``, a SHA-256 of the
        canonical form of all other fields.

    Raises:
        ValueError: A number is infinite or NaN.
    """
    body = {"format_version": FORMAT_VERSION, **dataclasses.asdict(manifest)}
    return _canonical({**body, "digest": hashlib.sha256(_canonical(body)).hexdigest()})


def _canonical(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=True, allow_nan=False) + "\n").encode()


# What each version added to the manifest and to each head, with the values that an older manifest implies.
_ADDED_TO_MANIFEST: dict[int, dict[str, Any]] = {3: {"prompts": {}}, 4: {"novelty": None, "reference": None}}
_ADDED_TO_HEADS: dict[int, dict[str, Any]] = {
    3: {"thresholds": None, "spread": 1.0},
    4: {"abstention": None},
    5: {"prediction_sets": None},
}
_KINDS_OF_VERSION_2 = ("softmax", "sigmoid")


def parse(path: Path) -> tuple[Manifest, str, int]:
    """Reads ``bundle.json`` strictly.

    Returns:
        The validated manifest, in the form of this release, its digest (64 hexadecimal digits) and its format version.

    Raises:
        FormatError: The file is not the canonical form of a valid manifest of a supported format version.
    """
    raw = path.read_bytes()
    try:
        document = json.loads(raw, object_pairs_hook=_unique_keys, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise FormatError(path, f"is not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise FormatError(path, "must hold a JSON object")
    version = document.pop("format_version", None)
    # Python treats true and 1.0 as equal to 1; JSON does not.
    if type(version) is not int or version not in READABLE_VERSIONS:
        readable = f"{READABLE_VERSIONS[0]} to {READABLE_VERSIONS[-1]}"
        raise FormatError(path, f"has format_version {version!r}; this release reads {readable}")
    digest = document.pop("digest", None)
    try:
        _check_digest(raw, {"format_version": version, **document}, digest)
        current = document if version == FORMAT_VERSION else _upgrade(document, version)
        manifest = typing.cast(Manifest, _decode(Manifest, current, "bundle.json"))
        check_manifest(manifest)
    except (ValueError, OverflowError, RecursionError) as error:
        raise FormatError(path, str(error)) from None
    return manifest, typing.cast(str, digest), version


def _upgrade(document: Mapping[str, Any], version: int) -> dict[str, Any]:
    """Completes a document of an older version.

    Raises:
        ValueError: It has a field or a kind of head that its version does not have.
    """
    heads = [dict(_require(dict, head, "heads")) for head in _require(list, document.get("heads"), "heads")]
    to_manifest, to_heads = (_added_since(version, added) for added in (_ADDED_TO_MANIFEST, _ADDED_TO_HEADS))
    for entries, added in ((dict(document), to_manifest), *((head, to_heads) for head in heads)):
        if unknown := sorted(entries.keys() & added.keys()):
            raise ValueError(f"unknown fields {unknown} in format version {version}")
    for head in heads:
        if version == 2 and head.get("kind") not in _KINDS_OF_VERSION_2:
            raise ValueError(f"heads: kind {head.get('kind')!r} is not one of {list(_KINDS_OF_VERSION_2)} in version 2")
    return {**document, **to_manifest, "heads": [{**head, **to_heads} for head in heads]}


def _added_since(version: int, added: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    return {name: value for later, fields in added.items() if later > version for name, value in fields.items()}


def _check_digest(raw: bytes, body: Mapping[str, Any], digest: object) -> None:
    if digest != hashlib.sha256(_canonical(body)).hexdigest() or raw != _canonical({**body, "digest": digest}):
        raise ValueError("was changed: its digest does not match its content")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError(f"duplicate key among {sorted(keys)}")
    return dict(pairs)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    """Parses a number and rejects one that overflows: Python reads 1e999 as infinity."""
    if not math.isfinite(value := float(digits)):
        raise ValueError(f"{digits} is too large for a number")
    return value


def _decode(kind: Any, value: Any, where: str) -> Any:
    """Builds a value of a declared type from JSON.

    Args:
        kind: The type: a dataclass, ``Literal``, union, ``tuple[X, ...]``, ``dict[str, X]`` or scalar type.
        value: The parsed JSON.
        where: Path of the value inside the document, for error messages.

    Raises:
        ValueError: A field is unknown, missing or has the wrong type; the message names it.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, value, where)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{where}: {value!r} is not one of {list(arguments)}")
        return value
    if origin is types.UnionType or origin is typing.Union:
        return _decode_union(arguments, value, where)
    if origin is tuple:
        items = _require(list, value, where)
        return tuple(_decode(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(items))
    if origin is dict:
        entries = _require(dict, value, where)
        return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in entries.items()}
    return float(_require((int, float), value, where)) if kind is float else _require(kind, value, where)


def _decode_dataclass(kind: Any, value: Any, where: str) -> Any:
    entries = _require(dict, value, where)
    hints = typing.get_type_hints(kind)
    if set(entries) != set(hints):
        unknown, missing = sorted(set(entries) - set(hints)), sorted(set(hints) - set(entries))
        raise ValueError(f"{where}: unknown fields {unknown}, missing fields {missing}")
    return kind(**{key: _decode(hints[key], item, f"{where}.{key}") for key, item in entries.items()})


def _decode_union(arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    for option in arguments:
        try:
            return None if option is types.NoneType and value is None else _decode(option, value, where)
        except ValueError:
            continue
    raise ValueError(f"{where}: {value!r} has the wrong type")


def _require(kind: Any, value: Any, where: str) -> Any:
    # In Python, bool is a subclass of int; in JSON, true is not a number.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where}: {value!r:.60} has the wrong type")
    if kind is str and not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{where}: {value!r:.60} is not valid Unicode text")
    return value
