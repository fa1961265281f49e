"""Reads a configuration file, with overrides from the command line, and says what is wrong with it."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from .config import Config, DataConfig, HeadConfig, ModelConfig, StageConfig, TrainingConfig
from .errors import ConfigError

# The class that describes a section's fields, by the section's dotted name without the indices of lists.
_SECTIONS: dict[str, type[BaseModel]] = {
    "": Config,
    "model": ModelConfig,
    "model.heads": HeadConfig,
    "data": DataConfig,
    "training": TrainingConfig,
    "training.stages": StageConfig,
}


def read_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Reads and validates a configuration.

    Args:
        path: A TOML file.
        overrides: ``key=value`` each: a dotted key, indices of lists included (``training.stages.0.epochs=2``), and
            a TOML value; what is no TOML value is taken as a string.

    Returns:
        The configuration, with every default filled in.

    Raises:
        ConfigError: The file cannot be read, or a field of it cannot be used.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(path, "", f"cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(path, "", f"is not TOML: {error}") from None
    for override in overrides:
        _apply(path, values, override)
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise _explain(path, error.errors(include_url=False)) from None
    config._source = path
    return config


def _apply(path: Path, values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator:
        raise ConfigError(path, "", f"--set {override!r} has no '=': write --set key=value")
    *parents, last = key.strip().split(".")
    target: Any = values
    try:
        for name in parents:
            target = target[int(name)] if isinstance(target, list) else target.setdefault(name, {})
        target[int(last) if isinstance(target, list) else last] = _parse(text.strip())
    except (AttributeError, IndexError, TypeError, ValueError):
        raise ConfigError(
            path, key, "--set finds no such place: lists take the index of an item that the file has"
        ) from None


def _parse(text: str) -> object:
    try:
        values = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return values["value"] if len(values) == 1 else text


def _explain(path: Path, errors: Sequence[ErrorDetails]) -> ConfigError:
    first = errors[0]
    field = ".".join(map(str, first["loc"]))
    reason = _reason(first)
    more = f" ({len(errors) - 1} more at fault)" if len(errors) > 1 else ""
    return ConfigError(path, field, reason + more)


def _reason(error: ErrorDetails) -> str:
    names = [str(part) for part in error["loc"] if isinstance(part, str)]
    section = _SECTIONS.get(".".join(names[:-1])) if names else None
    fields = section.model_fields if section else {}
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(names[-1], fields, n=1)
        return "is not a field: " + (f"did you mean {close[0]}?" if close else f"the fields are {', '.join(fields)}")
    if error["type"] == "missing":
        return f"is missing: {_description(fields, names)}"
    if error["type"] == "value_error":
        # Our own validators name the value and the mend themselves.
        return error["msg"].removeprefix("Value error, ")
    hint = _description(fields, names)
    return f"{error['input']!r}: {error['msg']}{f' ({hint})' if hint else ''}"


def _description(fields: Any, names: Sequence[str]) -> str:
    known = fields.get(names[-1]) if names else None
    return " ".join((known.description or "").split()) if known else ""
