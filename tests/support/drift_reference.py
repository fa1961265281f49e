"""References of bundles, and texts that are like them."""

from __future__ import annotations

import dataclasses
from typing import Any

import polyhead_bundle as bundle

TEXTS = 400
# Of the fake model: topics a, b and c, and the two sentiments.
FAKE = bundle.Reference(
    TEXTS,
    {
        "topic": bundle.HeadReference((0.5, 0.25, 0.25), (0.0,) * 5 + (0.2,) * 5, ()),
        "sentiment": bundle.HeadReference((0.5, 0.5), (0.0,) * 5 + (0.2,) * 5, ()),
    },
    (0.25, 0.5, 0.25),
    0.0,
    0.0,
    (100.0, 5.0),
    (50.0, 2.0),
)
# Of a bundle with a head of each kind.
EVERY_KIND = dataclasses.replace(
    FAKE,
    heads={
        **FAKE.heads,
        "tags": bundle.HeadReference((0.25, 0.5, 0.1), (), ()),
        "stars": bundle.HeadReference((0.2,) * 5, (0.1,) * 10, ()),
        "price": bundle.HeadReference((0.5, 0.5), (), (1.0, 10.0, 100.0)),
    },
)


def with_reference(manifest: bundle.Manifest, **changed: Any) -> bundle.Manifest:
    """Returns the manifest of the fake model with a reference."""
    return dataclasses.replace(manifest, reference=dataclasses.replace(FAKE, **changed))
