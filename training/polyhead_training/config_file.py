"""Reader of configuration files, with overrides from the command line and readable error messages."""

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

# Class of each section, by the section's dotted name without list indices.
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
        overrides: ``key=value`` pairs: a dotted key, which may contain list indices
            (``training.stages.0.epochs=2``), and a TOML value; any other value is a string.

    Returns:
        The configuration, with all defaults filled in.

    Raises:
        ConfigError: The file cannot be read, or a field is invalid.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(path, "", f"cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(path, "", f"is not valid TOML: {error}") from None
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
        raise ConfigError(path, "", f"--set {override!r} is not a valid override: write --set key=value")
    *parents, last = key.strip().split(".")
    target: Any = values
    try:
        for name in parents:
            target = target[int(name)] if isinstance(target, list) else target.setdefault(name, {})
        target[int(last) if isinstance(target, list) else last] = _parse(text.strip())
    except (AttributeError, IndexError, TypeError, ValueError):
        raise ConfigError(
            path, key, "--set refers to a field that does not exist; a list requires the index of an existing element"
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
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return ConfigError(path, field, reason + more)


def _reason(error: ErrorDetails) -> str:
    names = [str(part) for part in error["loc"] if isinstance(part, str)]
    section = _SECTIONS.get(".".join(names[:-1])) if names else None
    fields = section.model_fields if section else {}
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(names[-1], fields, n=1)
        return "is not a valid field: " + (
            f"did you mean {close[0]}?" if close else f"the fields are {', '.join(fields)}"
        )
    if error["type"] == "missing":
        return f"is missing: {_description(fields, names)}"
    if error["type"] == "value_error":
        # The validators of config.py include the value and the fix in their message.
        return error["msg"].removeprefix("Value error, ")
    hint = _description(fields, names)
    return f"{error['input']!r}: {error['msg']}{f' ({hint})' if hint else ''}"


def _description(fields: Any, names: Sequence[str]) -> str:
    known = fields.get(names[-1]) if names else None
    return " ".join((known.description or "").split()) if known else ""
