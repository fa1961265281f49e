"""The manifest's JSON Schema, made from its dataclasses: what other languages check a ``bundle.json`` with.

::

    Manifest (bundle/manifest.py) --manifest_schema--> bundle/bundle.schema.json, by

    python -m polyhead_bundle.schema > bundle/polyhead_bundle/bundle.schema.json
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
import types
import typing
from typing import Any, Literal

from polyhead_bundle import FORMAT_VERSION, MANIFEST_NAME, Manifest

SCHEMA_NAME = "bundle.schema.json"

_SIMPLE = {bool: "boolean", int: "integer", float: "number", str: "string", types.NoneType: "null"}


def manifest_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of ``bundle.json``.

    It says which fields there are and of which types. That the parts fit together, and that the digest is right, is
    said by ``polyhead_bundle.load`` alone.
    """
    definitions: dict[str, Any] = {}
    body = _object(Manifest, definitions)
    own = {
        "format_version": {"type": "integer", "const": FORMAT_VERSION},
        "digest": {
            "type": "string",
            "pattern": "^[0-9a-f]{64}$",
            "description": "SHA-256 of this file's one spelling, without this field.",
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:polyhead:bundle:{FORMAT_VERSION}",
        "title": f"polyhead {MANIFEST_NAME}, format version {FORMAT_VERSION}",
        **body,
        "properties": {**own, **body["properties"]},
        "required": [*own, *body["required"]],
        "$defs": definitions,
    }


def render(schema: dict[str, Any]) -> str:
    """The schema as it is committed: two spaces, a final newline."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _object(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """A dataclass as an object of its fields and no other; ``bundle.json`` spells out defaults, so all are required."""
    hints = typing.get_type_hints(kind)
    return {
        "description": " ".join((inspect.getdoc(kind) or "").split()),
        "type": "object",
        "additionalProperties": False,
        "properties": {field.name: _schema(hints[field.name], definitions) for field in dataclasses.fields(kind)},
        "required": [field.name for field in dataclasses.fields(kind)],
    }


def _schema(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """A type as JSON Schema; dataclasses that it names are added to ``definitions``.

    Raises:
        TypeError: No rule says how this type is spelt in JSON.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind in _SIMPLE:
        return {"type": _SIMPLE[kind]}
    if dataclasses.is_dataclass(kind):
        name = typing.cast(type, kind).__name__
        if name not in definitions:
            definitions[name] = _object(kind, definitions)
        return {"$ref": f"#/$defs/{name}"}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (types.UnionType, typing.Union):
        return {"anyOf": [_schema(option, definitions) for option in arguments]}
    if origin is tuple and arguments[1:] == (...,):
        return {"type": "array", "items": _schema(arguments[0], definitions)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1], definitions)}
    raise TypeError(f"{kind} has no rule in {__name__}; add one")


if __name__ == "__main__":
    sys.stdout.write(render(manifest_schema()))
