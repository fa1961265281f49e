"""Fingerprints: identifiers of the embedding space and of each head.

A fingerprint is a hash of everything that an output depends on, and of nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

import torch
from polyhead_bundle import Fingerprints, Head, fingerprint
from polyhead_training.model import PolyheadConfig, PolyheadModel

# Fields that record where a configuration came from and do not affect the outputs.
_PROVENANCE = frozenset({"_name_or_path", "architectures", "dtype", "transformers_version"})


def compute_fingerprints(model: PolyheadModel, heads: Sequence[Head], tokenizer: bytes, precision: str) -> Fingerprints:
    """Computes the fingerprints of one variant of a model.

    Training only the heads of a model changes their fingerprints and keeps that of the embedding space, unless the
    embedding shares the heads' pooling.

    Args:
        model: The trained model.
        heads: Its heads with their calibration.
        tokenizer: The bytes of its ``tokenizer.json``.
        precision: The variant's numeric precision, such as ``fp32``.
    """
    config, weights = model.config, model.state_dict()
    space = fingerprint(
        _hash_weights(weights, ("backbone", "embedding_pooling", "embedding_layers", *_shared_pooling(config))),
        _canonical({key: value for key, value in config.backbone.items() if key not in _PROVENANCE}),
        tokenizer,
        _canonical([config.embedding_pooling, *(config.pooling for _ in _shared_pooling(config)), config.normalize]),
        # A model without such layers has the fingerprint that it had before they were known.
        *([_canonical(config.embedding_layers)] if config.embedding_layers else []),
        _canonical([config.max_tokens, config.pad_token_id, precision]),
    )
    return Fingerprints(space, {head.name: _head_fingerprint(space, config, weights, head) for head in heads})


def _head_fingerprint(space: str, config: PolyheadConfig, weights: Mapping[str, torch.Tensor], head: Head) -> str:
    threshold = head.threshold if head.thresholds is None else head.thresholds
    # A head that never abstains has the fingerprint that it had before heads could.
    abstains = [] if head.abstains_below is None else [head.abstains_below]
    sets = [] if head.prediction_sets is None else ["prediction_sets", head.prediction_sets.threshold]
    settings = [config.pooling, head.kind, head.labels, head.temperature, threshold, *abstains, *sets]
    return fingerprint(space, _hash_weights(weights, ("pooling", f"heads.{head.name}")), _canonical(settings))


def _shared_pooling(config: PolyheadConfig) -> list[str]:
    """The heads' pooling module, if the embedding uses it too."""
    return ["pooling"] if config.embedding_pooling == "shared" else []


def _hash_weights(weights: Mapping[str, torch.Tensor], modules: Iterable[str]) -> str:
    """SHA-256 over the name, type, shape and bytes of every tensor of the modules, sorted by name."""
    digest = hashlib.sha256()
    prefixes = tuple(f"{module}." for module in modules)
    for name in sorted(name for name in weights if name.startswith(prefixes)):
        values = weights[name].contiguous().numpy()
        digest.update(f"{name} {values.dtype} {values.shape} ".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True)
