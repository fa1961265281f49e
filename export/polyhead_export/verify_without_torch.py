"""Verifies what can be verified of a bundle where it is served: hashes, tokenizer, graphs and golden outputs.

Requires what the server requires, and neither torch nor transformers nor onnx. ``verify`` does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import polyhead_bundle as bundle
from polyhead_bundle import MANIFEST_NAME, Bundle, Check, Manifest, Tensor
from polyhead_training.tokenization import encode, load_tokenizer, pad, read_tokenizer

from .errors import ContentError, GraphError
from .layout import GOLDEN_LIMITS, TOKENIZER
from .novelty import require_novelty
from .runners import Runner, cpu_session, onnx_runner, run_all

# onnxruntime's names of types, as the manifest names them.
_TYPES = {"tensor(int64)": "int64", "tensor(float)": "float32"}


def verify_without_torch(path: Path, report: Callable[[str], None]) -> Bundle:
    """Checks everything about a bundle that onnxruntime and the tokenizer can check.

    Args:
        path: The bundle's directory.
        report: Called with each line of the report.

    Returns:
        The bundle.

    Raises:
        BundleError: The directory is not a bundle, or one of its files was changed.
        ContentError: A file does not match the manifest, or a graph does not reproduce the golden outputs.
    """
    found = load_checked(path, report)
    manifest = found.manifest
    tokenizer = load_tokenizer(found.file(TOKENIZER))
    for name, variant in manifest.variants.items():
        file = found.file(variant.file)
        texts = [golden.text for golden in variant.golden]
        ids = list(encode(tokenizer, texts, manifest.max_tokens))
        try:
            require_signature(file, manifest)
            # A manifest may tighten the tolerance of an export, not widen it.
            tolerance = min(variant.golden_tolerance, GOLDEN_LIMITS[name])
            check = compare_golden(onnx_runner(file), manifest, name, ids, tolerance)
        except GraphError as error:
            raise ContentError(file, str(error)) from error
        if not check.passed:
            raise ContentError(
                file, f"does not reproduce the golden outputs: off by {check.value:.2g}, tolerance {check.limit:.2g}"
            )
        report(f"variant {name}: {len(ids)} golden texts, off by at most {check.value:.2g}")
    return found


def load_checked(path: Path, report: Callable[[str], None]) -> Bundle:
    """Loads a bundle and checks its tokenizer, its novelty and the names of its variants.

    Raises:
        BundleError: The directory is not a bundle, or one of its files was changed.
        ContentError: A file does not match the manifest, or a variant is unknown.
    """
    found = bundle.load(path)
    report(f"{found.model_id}: {len(found.manifest.files)} files are unchanged")
    require_plain_tokenizer(found.file(TOKENIZER))
    require_novelty(found)
    if unknown := [name for name in found.manifest.variants if name not in GOLDEN_LIMITS]:
        known = ", ".join(GOLDEN_LIMITS)
        raise ContentError(found.path / MANIFEST_NAME, f"variants: {unknown[0]!r} is not one of {known}")
    return found


def require_plain_tokenizer(path: Path) -> None:
    """Rejects a tokenizer with padding or truncation enabled.

    Raises:
        ContentError: Either is enabled, or the file is not a tokenizer.
    """
    try:
        tokenizer = read_tokenizer(path)
    except ValueError as error:
        raise ContentError(path, f"is not a valid tokenizer: {error}") from error
    if tokenizer.padding is not None or tokenizer.truncation is not None:
        raise ContentError(path, "has padding or truncation enabled")


def require_signature(path: Path, manifest: Manifest) -> None:
    """Rejects a graph whose inputs or outputs, as onnxruntime sees them, are not those of the manifest.

    Raises:
        ContentError: They differ.
        GraphError: onnxruntime cannot load the graph.
    """
    session = cpu_session(path)
    described = tuple(tuple(map(_describe, values)) for values in (session.get_inputs(), session.get_outputs()))
    if described != (manifest.inputs, manifest.outputs):
        raise ContentError(path, "has other inputs or outputs than the manifest says")


def _describe(value: onnxruntime.NodeArg) -> Tensor:
    return Tensor(value.name, _TYPES.get(value.type, value.type), tuple(value.shape))


def compare_golden(
    graph: Runner, manifest: Manifest, variant: str, golden: Sequence[Sequence[int]], tolerance: float
) -> Check:
    """Check ``golden``: the largest difference of any output for a golden text from the expected one in the manifest.

    Differences of a regression head are in units of the spread of its training targets.

    Args:
        graph: Runner of the variant's graph, whose outputs are those of the manifest.
        manifest: The manifest with the expected outputs.
        variant: Name of the variant.
        golden: Token ids of its golden texts, in order.
        tolerance: The limit.

    Raises:
        GraphError: onnxruntime cannot run the graph.
    """
    differences = []
    batches = [pad([ids], manifest.pad_token_id) for ids in golden]
    found = run_all(graph, batches, len(batches))
    for expected, outputs in zip(manifest.variants[variant].golden, found, strict=True):
        differences.append(np.abs(outputs[manifest.embedding.output][0] - np.asarray(expected.embedding)))
        differences += [
            np.abs(outputs[head.output][0] - np.asarray(expected.logits[head.name])) / head.spread
            for head in manifest.heads
        ]
    # The largest difference; NaN when any is NaN, which no limit accepts.
    return Check("golden", float(np.max([np.max(values) for values in differences])), tolerance)
