"""Writer of TOML, which the standard library only reads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any


def toml_text(values: Mapping[str, Any]) -> str:
    """Returns a TOML document with these values, as ``tomllib.loads`` would return them."""
    return "\n".join(_table(values, "")).strip() + "\n"


def toml_value(value: object) -> str:
    """Returns a value as it stands on the right of ``=``."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {toml_value(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if isinstance(value, str):
        # JSON leaves the character DEL as it is, which TOML forbids.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else str(value)


def _table(values: Mapping[str, Any], name: str) -> Iterator[str]:
    nested = {key: value for key, value in values.items() if _is_table(value) or _is_table_list(value)}
    yield from (f"{_key(key)} = {toml_value(value)}" for key, value in values.items() if key not in nested)
    for key, value in nested.items():
        path = f"{name}.{_key(key)}" if name else _key(key)
        for one in [value] if _is_table(value) else value:
            yield from ("", f"[{path}]" if _is_table(value) else f"[[{path}]]", *_table(one, path))


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping)


def _is_table_list(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_table, value))


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml_value(name)
