"""Re-checks a bundle: hashes, tokenizer, graph, golden answers, and the gate against the weights in ``torch/``.

::

    BUNDLE --load--> every byte is the written one --contents--> what is in the files is what the manifest says
           --model--> the manifest speaks of the model in torch/
           --gate--> every variant still answers as the model in torch/ does, on this machine
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import polyhead_bundle as bundle
from polyhead_bundle import MANIFEST_NAME, Bundle, Manifest, Variant
from polyhead_training.model import PolyheadConfig, PolyheadModel
from polyhead_training.tokenization import encode, load_tokenizer, read_tokenizer

from polyhead_export.quantization.fusion import operators

from . import gate
from .errors import ContentError, GraphError
from .fingerprints import take_fingerprints
from .layout import CONFIG, TOKENIZER, WEIGHTS, load_model
from .onnx_export import describe_embedding, describe_graph, require_no_local_trace
from .settings import BATCH_INVARIANT, VARIANTS, Limits, Settings

DEFAULT_SETTINGS = Settings()
# The standard's operators, and those that every onnxruntime brings along.
_KNOWN_DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})


def verify(path: Path, say: Callable[[str], None], settings: Settings = DEFAULT_SETTINGS) -> Bundle:
    """Re-checks everything about a bundle that can be checked on this machine.

    Args:
        path: The bundle's directory.
        say: Takes each line of the report.
        settings: What each variant may be off by; what the manifest says of it is not believed.

    Returns:
        The bundle.

    Raises:
        BundleError: The directory is no bundle, or a file of it was changed.
        ContentError: A file is not what the manifest says.
        GateError: A variant does not answer as the trained model does.
    """
    found = bundle.load(path)
    manifest = found.manifest
    say(f"{found.model_id}: {len(manifest.files)} files are as they were written")
    require_plain_tokenizer(found.file(TOKENIZER))
    files = {name: found.file(variant.file) for name, variant in manifest.variants.items()}
    for name, file in files.items():
        require_graph(file, manifest, manifest.variants[name])
    say("tokenizer and graphs are what the manifest says")
    # No file of a bundle says which fields of a row hold the text and the labels.
    say("labelled rows are not answered again: accuracy and calibration stay as the export found them")
    # transformers would also follow an index of weights to files that no hash covers.
    found.file(WEIGHTS)
    model = load_model(found.file(CONFIG).parent)
    require_described(found, model.config)
    tokenizer = load_tokenizer(found.file(TOKENIZER))
    for name, file in files.items():
        limits = _limits_of(found, name, settings)
        if manifest.variants[name].batch_invariant != (name in BATCH_INVARIANT):
            raise ContentError(found.path / MANIFEST_NAME, f"variants.{name}.batch_invariant: is not what {name} is")
        texts = [one.text for one in manifest.variants[name].golden]
        ids = list(encode(tokenizer, texts, manifest.max_tokens))
        try:
            # A manifest may promise more than an export does, not less.
            tolerance = min(manifest.variants[name].golden_tolerance, limits.golden)
            golden = gate.compare_golden(file, manifest, name, ids, tolerance)
            checks = (golden, *gate.measure(file, model, ids, manifest.heads, limits))
        except GraphError as error:
            raise ContentError(file, str(error)) from error
        say(f"variant {name}:\n{gate.table(checks)}")
        gate.require_passed(name, checks)
        require_fingerprints(found, name, model)
    return found


def require_plain_tokenizer(path: Path) -> None:
    """Refuses a tokenizer that pads or truncates by itself.

    Raises:
        ContentError: It does, or the file is no tokenizer.
    """
    try:
        tokenizer = read_tokenizer(path)
    except ValueError as error:
        raise ContentError(path, f"is no tokenizer: {error}") from error
    if tokenizer.padding is not None or tokenizer.truncation is not None:
        raise ContentError(path, "has padding or truncation switched on")


def require_graph(path: Path, manifest: Manifest, variant: Variant) -> None:
    """Refuses a graph that is not self-contained, not for stock onnxruntime, or not the manifest's.

    Raises:
        ContentError: Says which.
    """
    try:
        proto = onnx.load(str(path), load_external_data=False)
        onnx.checker.check_model(str(path))
        require_no_local_trace(proto)
        described = describe_graph(proto)
    except Exception as error:  # protobuf's and the checker's own errors
        raise ContentError(path, f"is no graph that can be used: {error}") from error
    if outside := sorted(_external_files(proto.graph) - set(manifest.files)):
        raise ContentError(path, f"keeps weights in {outside[0]!r}, which is not a file of the bundle")
    if strangers := {entry.domain for entry in proto.opset_import} - _KNOWN_DOMAINS:
        raise ContentError(path, f"needs operators that stock onnxruntime does not have: {sorted(strangers)}")
    if proto.functions:
        raise ContentError(path, "defines operators of its own")
    if described != (manifest.inputs, manifest.outputs):
        raise ContentError(path, "has other inputs or outputs than the manifest says")
    if operators(proto) != variant.operators:
        raise ContentError(path, "has other operators than the manifest says")


def require_described(found: Bundle, config: PolyheadConfig) -> None:
    """Refuses a manifest that says of the model what ``torch/config.json`` does not.

    Raises:
        ContentError: Names the field and both values.
    """
    manifest, outputs = found.manifest, config.output_names()
    said_and_true: dict[str, tuple[object, object]] = {
        "heads": (
            [(head.name, head.kind, head.output, list(head.labels)) for head in manifest.heads],
            [(head["name"], head["kind"], outputs[head["name"]], list(head["labels"])) for head in config.heads],
        ),
        "embedding": (manifest.embedding, describe_embedding(config)),
        "max_tokens": (manifest.max_tokens, config.max_tokens),
        "pad_token_id": (manifest.pad_token_id, config.pad_token_id),
    }
    for field, (said, true) in said_and_true.items():
        if said != true:
            raise ContentError(found.path / MANIFEST_NAME, f"{field}: is {said}, but {CONFIG} says {true}")


def require_fingerprints(found: Bundle, variant: str, model: PolyheadModel) -> None:
    """Refuses a variant whose fingerprints are not those of the model, the tokenizer and the heads' calibration.

    Raises:
        ContentError: They are not.
    """
    said = found.manifest.variants[variant].fingerprints
    true = take_fingerprints(model, found.manifest.heads, found.file(TOKENIZER).read_bytes(), variant)
    if said != true:
        raise ContentError(found.path / MANIFEST_NAME, f"variants.{variant}.fingerprints: is {said}, should be {true}")


def _limits_of(found: Bundle, variant: str, settings: Settings) -> Limits:
    if variant not in VARIANTS:
        known = ", ".join(VARIANTS)
        raise ContentError(found.path / MANIFEST_NAME, f"variants: {variant!r} is none of {known}")
    return settings.limits_of(variant)


def _external_files(graph: onnx.GraphProto) -> set[str]:
    """Names of the files that a graph's weights stand in, besides its own."""
    external = [tensor for tensor in _tensors(graph) if tensor.data_location == onnx.TensorProto.EXTERNAL]
    entries = [{entry.key: entry.value for entry in tensor.external_data} for tensor in external]
    return {one.get("location", "") for one in entries}


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every constant of a graph, those of branches and loops included."""
    yield from graph.initializer
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for branch in (attribute.g, *attribute.graphs):
            yield from _tensors(branch)
