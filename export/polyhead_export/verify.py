"""Re-checks a bundle: hashes, tokenizer, graph, golden answers, and the gate against the weights in ``torch/``.

::

    BUNDLE --load--> every byte is the written one --contents--> what is in the files is what the manifest says
           --gate--> every variant still answers as the model in torch/ does, on this machine
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
from polyhead_training.tokenization import encode, load_tokenizer
from tokenizers import Tokenizer

from . import bundle, gate
from .bundle import Bundle, Manifest
from .errors import ContentError, GraphError
from .graph import describe_graph, require_no_local_trace
from .layout import CONFIG, TOKENIZER, load_model

# The standard's operators, and those that every onnxruntime brings along.
_KNOWN_DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})


def verify(path: Path, say: Callable[[str], None]) -> Bundle:
    """Re-checks everything about a bundle that can be checked on this machine.

    Args:
        path: The bundle's directory.
        say: Takes each line of the report.

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
    for file in files.values():
        require_graph(file, manifest)
    say("tokenizer and graphs are what the manifest says")
    model = load_model(found.file(CONFIG).parent)
    ids = list(
        encode(load_tokenizer(found.file(TOKENIZER)), [one.text for one in manifest.golden], manifest.max_tokens)
    )
    for name, file in files.items():
        try:
            golden = gate.compare_golden(file, manifest, ids, manifest.variants[name].golden_tolerance)
            checks = (golden, *gate.measure(file, model, ids, manifest.heads))
        except GraphError as error:
            raise ContentError(file, str(error)) from error
        say(f"variant {name}:\n{gate.table(checks)}")
        gate.require_passed(name, checks)
    return found


def require_plain_tokenizer(path: Path) -> None:
    """Refuses a tokenizer that pads or truncates by itself.

    Raises:
        ContentError: It does, or the file is no tokenizer.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers has no class of its own
        raise ContentError(path, f"is no tokenizer: {error}") from error
    if tokenizer.padding is not None or tokenizer.truncation is not None:
        raise ContentError(path, "has padding or truncation switched on")


def require_graph(path: Path, manifest: Manifest) -> None:
    """Refuses a graph that is not self-contained, not for stock onnxruntime, or not the manifest's.

    Raises:
        ContentError: Says which.
    """
    try:
        proto = onnx.load(str(path), load_external_data=False)
        onnx.checker.check_model(proto)
        require_no_local_trace(proto)
    except Exception as error:  # protobuf's and the checker's own errors
        raise ContentError(path, f"is no graph that can be used: {error}") from error
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(proto.graph)):
        raise ContentError(path, "keeps weights in a file outside of it")
    if strangers := {entry.domain for entry in proto.opset_import} - _KNOWN_DOMAINS:
        raise ContentError(path, f"needs operators that stock onnxruntime does not have: {sorted(strangers)}")
    if proto.functions:
        raise ContentError(path, "defines operators of its own")
    if describe_graph(proto) != (manifest.inputs, manifest.outputs):
        raise ContentError(path, "has other inputs or outputs than the manifest says")


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every constant of a graph, those of branches and loops included."""
    yield from graph.initializer
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for branch in (attribute.g, *attribute.graphs):
            yield from _tensors(branch)
