"""The manifest of a bundle: the fields of ``bundle.json`` and the consistency checks between them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

FORMAT_VERSION = 2
MANIFEST_NAME = "bundle.json"

TOKENIZER = "tokenizer.json"
CONFIG = "torch/config.json"
WEIGHTS = "torch/model.safetensors"
CARD = "README.md"

# Plain names, at most one folder deep: no file system can resolve such a name to a path outside the bundle.
_FILE_NAME = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]*/)?[A-Za-z0-9][A-Za-z0-9._-]*")
# [CLS], [SEP] and one token of text.
_MIN_TOKENS = 3


@dataclass(frozen=True)
class FileEntry:
    """One file of the bundle: its SHA-256 (64 hexadecimal digits) and its size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Tensor:
    """One input or output of the graph. A dimension is an integer size, or a name when its size is dynamic."""

    name: str
    dtype: str
    dims: tuple[int | str, ...]


@dataclass(frozen=True)
class Head:
    """One head: the graph output that holds its logits, and how logits become a prediction.

    ``labels`` are in the order of the logits; a sigmoid head has one logit and two labels, negative and positive.
    Logits are divided by ``temperature``. ``threshold`` is the lowest probability at which a sigmoid head predicts the
    positive label; null for a softmax head.
    """

    name: str
    kind: Literal["softmax", "sigmoid"]
    output: str
    labels: tuple[str, ...]
    temperature: float = 1.0
    threshold: float | None = None


@dataclass(frozen=True)
class Embedding:
    """The sentence embedding: its graph output, its size, its pooling, and whether it is scaled to unit length."""

    output: str
    dimensions: int
    pooling: str
    normalized: bool


@dataclass(frozen=True)
class Check:
    """One check of the gate: the measured value and its limit. The check passes when ``value <= limit``."""

    name: str
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the value is within the limit; NaN never is."""
        return self.value <= self.limit


@dataclass(frozen=True)
class Fingerprints:
    """Identifiers of the embedding space and of each head (16 hexadecimal digits each)."""

    embedding_space: str
    heads: dict[str, str]


@dataclass(frozen=True)
class Golden:
    """A golden text and the expected outputs: the embedding, and the logits of every head by its name."""

    text: str
    embedding: tuple[float, ...]
    logits: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class Variant:
    """One form of the model's graph, with the evidence that it matches the trained model.

    ``batch_invariant``: the result for a text does not depend on the other texts in the batch. ``golden`` holds texts
    with the outputs of this variant, each text in a batch of its own; ``golden_tolerance`` is the largest absolute
    difference from them that is allowed, on any output, on any engine and device. ``operators`` counts the operators of
    the graph.
    """

    file: str
    batch_invariant: bool
    golden_tolerance: float
    fingerprints: Fingerprints
    gate: tuple[Check, ...]
    golden: tuple[Golden, ...]
    operators: dict[str, int]


@dataclass(frozen=True)
class Manifest:
    """The content of ``bundle.json``. ``files`` does not list ``bundle.json`` itself; ``digest`` covers that file."""

    name: str
    files: dict[str, FileEntry]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    embedding: Embedding
    heads: tuple[Head, ...]
    max_tokens: int
    pad_token_id: int
    variants: dict[str, Variant]
    built_with: dict[str, str]


def check_manifest(manifest: Manifest) -> None:
    """Rejects a manifest whose fields contradict each other.

    Raises:
        ValueError: Names the field and what is wrong with it.
    """
    for name in manifest.files:
        check_file_name(name)
    _check_graph(manifest)
    if manifest.max_tokens < _MIN_TOKENS:
        raise ValueError(f"max_tokens: {manifest.max_tokens} is below {_MIN_TOKENS}, which leaves no token for text")
    if manifest.pad_token_id < 0:
        raise ValueError(f"pad_token_id: {manifest.pad_token_id} is not a token id")
    if "fp32" not in manifest.variants:
        raise ValueError("variants: fp32 is missing; every bundle has it")
    widths = {head.name: _width(head) for head in manifest.heads}
    for key, variant in manifest.variants.items():
        _check_variant(key, variant, manifest.files, set(widths))
        _check_golden(f"variants.{key}.golden", variant.golden, manifest.embedding.dimensions, widths)
    _check_known_files(manifest)


def check_file_name(name: str) -> None:
    """Rejects a file name that is not allowed in a bundle.

    Raises:
        ValueError: The name is ``bundle.json``, points outside the bundle, is hidden, or is nested too deeply.
    """
    if name == MANIFEST_NAME or not _FILE_NAME.fullmatch(name):
        raise ValueError(f"files: {name!r} is not a valid file name in a bundle")


def external_data_name(graph: str) -> str:
    """Name of the file that holds the weights of a graph that is too large for a single ONNX file."""
    return f"{graph}.data"


def _check_known_files(manifest: Manifest) -> None:
    """Rejects files that no reader of a bundle uses."""
    graphs = {variant.file for variant in manifest.variants.values()}
    known = {TOKENIZER, CONFIG, WEIGHTS, CARD, *graphs, *map(external_data_name, graphs)}
    if unexpected := sorted(set(manifest.files) - known):
        raise ValueError(f"files: unexpected file {unexpected[0]!r}")


def _check_graph(manifest: Manifest) -> None:
    """Checks that names are unique, and that the embedding and each head use one output of the right width."""
    for where, tensors in (("inputs", manifest.inputs), ("outputs", manifest.outputs)):
        _require_distinct(where, [tensor.name for tensor in tensors])
    _require_distinct("heads", [head.name for head in manifest.heads])
    _require_distinct("heads.output", [manifest.embedding.output, *(head.output for head in manifest.heads)])
    outputs = {tensor.name: tensor for tensor in manifest.outputs}
    _check_width(outputs, manifest.embedding.output, manifest.embedding.dimensions, "embedding")
    for head in manifest.heads:
        _check_head(head)
        _check_width(outputs, head.output, _width(head), f"heads.{head.name}")


def _require_distinct(where: str, names: list[str]) -> None:
    if len(set(names)) != len(names):
        raise ValueError(f"{where}: duplicate name among {names}")


def _width(head: Head) -> int:
    """Number of logits of a head."""
    return 1 if head.kind == "sigmoid" else len(head.labels)


def _check_width(outputs: Mapping[str, Tensor], name: str, width: int, where: str) -> None:
    if name not in outputs:
        raise ValueError(f"{where}: output {name!r} is not among the graph's outputs {sorted(outputs)}")
    if outputs[name].dims[1:] != (width,):
        raise ValueError(f"{where}: output {name!r} has dims {outputs[name].dims}, expected (batch, {width})")


def _check_head(head: Head) -> None:
    where = f"heads.{head.name}"
    if len(head.labels) < 2 or len(set(head.labels)) != len(head.labels):
        raise ValueError(f"{where}.labels: requires at least two distinct labels; got {list(head.labels)}")
    if not 0 < head.temperature < float("inf"):
        raise ValueError(f"{where}.temperature: must be above 0; got {head.temperature}")
    if head.kind == "sigmoid" and len(head.labels) != 2:
        raise ValueError(f"{where}.labels: a sigmoid head has two labels, negative and positive")
    if (head.threshold is not None) != (head.kind == "sigmoid"):
        raise ValueError(f"{where}.threshold: required for a sigmoid head, not allowed for a softmax head")
    if head.threshold is not None and not 0 < head.threshold < 1:
        raise ValueError(f"{where}.threshold: must be between 0 and 1; got {head.threshold}")


def _check_variant(key: str, variant: Variant, files: Mapping[str, FileEntry], heads: set[str]) -> None:
    if variant.file not in files:
        raise ValueError(f"variants.{key}.file: {variant.file!r} is not among the bundle's files")
    if not 0 < variant.golden_tolerance < float("inf"):
        raise ValueError(f"variants.{key}.golden_tolerance: must be above 0; got {variant.golden_tolerance}")
    if set(variant.fingerprints.heads) != heads:
        raise ValueError(f"variants.{key}.fingerprints: must name every head")
    failed = [check.name for check in variant.gate if not check.passed]
    if failed or not variant.gate:
        raise ValueError(f"variants.{key}.gate: {'failed ' + ', '.join(failed) if failed else 'is empty'}")


def _check_golden(where: str, golden: tuple[Golden, ...], dimensions: int, widths: Mapping[str, int]) -> None:
    if not golden:
        raise ValueError(f"{where}: is empty")
    for index, expected in enumerate(golden):
        logit_counts = {head: len(logits) for head, logits in expected.logits.items()}
        if len(expected.embedding) != dimensions or logit_counts != widths:
            raise ValueError(f"{where}[{index}]: does not match the model's outputs")
