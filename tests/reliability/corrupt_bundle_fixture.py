"""A second bundle with the same backbone and embedding space, and another calibration of one head."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import polyhead_bundle as bundle
from polyhead_export.fingerprints import compute_fingerprints
from polyhead_training.model import PolyheadModel

# So much softer are the first head's probabilities: far beyond any tolerance.
_SOFTER = 2.0


def with_another_head(source: Path, destination: Path) -> Path:
    """Writes what an export after calibrating the first head anew would have written.

    The temperature is no part of the graph or of the golden logits, so everything else stays as it is; the
    fingerprints are taken by the code that the export takes them with.
    """
    found = bundle.load(source)
    first, *others = found.manifest.heads
    heads = (dataclasses.replace(first, temperature=first.temperature * _SOFTER), *others)
    model = PolyheadModel.from_pretrained(source / "torch").eval()
    tokenizer = found.file(bundle.TOKENIZER).read_bytes()
    variants = {
        name: dataclasses.replace(variant, fingerprints=compute_fingerprints(model, heads, tokenizer, name))
        for name, variant in found.manifest.variants.items()
    }
    manifest = dataclasses.replace(found.manifest, heads=heads, variants=variants)
    bundle.write(destination, manifest, {name: found.file(name) for name in found.manifest.files})
    return destination
