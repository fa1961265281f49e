"""The base class of the values that a client returns, and their form in JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

# Fields of the protocol that are float32; their shortest decimals are shorter than those of the equal float64.
_FLOAT32_FIELDS = (
    *("probability", "temperature", "threshold", "thresholds", "value"),
    *("confidence", "novelty", "accuracy", "certainty", "coverage"),
)


class Value:
    """Base class of the values that a client returns."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields by name, as values that ``json.dumps`` accepts.

        Nested values are dicts, tuples and embeddings are lists. A float32 is the shortest decimal that restores it:
        0.9, not the 0.8999999761581421 of the equal float64.
        """
        fields = dataclasses.fields(self)  # type: ignore[arg-type]  # every subclass is a dataclass
        return {one.name: _to_json(getattr(self, one.name), one.name in _FLOAT32_FIELDS) for one in fields}


def _to_json(value: Any, is_float32: bool = False) -> Any:
    converted: Any = value
    match value:
        case Value():
            converted = value.to_dict()
        case np.ndarray():
            converted = [_shortest(number) for number in value]
        case Mapping():
            converted = {key: _to_json(one) for key, one in value.items()}
        case tuple():
            converted = [_to_json(one, is_float32) for one in value]
        case float() if not math.isfinite(value):
            converted = None  # JSON has no infinity
        case float() if is_float32:
            converted = _shortest(value)
    return converted


def _shortest(number: float | np.float32) -> float:
    return float(str(np.float32(number)))
