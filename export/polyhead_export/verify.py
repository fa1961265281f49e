"""Verifies a bundle: hashes, tokenizer, graphs, golden outputs, and the gate against the weights in ``torch/``.

::

    BUNDLE --load--> every byte is unchanged --contents--> each file matches the manifest
           --model--> the manifest describes the model in torch/
           --gate--> every variant still matches the model in torch/, on this machine
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import cast

import onnx
from polyhead_bundle import MANIFEST_NAME, Bundle, Manifest, Variant
from polyhead_training.model import PolyheadConfig, PolyheadModel
from polyhead_training.tokenization import encode, load_tokenizer
from polyhead_training.units import format_duration
from tokenizers import Tokenizer

from polyhead_export.quantization.fusion import count_operators

from . import gate
from .errors import ContentError, GraphError
from .fingerprints import compute_fingerprints
from .layout import CONFIG, TOKENIZER, WEIGHTS, load_model
from .novelty import novelty_model
from .onnx_export import describe_embedding, describe_graph, require_no_local_trace
from .runners import SharedRunners, worker_threads
from .settings import BATCH_INVARIANT, Settings, VariantName
from .verify_without_torch import compare_golden, load_checked

DEFAULT_SETTINGS = Settings()
# The ONNX standard's operators, and those that every onnxruntime includes.
_KNOWN_DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})


def verify(path: Path, report: Callable[[str], None], settings: Settings = DEFAULT_SETTINGS) -> Bundle:
    """Checks everything about a bundle that can be checked on this machine.

    Args:
        path: The bundle's directory.
        report: Called with each line of the report.
        settings: The limits of each variant; limits in the manifest are not trusted.

    Returns:
        The bundle.

    Raises:
        BundleError: The directory is not a bundle, or one of its files was changed.
        ContentError: A file does not match the manifest.
        GateError: A variant does not match the trained model.
    """
    found = load_checked(path, report)
    manifest = found.manifest
    files = {name: found.file(variant.file) for name, variant in manifest.variants.items()}
    for name, file in files.items():
        require_graph(file, manifest, manifest.variants[name])
    report("tokenizer and graphs match the manifest")
    # A bundle does not record which fields of a row hold the text and the labels.
    report("accuracy and calibration are not checked again; the manifest keeps the export's figures")
    # Fails unless the manifest lists the weights: transformers would otherwise follow an index to files without a hash.
    found.file(WEIGHTS)
    model = load_model(found.file(CONFIG).parent)
    require_described(found, model.config)
    tokenizer = load_tokenizer(found.file(TOKENIZER))
    with worker_threads() as threads:
        _run_gate(found, files, model, tokenizer, SharedRunners(threads), settings, report)
    return found


def _run_gate(  # noqa: PLR0917
    found: Bundle,
    files: Mapping[str, Path],
    model: PolyheadModel,
    tokenizer: Tokenizer,
    runners: SharedRunners,
    settings: Settings,
    report: Callable[[str], None],
) -> None:
    """Compares every variant with its golden outputs and with the trained model; each text is computed once."""
    manifest, reference = found.manifest, runners.model(model)
    novelty = novelty_model(found.path, manifest.novelty, manifest.embedding.dimensions)
    for name, file in files.items():
        started = time.monotonic()
        limits = settings.limits_of(cast(VariantName, name))
        if manifest.variants[name].batch_invariant != (name in BATCH_INVARIANT):
            raise ContentError(found.path / MANIFEST_NAME, f"variants.{name}.batch_invariant: is wrong for {name}")
        texts = [golden.text for golden in manifest.variants[name].golden]
        ids = list(encode(tokenizer, texts, manifest.max_tokens))
        try:
            # A manifest may tighten the tolerance of an export, not widen it.
            tolerance = min(manifest.variants[name].golden_tolerance, limits.golden)
            graph = runners.graph(file)
            golden = compare_golden(graph, manifest, name, ids, tolerance)
            measured = gate.measure(
                file, model, ids, manifest.heads, limits, graph=graph, reference=reference, novelty=novelty
            )
            checks = (golden, *measured)
        except GraphError as error:
            raise ContentError(file, str(error)) from error
        seconds = format_duration(time.monotonic() - started)
        report(f"variant {name}, checked in {seconds}:\n{gate.format_table(checks)}")
        gate.require_passed(name, checks)
        require_fingerprints(found, name, model)


def require_graph(path: Path, manifest: Manifest, variant: Variant) -> None:
    """Rejects a graph that is not self-contained, requires custom operators, or does not match the manifest.

    Raises:
        ContentError: Names the reason.
    """
    try:
        proto = onnx.load(str(path), load_external_data=False)
        onnx.checker.check_model(str(path))
        require_no_local_trace(proto)
        described = describe_graph(proto)
    except Exception as error:  # protobuf and the checker define their own error types
        raise ContentError(path, f"is not a valid graph: {error}") from error
    if outside := sorted(_external_files(proto.graph) - set(manifest.files)):
        raise ContentError(path, f"stores weights in {outside[0]!r}, which is not a file of the bundle")
    if unknown := {entry.domain for entry in proto.opset_import} - _KNOWN_DOMAINS:
        raise ContentError(path, f"requires operators that onnxruntime does not include: {sorted(unknown)}")
    if proto.functions:
        raise ContentError(path, "defines its own operators")
    if described != (manifest.inputs, manifest.outputs):
        raise ContentError(path, "has other inputs or outputs than the manifest says")
    if count_operators(proto) != variant.operators:
        raise ContentError(path, "has other operators than the manifest says")


def require_described(found: Bundle, config: PolyheadConfig) -> None:
    """Rejects a manifest that contradicts ``torch/config.json``.

    Raises:
        ContentError: Names the field and both values.
    """
    manifest, outputs = found.manifest, config.output_names()
    fields: dict[str, tuple[object, object]] = {
        "heads": (
            [(head.name, head.kind, head.output, list(head.labels)) for head in manifest.heads],
            [(head["name"], head["kind"], outputs[head["name"]], list(head["labels"])) for head in config.heads],
        ),
        "heads.spread": (
            [head.spread for head in manifest.heads],
            [head.get("spread", 1.0) for head in config.heads],
        ),
        "embedding": (manifest.embedding, describe_embedding(config)),
        "max_tokens": (manifest.max_tokens, config.max_tokens),
        "pad_token_id": (manifest.pad_token_id, config.pad_token_id),
        "prompts": (manifest.prompts, config.prompts),
    }
    for field, (actual, expected) in fields.items():
        if actual != expected:
            raise ContentError(found.path / MANIFEST_NAME, f"{field}: is {actual}, but {CONFIG} says {expected}")


def require_fingerprints(found: Bundle, variant: str, model: PolyheadModel) -> None:
    """Rejects a variant whose fingerprints do not match the model, the tokenizer and the heads' calibration.

    Raises:
        ContentError: Names both values.
    """
    actual = found.manifest.variants[variant].fingerprints
    expected = compute_fingerprints(model, found.manifest.heads, found.file(TOKENIZER).read_bytes(), variant)
    if actual != expected:
        reason = f"variants.{variant}.fingerprints: is {actual}, should be {expected}"
        raise ContentError(found.path / MANIFEST_NAME, reason)


def _external_files(graph: onnx.GraphProto) -> set[str]:
    """Names of the other files that hold weights of a graph."""
    external = [tensor for tensor in _tensors(graph) if tensor.data_location == onnx.TensorProto.EXTERNAL]
    entries = [{entry.key: entry.value for entry in tensor.external_data} for tensor in external]
    return {entry.get("location", "") for entry in entries}


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yields every constant of a graph, including those in branches and loops."""
    yield from graph.initializer
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for branch in (attribute.g, *attribute.graphs):
            yield from _tensors(branch)
