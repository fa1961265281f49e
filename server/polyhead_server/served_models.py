"""Several models behind one address: their names, their bundles, and the settings of single models.

``polyhead-serve tickets=DIR reviews=DIR`` serves two models by name; one DIR without a name serves one, as ever.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass
from pathlib import Path
from typing import Any

from .errors import StartupError

# A name is a segment of a URL's path, a metadata value and a label of metrics.
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# Settings that may differ between the models of a server: what a model is loaded and how much it may be sent.
MODEL_SETTINGS = (
    "public_key",
    "signature",
    "engine",
    "device",
    "variant",
    "max_batch_tokens",
    "max_padding",
    "max_queue_s",
    "max_queue_tokens",
    "answer_cache_mb",
    "max_items_per_message",
    "max_characters_per_token",
    "max_windows",
    "stream_window",
    "batch_timeout_s",
    "reload_interval_s",
    "drift_window_s",
    "drift_bucket_s",
    "drift_min_distance",
)


@dataclass(frozen=True)
class ServedBundle:
    """One of several models.

    Attributes:
        name: Its name in requests.
        path: Folder of its bundle.
    """

    name: str
    path: Path


def parse_bundles(arguments: Sequence[str]) -> dict[str, Any]:
    """Returns the settings that the positional arguments of ``polyhead-serve`` stand for.

    Args:
        arguments: One ``DIR``, or ``NAME=DIR`` for each model. A DIR that contains ``=`` is written ``./DIR``.

    Raises:
        StartupError: One of several has no name, or two have the same one.
    """
    bundles = [_parse_bundle(argument) for argument in arguments]
    first = bundles[0]
    if len(bundles) == 1:
        return {"bundle": first.path, "served_name": first.name} if first.name else {"bundle": first.path}
    if unnamed := next((one.path for one in bundles if not one.name), None):
        raise StartupError(f"{unnamed} has no name: each of several bundles is given as NAME=DIR")
    names = [one.name for one in bundles]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise StartupError(f"two bundles have the name {repeated}: name each model once")
    return {"bundle": first.path, "models": tuple(bundles)}


def _parse_bundle(argument: str) -> ServedBundle:
    name, separator, path = argument.partition("=")
    # What precedes the first = of a path such as ./a=b or /bundles/a=b contains a slash.
    if not separator or "/" in name:
        return ServedBundle("", Path(argument))
    if not MODEL_NAME.fullmatch(name):
        raise StartupError(
            f"{argument}: {name!r} is not a valid name: use at most 64 letters, digits, '.', '_' and '-', a letter or "
            "digit first"
        )
    if not path:
        raise StartupError(f"{argument} names no folder: each of several bundles is given as NAME=DIR")
    return ServedBundle(name, Path(path))


def parse_model_settings(
    text: str, names: Sequence[str], known: Mapping[str, Field[Any]], minimums: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """Returns the settings of single models, by the name of the model and of the setting.

    Args:
        text: ``NAME.FLAG=VALUE``, several separated by commas, as in ``reviews.max-queue-s=5``.
        names: Names of the models.
        known: Fields of the settings by their names.
        minimums: Smallest valid value of each numeric setting.

    Raises:
        StartupError: An entry is malformed, names an unknown model or flag, or has an invalid value.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        try:
            name, setting, value = _split(entry, names)
            found[name][setting] = _convert(value, known[setting], minimums.get(setting))
        except ValueError as error:
            raise StartupError(f"--model-settings {entry}: {error}") from error
    return found


def _split(entry: str, names: Sequence[str]) -> tuple[str, str, str]:
    """Returns the model, the setting and the value of ``NAME.FLAG=VALUE``.

    Raises:
        ValueError: States what is wrong with it.
    """
    key, separator, value = entry.partition("=")
    name, _, flag = key.rpartition(".")
    setting = flag.removeprefix("--").replace("-", "_")
    if not separator or not name:
        raise ValueError(f"write NAME.FLAG=VALUE, such as {names[0]}.max-queue-s=5")
    if name not in names:
        raise ValueError(f"there is no model {name}; there are {', '.join(names)}")
    if setting not in MODEL_SETTINGS:
        flags = ", ".join(one.replace("_", "-") for one in MODEL_SETTINGS)
        raise ValueError(f"only these flags may differ between models: {flags}")
    return name, setting, value


def _convert(text: str, field: Field[Any], minimum: float | None) -> Any:
    """Converts a value to the type of a setting.

    Raises:
        ValueError: States what is wrong with it.
    """
    if (choices := field.metadata["choices"]) and text not in choices:
        raise ValueError(f"must be one of {', '.join(choices)}")
    default: Any = field.default
    try:
        value = type(default)(text)
    except ValueError:
        kind = "integer" if isinstance(default, int) else "number"
        raise ValueError(f"is not a valid {kind}") from None
    # Written so that NaN fails.
    if minimum is not None and not value >= minimum:
        raise ValueError(f"is less than the minimum of {minimum}")
    return value
