"""Changes of JSON documents that remain JSON, which changed bytes rarely are."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    -(2**63) - 1,
    10**30,
    0.5,
    -0.0,
    1e308,
    "",
    "a",
    "\x00",
    "\ud800",
    "🙂",
    "a" * 5000,
    [],
    {},
    [[[[]]]],
    {"": None},
)
_MAX_CHANGES = 3
# One value of each type.
_TYPES: tuple[Any, ...] = (None, True, 1, 0.5, "a", [], {})


def mutated(data: bytes, seed: int, prefix: int = 0) -> bytes | None:
    """Returns a document with some values replaced, removed, repeated or moved.

    Args:
        data: A JSON document, after ``prefix`` bytes that are kept.
        seed: Selects the changes.
        prefix: Number of bytes before the document.

    Returns:
        The changed document; None if ``data`` is not a JSON object or list.
    """
    try:
        document = json.loads(data[prefix:])
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict | list):
        return None
    rng = random.Random(seed)
    for _ in range(rng.randint(1, _MAX_CHANGES)):
        _change(document, rng)
    return data[:prefix] + json.dumps(document).encode()


def each_value_replaced(data: bytes, prefix: int = 0, at_most: int | None = None) -> Iterator[bytes]:
    """Yields a document for each of its values and each other type, with a value of that type in its place.

    Args:
        data: A JSON document, after ``prefix`` bytes that are kept.
        prefix: Number of bytes before the document.
        at_most: Number of documents, evenly spread over all; None for all.
    """
    document = json.loads(data[prefix:])
    places = [
        (container, key)
        for container in _containers(document)
        for key in (list(container) if isinstance(container, dict) else range(len(container)))
    ]
    replacements = [(container, key, other) for container, key in places for other in _TYPES]
    step = 1 if at_most is None else len(replacements) // at_most + 1
    for container, key, other in replacements[::step]:
        value = container[key]
        container[key] = other
        yield data[:prefix] + json.dumps(document).encode()
        container[key] = value


def _change(document: Any, rng: random.Random) -> None:
    """Changes one value of a document."""
    containers = [one for one in _containers(document) if one]
    if not containers:
        return
    container = rng.choice(containers)
    key = rng.choice(list(container) if isinstance(container, dict) else range(len(container)))
    kind = rng.randrange(5)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, list):
        container.insert(rng.randrange(len(container) + 1), copy.deepcopy(container[key]))
    elif kind == 1:
        container[f"{key}{rng.choice(('', 's', '_', ' '))}x"] = copy.deepcopy(container[key])
    elif kind == 2:
        other = rng.choice(containers)
        container[key] = copy.deepcopy(rng.choice(list(other.values()) if isinstance(other, dict) else other))
    else:
        container[key] = copy.deepcopy(rng.choice(_VALUES))


def _containers(value: Any) -> list[Any]:
    """Returns the objects and lists in a value, itself included."""
    if not isinstance(value, dict | list):
        return []
    inner = value.values() if isinstance(value, dict) else value
    return [value, *(found for one in inner for found in _containers(one))]
