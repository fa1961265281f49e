"""A second bundle with the same backbone and embedding space, and a different calibration of one head."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import polyhead_bundle as bundle
from polyhead_export.fingerprints import compute_fingerprints
from polyhead_training.model import PolyheadModel

# Factor on the temperature of the first head. It changes the probabilities far beyond any tolerance.
_TEMPERATURE_FACTOR = 2.0


def write_bundle_with_other_head(source: Path, destination: Path, factor: float = _TEMPERATURE_FACTOR) -> Path:
    """Writes the bundle that an export would write after a new calibration of the first head.

    The temperature is part of neither the graph nor the golden logits, so everything else stays unchanged. The
    fingerprints are computed by the same code as in the export.

    Args:
        source: The bundle to change.
        destination: Folder of the new bundle.
        factor: Factor on the temperature of the first head.
    """
    found = bundle.load(source)
    first, *others = found.manifest.heads
    heads = (dataclasses.replace(first, temperature=first.temperature * factor), *others)
    model = PolyheadModel.from_pretrained(source / "torch").eval()
    tokenizer = found.file(bundle.TOKENIZER).read_bytes()
    variants = {
        name: dataclasses.replace(variant, fingerprints=compute_fingerprints(model, heads, tokenizer, name))
        for name, variant in found.manifest.variants.items()
    }
    manifest = dataclasses.replace(found.manifest, heads=heads, variants=variants)
    bundle.write(destination, manifest, {name: found.file(name) for name in found.manifest.files})
    return destination
