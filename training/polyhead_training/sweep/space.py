"""The fields that a sweep varies and the values that it may give them.

::

    --range KEY=LOW..HIGH[:log], --choice KEY=A,B,... --parse--> Parameter --> Optuna's distribution
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .toml_text import toml_value

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


@dataclass(frozen=True)
class Parameter:
    """A field that a sweep varies.

    Attributes:
        key: Its dotted key, as in ``--set``.
        choices: The values to choose from, in TOML; empty for a range.
        low: Lowest value of a range.
        high: Highest value of a range.
        log: Whether the logarithm of a range's values is uniform, not the values themselves.
        integer: Whether a range has whole numbers only.
    """

    key: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False

    def distribution(self) -> BaseDistribution:
        """Returns the distribution to draw values from, uniform over the range, its logarithm, or the choices."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices:
            return CategoricalDistribution(self.choices)
        if self.integer:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)


def parse_range(text: str) -> Parameter:
    """Parses ``KEY=LOW..HIGH``, whole numbers if both are, with ``:log`` for a uniform logarithm.

    Raises:
        ValueError: The text has another form, or the range is empty.
    """
    found = re.fullmatch(r"([^=\s]+)=([^=]+?)\.\.([^=]+?)(:log)?", text)
    if not found:
        raise ValueError(f"{text!r} is not a range: write KEY=LOW..HIGH or KEY=LOW..HIGH:log")
    key, *bounds, log = found.groups()
    try:
        low, high = map(float, bounds)
    except ValueError:
        raise ValueError(f"{text!r} is not a range: {bounds[0]} and {bounds[1]} must be numbers") from None
    if not low < high < math.inf:
        raise ValueError(f"{text!r} is empty: the first number must be lower than the second")
    if log and low <= 0:
        raise ValueError(f"{text!r}: a range with :log must start above 0")
    integer = all(re.fullmatch(r"[+-]?\d+", bound) for bound in bounds)
    return Parameter(key, low=low, high=high, log=bool(log), integer=integer)


def parse_choice(text: str) -> Parameter:
    """Parses ``KEY=A,B,...``, TOML values or plain words.

    Raises:
        ValueError: The text has another form, or fewer than two values.
    """
    key, _, values = text.partition("=")
    try:
        choices = tomllib.loads(f"values = [{values}]")["values"]
    except tomllib.TOMLDecodeError:
        choices = [word.strip() for word in values.split(",")]
    if not key.strip() or len(choices) < 2:
        raise ValueError(f"{text!r} is not a choice: write KEY=A,B with at least two values")
    return Parameter(key.strip(), choices=tuple(map(toml_value, choices)))


def overrides(values: Mapping[str, object]) -> list[str]:
    """Returns the overrides of a configuration that set drawn values."""
    return [f"{key}={value}" for key, value in values.items()]
