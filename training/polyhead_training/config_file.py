"""Reader of configuration files, with overrides from the command line and readable error messages.

All mistakes of a file are reported at once, each with its line.
"""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from .abstain_config import AbstainConfig, PredictionSetsConfig
from .config import Config, DataConfig
from .embedding_config import EmbeddingSourceConfig, RetrievalConfig
from .errors import ConfigError
from .model_config import DEFAULT_HEADS, HeadConfig, ModelConfig
from .recipes import with_recipe
from .suggestions import closest, spelling_hint
from .training_config import HeadsConfig, StageConfig, TrainingConfig

# Class of each section, by the section's dotted name without list indices.
_SECTIONS: dict[str, type[BaseModel]] = {
    "": Config,
    "model": ModelConfig,
    "model.heads": HeadConfig,
    "data": DataConfig,
    "training": TrainingConfig,
    "training.stages": StageConfig,
    "training.heads": HeadsConfig,
    "training.heads.abstain": AbstainConfig,
    "training.heads.prediction_sets": PredictionSetsConfig,
    "model.heads.abstain": AbstainConfig,
    "model.heads.prediction_sets": PredictionSetsConfig,
    # Last: an unknown field is more likely one of the sections above.
    "data.embedding": EmbeddingSourceConfig,
    "data.retrieval": RetrievalConfig,
}
# Times that a file is validated again without its invalid values, which hide faults of the sections around them.
_MAX_VALIDATIONS = 5

# Position of a value in the file: keys, and indices of lists.
_Location = tuple[str | int, ...]


def read_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Reads and validates a configuration.

    Args:
        path: A TOML file.
        overrides: ``key=value`` pairs: a dotted key, which may contain list indices
            (``training.stages.0.epochs=2``), and a TOML value; any other value is a string. An index refers to the
            default heads or stages if the file sets none.

    Returns:
        The configuration, with all defaults filled in.

    Raises:
        ConfigError: The file cannot be read, or fields are invalid; the error lists all of them.
    """
    values, lines, errors = _read_values(path, overrides)
    try:
        config = Config.model_validate(values)
    except ValidationError:
        errors += [
            ConfigError(path, field, reason, line=lines.find(field or reason.split()[0]))
            for details in _faults(values)
            for field, reason in _explain(details)
        ]
        errors += _missing_files(path, values, lines)
    if errors:
        raise ConfigError.combine(sorted(errors, key=lambda error: error.line))
    config._source = path
    config._line_of = lines.find
    return config


def read_values(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Reads the fields that a configuration sets, as they are written; takes the same arguments as ``read_config``.

    Raises:
        ConfigError: The file cannot be read, or an override refers to a list element that does not exist.
    """
    values, _, errors = _read_values(path, overrides)
    if errors:
        raise ConfigError.combine(errors)
    return values


def _read_values(path: Path, overrides: Sequence[str]) -> tuple[dict[str, Any], _Lines, list[ConfigError]]:
    """Returns the fields of a file after the overrides, their lines, and the faults of the overrides."""
    text = _read_text(path)
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message, line = str(error), 0
        if found := re.search(r" \(at line (\d+), column (\d+)\)", message):
            message, line = message.replace(found[0], f" (column {found[2]})"), int(found[1])
        raise ConfigError(path, "", f"is not valid TOML: {message}", line=line) from None
    errors = []
    lines = _Lines(text)
    # The default stages depend on the recipe, which another override may set.
    for override in sorted(overrides, key=lambda one: _default_field(values, _names(one)) is not None):
        try:
            lines.forget(_apply(path, values, override))
        except ConfigError as error:
            errors.append(error)
    return values, lines, errors


def _read_text(path: Path) -> str:
    try:
        # Some editors write a byte order mark, which TOML does not allow.
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(path, "", f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(path, "", "is not UTF-8: save the file as UTF-8", line=line) from None


class _Lines:
    """Lines of the fields of a TOML file. A field inside a value has the line on which the value starts."""

    def __init__(self, text: str) -> None:
        self._lines: dict[_Location, int] = {}
        section: _Location = ()
        for number, line in enumerate(text.splitlines(), start=1):
            if found := re.match(r"\s*(\[\[?)([^\[\]]+)\]", line):
                section = self._section(_keys(found[2]), is_list=len(found[1]) == 2)
                self._lines.setdefault(section, number)
            elif found := re.match(r"\s*([\w.\"' -]+?)\s*=", line):
                self._lines.setdefault((*section, *_keys(found[1])), number)

    def find(self, field: str) -> int:
        """Returns the line of a dotted field, or of the section that lacks it; 0 if there is neither."""
        location = tuple(int(key) if key.isdecimal() else key for key in field.split("."))
        starts = (location[:count] for count in range(len(location), 0, -1))
        return next((self._lines[start] for start in starts if start in self._lines), 0)

    def forget(self, location: _Location) -> None:
        """Removes the lines of a field that the command line overrides."""
        for other in [other for other in self._lines if other[: len(location)] == location]:
            del self._lines[other]
        # Without a line of its own, the field would have that of its section.
        self._lines[location] = 0

    def _section(self, keys: _Location, *, is_list: bool) -> _Location:
        if not is_list:
            return keys
        count = sum(1 for other in self._lines if other[:-1] == keys and isinstance(other[-1], int))
        return (*keys, count)


def _keys(text: str) -> _Location:
    return tuple(key.strip(" \"'") for key in text.split("."))


def _apply(path: Path, values: dict[str, Any], override: str) -> _Location:
    """Sets the field that an override names; returns its location."""
    key, separator, text = override.partition("=")
    if not separator:
        raise ConfigError(path, "", f"--set {override!r} is not a valid override: write --set key=value")
    *parents, last = _names(override)
    target: Any = values
    try:
        if field := _default_field(values, (*parents, last)):
            values.setdefault(field[0], {})[field[1]] = _default_list(values, field)
        for name in parents:
            target = target[int(name)] if isinstance(target, list) else target.setdefault(name, {})
        target[int(last) if isinstance(target, list) else last] = _parse(text.strip())
    except (AttributeError, IndexError, TypeError, ValueError):
        raise ConfigError(
            path, key, "--set refers to a field that does not exist; a list requires the index of an existing element"
        ) from None
    return tuple(int(name) if name.isdecimal() else name for name in (*parents, last))


def _names(override: str) -> list[str]:
    """Returns the parts of the key of an override."""
    return override.partition("=")[0].strip().split(".")


def _default_field(values: dict[str, Any], names: Sequence[str]) -> tuple[str, str] | None:
    """Returns the field with a list of sections whose element a key refers to, if the configuration lacks the list."""
    if len(names) < 3 or not names[2].isdecimal() or (names[0], names[1]) not in _DEFAULT_LISTS:
        return None
    section = values.get(names[0], {})
    return (names[0], names[1]) if isinstance(section, dict) and names[1] not in section else None


# The fields whose default is a list of sections.
_DEFAULT_LISTS = {("model", "heads"): DEFAULT_HEADS, ("training", "stages"): TrainingConfig().stages}


def _default_list(values: dict[str, Any], field: tuple[str, str]) -> list[dict[str, Any]]:
    """Returns the default of a list of sections as a file would spell it out; stages are those of the recipe."""
    heads, default = (
        [one.model_dump(mode="json", exclude_unset=True) for one in _DEFAULT_LISTS[name]]
        for name in (("model", "heads"), field)
    )
    if field == ("model", "heads"):
        return heads
    found: list[dict[str, Any]] = with_recipe(values, heads).get("training", {}).get("stages", default)
    return copy.deepcopy(found)


def _parse(text: str) -> object:
    try:
        values = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return values["value"] if len(values) == 1 else text


def _faults(values: dict[str, Any]) -> Iterator[ErrorDetails]:
    """Yields all faults of a configuration.

    A section that contains an invalid value is not compared with others, so its value is removed and the rest
    validated again.
    """
    rest = copy.deepcopy(values)
    known = set()
    for number in range(_MAX_VALIDATIONS):
        try:
            Config.model_validate(rest)
        except ValidationError as error:
            faults = error.errors(include_url=False)
        else:
            return
        for fault in faults:
            # A section that lost invalid elements may also be reported as too short.
            parts = [
                other for other in faults if other is not fault and other["loc"][: len(fault["loc"])] == fault["loc"]
            ]
            if fault["type"] == "too_short" and parts:
                continue
            # Later faults of other types may be effects of the removal.
            if (number == 0 or fault["type"] == "value_error") and (fault["loc"], fault["msg"]) not in known:
                known.add((fault["loc"], fault["msg"]))
                yield fault
        removed = [_remove(rest, fault) for fault in faults]
        if not any(removed):
            return


def _remove(values: dict[str, Any], fault: ErrorDetails) -> bool:
    """Removes an invalid value, or an unknown field, from a configuration; returns whether it could."""
    *parents, last = fault["loc"] or [""]
    target: Any = values
    for key in parents:
        is_present = key in target if isinstance(target, dict) else isinstance(target, list)
        if not is_present:  # a branch of a union, not a key
            return False
        target = target[key]
    if not isinstance(target, dict) or last not in target:
        return False
    if fault["type"] != "extra_forbidden" and isinstance(target[last], dict | list):
        return False
    del target[last]
    return True


def _missing_files(path: Path, values: dict[str, Any], lines: _Lines) -> list[ConfigError]:
    """Returns an error for each missing file, if the section ``data`` is valid by itself."""
    model = values.get("model")
    prompts = model.get("prompts", {}) if isinstance(model, dict) else {}
    try:
        config = Config.model_validate(
            {"name": "any", "data": values.get("data"), "model": {"heads": [_ANY_HEAD], "prompts": prompts}}
        )
        config._source = path
        config._line_of = lines.find
        config.sources()
    except ValidationError:
        return []
    except ConfigError as error:
        return [ConfigError(path, error.field, error.reason, line=error.line), *error.others]
    return []


# A head whose field cannot be the text's.
_ANY_HEAD = {"name": "any", "kind": "softmax", "field": "\0"}


def _explain(error: ErrorDetails) -> Iterator[tuple[str, str]]:
    """Yields the dotted field and the reason of each fault; one validator may report several."""
    field = ".".join(map(str, error["loc"]))
    for reason in _reason(error).split("\n"):
        yield field, reason


def _reason(error: ErrorDetails) -> str:
    names = [str(part) for part in error["loc"] if isinstance(part, str)]
    section = _SECTIONS.get(".".join(names[:-1])) if names else None
    fields = section.model_fields if section else {}
    if error["type"] == "extra_forbidden":
        return f"is not a valid field: {_suggestion(names[-1], fields)}"
    if error["type"] == "missing":
        return f"is missing: {_description(fields, names)}"
    if error["type"] == "value_error":
        # The validators of config.py include the value and the fix in their message.
        return error["msg"].removeprefix("Value error, ")
    hint = _description(fields, names)
    allowed = re.findall(r"'([^']*)'", str(error.get("ctx", {}).get("expected", "")))
    description = f" ({hint.removesuffix('.')})" if hint else ""
    return f"{error['input']!r}: {error['msg']}{spelling_hint(str(error['input']), allowed)}{description}"


def _suggestion(name: str, fields: Any) -> str:
    if close := closest(name, fields):
        return f"did you mean {close}?"
    for section, kind in _SECTIONS.items():
        if name in kind.model_fields:
            return f"did you mean {section}.{name}?" if section else f"did you mean {name}, outside of any section?"
    return f"the fields are {', '.join(fields)}"


def _description(fields: Any, names: Sequence[str]) -> str:
    known = fields.get(names[-1]) if names else None
    return " ".join((known.description or "").split()) if known else ""
