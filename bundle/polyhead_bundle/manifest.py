"""What a bundle says about itself: the fields of ``bundle.json``, and that they do not contradict each other."""

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

# Plain names, at most one folder deep: nothing that any file system could read as a way out of the bundle.
_FILE_NAME = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]*/)?[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class FileEntry:
    """One file of the bundle: its SHA-256 (64 hexadecimal digits) and its size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Tensor:
    """One input or output of the graph; a dimension is its size, or its name when it changes from run to run."""

    name: str
    dtype: str
    dims: tuple[int | str, ...]


@dataclass(frozen=True)
class Head:
    """One head: which output of the graph holds its logits and how they become an answer.

    ``labels`` are in the order of the logits; a sigmoid head has one logit and two labels, negative and positive.
    Logits are divided by ``temperature``; ``threshold`` is the probability from which on a sigmoid head says positive.
    """

    name: str
    kind: Literal["softmax", "sigmoid"]
    output: str
    labels: tuple[str, ...]
    temperature: float = 1.0
    threshold: float | None = None


@dataclass(frozen=True)
class Embedding:
    """The sentence embedding: its size, how it is pooled, and whether its Euclidean length is 1."""

    output: str
    dimensions: int
    pooling: str
    normalized: bool


@dataclass(frozen=True)
class Check:
    """One check of the gate: the measured value and the limit that it had to keep (``value <= limit``)."""

    name: str
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the limit was kept; a value that is not a number never keeps it."""
        return self.value <= self.limit


@dataclass(frozen=True)
class Fingerprints:
    """Names of what answers: of the embedding space, and of each head (16 hexadecimal digits each)."""

    embedding_space: str
    heads: dict[str, str]


@dataclass(frozen=True)
class Golden:
    """A text and the right answer to it: the embedding, and the logits of every head by its name."""

    text: str
    embedding: tuple[float, ...]
    logits: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class Variant:
    """One form of the model's graph, with the proof that it answers as the trained model does.

    ``batch_invariant``: the answer to a text does not depend on the other texts of its batch. ``golden`` are texts with
    this variant's own answers, each text alone; ``golden_tolerance`` is the largest difference from them, on any
    output, that it may show on whatever engine and device it runs. ``operators`` counts the operators of the graph.
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
    """Everything that ``bundle.json`` says. ``files`` does not list ``bundle.json`` itself; ``digest`` covers that."""

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
    """Refuses a manifest whose parts contradict each other.

    Raises:
        ValueError: Names the field and what is wrong with it.
    """
    for name in manifest.files:
        check_file_name(name)
    _check_graph(manifest)
    if manifest.max_tokens < 3:
        raise ValueError(f"max_tokens: {manifest.max_tokens} leaves no room for a token of text")
    if manifest.pad_token_id < 0:
        raise ValueError(f"pad_token_id: {manifest.pad_token_id} is not a token")
    if "fp32" not in manifest.variants:
        raise ValueError("variants: fp32 must be one of them")
    widths = {head.name: _width(head) for head in manifest.heads}
    for key, variant in manifest.variants.items():
        _check_variant(key, variant, manifest.files, set(widths))
        _check_golden(f"variants.{key}.golden", variant.golden, manifest.embedding.dimensions, widths)
    _check_purposes(manifest)


def check_file_name(name: str) -> None:
    """Refuses a name that no file of a bundle may have.

    Raises:
        ValueError: The name is ``bundle.json``, leads out of the bundle, is hidden, or lies too deep.
    """
    if name == MANIFEST_NAME or not _FILE_NAME.fullmatch(name):
        raise ValueError(f"files: {name!r} is not a name that a bundle may hold")


def weights_name(graph: str) -> str:
    """Name of the file that holds the weights of a graph which is too large for one file."""
    return f"{graph}.data"


def _check_purposes(manifest: Manifest) -> None:
    """Every file is one that somebody reads: nothing travels along."""
    graphs = {variant.file for variant in manifest.variants.values()}
    known = {TOKENIZER, CONFIG, WEIGHTS, CARD, *graphs, *map(weights_name, graphs)}
    if strangers := sorted(set(manifest.files) - known):
        raise ValueError(f"files: {strangers[0]!r} is not a file that a bundle has")


def _check_graph(manifest: Manifest) -> None:
    """Every tensor has a name of its own; the embedding and every head read one output each, of the right width."""
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
        raise ValueError(f"{where}: a name stands twice among {names}")


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
        raise ValueError(f"{where}.labels: needs at least two labels, each once; has {list(head.labels)}")
    if not 0 < head.temperature < float("inf"):
        raise ValueError(f"{where}.temperature: must be above 0, is {head.temperature}")
    if head.kind == "sigmoid" and len(head.labels) != 2:
        raise ValueError(f"{where}.labels: a sigmoid head has two labels, negative and positive")
    if (head.threshold is not None) != (head.kind == "sigmoid"):
        raise ValueError(f"{where}.threshold: a sigmoid head has one, a softmax head has none")
    if head.threshold is not None and not 0 < head.threshold < 1:
        raise ValueError(f"{where}.threshold: must lie between 0 and 1, is {head.threshold}")


def _check_variant(key: str, variant: Variant, files: Mapping[str, FileEntry], heads: set[str]) -> None:
    if variant.file not in files:
        raise ValueError(f"variants.{key}.file: {variant.file!r} is not among the bundle's files")
    if not 0 < variant.golden_tolerance < float("inf"):
        raise ValueError(f"variants.{key}.golden_tolerance: must be above 0, is {variant.golden_tolerance}")
    if set(variant.fingerprints.heads) != heads:
        raise ValueError(f"variants.{key}.fingerprints: must name every head")
    failed = [check.name for check in variant.gate if not check.passed]
    if failed or not variant.gate:
        raise ValueError(f"variants.{key}.gate: {'did not pass ' + ', '.join(failed) if failed else 'is empty'}")


def _check_golden(where: str, golden: tuple[Golden, ...], dimensions: int, widths: Mapping[str, int]) -> None:
    if not golden:
        raise ValueError(f"{where}: is empty")
    for index, one in enumerate(golden):
        answered = {head: len(logits) for head, logits in one.logits.items()}
        if len(one.embedding) != dimensions or answered != widths:
            raise ValueError(f"{where}[{index}]: does not answer every output of the model")
