"""The manifest of a bundle: the fields of ``bundle.json`` and the consistency checks between them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Literal

from .reference import Reference, check_reference
from .trust import Abstention, Novelty, PredictionSets, check_abstention, check_novelty, check_prediction_sets

FORMAT_VERSION = 5
# codec.parse completes older manifests. Version 2 has softmax and sigmoid heads alone; version 3 has no abstention,
# no novelty and no reference; version 4 has no prediction sets.
READABLE_VERSIONS = (2, 3, 4, FORMAT_VERSION)
MANIFEST_NAME = "bundle.json"

TOKENIZER = "tokenizer.json"
CONFIG = "torch/config.json"
WEIGHTS = "torch/model.safetensors"
CARD = "README.md"
NOVELTY = "novelty.npy"

# Plain names, at most one folder deep: no file system can resolve such a name to a path outside the bundle.
_FILE_NAME = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]*/)?[A-Za-z0-9][A-Za-z0-9._-]*")
# Names of prompts are those of sentence-transformers' models, such as "query" and "retrieval.passage".
PROMPT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
# Characters of a prompt, an instruction of a few sentences at most, and prompts of a model, one for each of its tasks.
MAX_PROMPT_CHARACTERS = 1000
MAX_PROMPTS = 256
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


HeadKind = Literal["softmax", "sigmoid", "multilabel", "ordinal", "regression"]


@dataclass(frozen=True)
class Head:
    """One head: the graph output that holds its logits, and how logits become a prediction.

    ``kind``: softmax, exactly one label applies; sigmoid, a yes-or-no question with two labels, negative and positive;
    multilabel, each label applies or does not; ordinal, one of ordered labels; regression, a number. ``labels`` are in
    the order of the logits, those of an ordinal head from the lowest to the highest; a regression head has none. Widths
    of the output: softmax and multilabel K for K labels, sigmoid 1, ordinal K - 1 (logit j is the log-odds that the
    answer is above label j), regression 1 (the value itself).

    Logits are divided by ``temperature``, which is 1 for a regression head. ``threshold`` is the lowest probability at
    which a sigmoid head predicts the positive label; null for other kinds. ``thresholds`` are those of a multilabel
    head, one per label; null for other kinds. ``spread`` is the standard deviation of a regression head's training
    targets, the unit in which differences between its outputs are judged; 1 for other kinds. ``abstention`` is null for
    a head that never abstains, as multilabel and regression heads. ``prediction_sets`` is null for a head without them,
    as all but softmax heads.
    """

    name: str
    kind: HeadKind
    output: str
    labels: tuple[str, ...]
    temperature: float = 1.0
    threshold: float | None = None
    thresholds: tuple[float, ...] | None = None
    spread: float = 1.0
    abstention: Abstention | None = None
    prediction_sets: PredictionSets | None = None

    @property
    def width(self) -> int:
        """Number of logits."""
        if self.kind in ("sigmoid", "regression"):
            return 1
        return len(self.labels) - (self.kind == "ordinal")

    @property
    def abstains_below(self) -> float | None:
        """Confidence below which the head abstains; None for a head that never does."""
        return None if self.abstention is None else self.abstention.threshold

    @property
    def label_values(self) -> tuple[float, ...]:
        """The value of each label of an ordinal head.

        The numbers that the labels spell if each spells one, else their places, counted from 1.
        """
        try:
            values = tuple(map(float, self.labels))
        except ValueError:
            values = ()
        if values and all(map(math.isfinite, values)):
            return values
        return tuple(map(float, range(1, len(self.labels) + 1)))


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
    """The content of ``bundle.json``. ``files`` does not list ``bundle.json`` itself; ``digest`` covers that file.

    ``prompts`` maps names to texts. A request that names a prompt has its text put before each of its own texts.
    ``novelty`` is null for a bundle without ``novelty.npy``, ``reference`` for one of a run without validation texts.
    """

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
    prompts: dict[str, str] = dataclass_field(default_factory=dict)
    novelty: Novelty | None = None
    reference: Reference | None = None


def check_manifest(manifest: Manifest) -> None:
    """Rejects a manifest whose fields contradict each other.

    Raises:
        ValueError: Names the field and what is wrong with it.
    """
    for name in manifest.files:
        check_file_name(name)
    _check_graph(manifest)
    check_prompts(manifest.prompts)
    if manifest.novelty is not None:
        check_novelty(manifest.novelty)
    if manifest.reference is not None:
        labels = {head.name: len(head.labels) for head in manifest.heads}
        check_reference(manifest.reference, labels, manifest.embedding.dimensions)
    if manifest.max_tokens < _MIN_TOKENS:
        raise ValueError(f"max_tokens: {manifest.max_tokens} is below {_MIN_TOKENS}, which leaves no token for text")
    if manifest.pad_token_id < 0:
        raise ValueError(f"pad_token_id: {manifest.pad_token_id} is not a token id")
    if "fp32" not in manifest.variants:
        raise ValueError("variants: fp32 is missing; every bundle has it")
    widths = {head.name: head.width for head in manifest.heads}
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


def check_prompts(prompts: Mapping[str, str]) -> None:
    """Rejects prompts that a bundle cannot hold.

    Raises:
        ValueError: There are too many, a name is not one, or a text is empty or too long; the message names the prompt.
    """
    if len(prompts) > MAX_PROMPTS:
        raise ValueError(f"prompts: {len(prompts)} are too many; at most {MAX_PROMPTS} are allowed")
    for name, text in prompts.items():
        if not PROMPT_NAME.fullmatch(name):
            raise ValueError(
                f"prompts: {name[:64]!r} is not a valid name: a letter, then up to 63 letters, digits and ._-"
            )
        if not 0 < len(text) <= MAX_PROMPT_CHARACTERS:
            raise ValueError(f"prompts.{name}: has {len(text)} characters; 1 to {MAX_PROMPT_CHARACTERS} are allowed")


def external_data_name(graph: str) -> str:
    """Name of the file that holds the weights of a graph that is too large for a single ONNX file."""
    return f"{graph}.data"


def _check_known_files(manifest: Manifest) -> None:
    """Rejects files that no reader of a bundle uses."""
    graphs = {variant.file for variant in manifest.variants.values()}
    if (NOVELTY in manifest.files) != (manifest.novelty is not None):
        raise ValueError(f"files: {NOVELTY} {'without' if manifest.novelty is None else 'is missing beside'} novelty")
    known = {TOKENIZER, CONFIG, WEIGHTS, CARD, NOVELTY, *graphs, *map(external_data_name, graphs)}
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
        _check_width(outputs, head.output, head.width, f"heads.{head.name}")


def _require_distinct(where: str, names: list[str]) -> None:
    if len(set(names)) != len(names):
        raise ValueError(f"{where}: duplicate name among {names}")


def _check_width(outputs: Mapping[str, Tensor], name: str, width: int, where: str) -> None:
    if name not in outputs:
        raise ValueError(f"{where}: output {name!r} is not among the graph's outputs {sorted(outputs)}")
    if outputs[name].dims[1:] != (width,):
        raise ValueError(f"{where}: output {name!r} has dims {outputs[name].dims}, expected (batch, {width})")


def _check_head(head: Head) -> None:
    where = f"heads.{head.name}"
    _check_labels(where, head)
    if not 0 < head.temperature < math.inf:
        raise ValueError(f"{where}.temperature: must be above 0; got {head.temperature}")
    if not 0 < head.spread < math.inf:
        raise ValueError(f"{where}.spread: must be above 0; got {head.spread}")
    if head.kind == "regression" and head.temperature != 1:
        raise ValueError(f"{where}.temperature: must be 1 for a regression head, whose output is its answer")
    if head.kind != "regression" and head.spread != 1:
        raise ValueError(f"{where}.spread: must be 1 for a {head.kind} head; only a regression head has one")
    _check_thresholds(where, head)
    if head.abstention is not None:
        if head.kind in {"multilabel", "regression"}:
            raise ValueError(f"{where}.abstention: not allowed for a {head.kind} head")
        check_abstention(f"{where}.abstention", head.abstention)
    if head.prediction_sets is not None:
        if head.kind != "softmax":
            raise ValueError(f"{where}.prediction_sets: not allowed for {_article(head)} {head.kind} head")
        check_prediction_sets(f"{where}.prediction_sets", head.prediction_sets)


def _article(head: Head) -> str:
    return "an" if head.kind == "ordinal" else "a"


def _check_thresholds(where: str, head: Head) -> None:
    for field, found, owner in (
        ("threshold", head.threshold, "sigmoid"),
        ("thresholds", head.thresholds, "multilabel"),
    ):
        if (found is not None) != (head.kind == owner):
            rule = "required for" if head.kind == owner else "not allowed for"
            raise ValueError(f"{where}.{field}: {rule} {_article(head)} {head.kind} head")
    if head.thresholds is not None and len(head.thresholds) != len(head.labels):
        raise ValueError(f"{where}.thresholds: {len(head.thresholds)} for {len(head.labels)} labels; one each")
    for threshold in (head.threshold, *(head.thresholds or ())):
        if threshold is not None and not 0 < threshold < 1:
            raise ValueError(f"{where}.threshold: must be between 0 and 1; got {threshold}")


def _check_labels(where: str, head: Head) -> None:
    if head.kind == "regression":
        if head.labels:
            raise ValueError(f"{where}.labels: a regression head has no labels; got {list(head.labels)}")
        return
    if len(head.labels) < 2 or len(set(head.labels)) != len(head.labels):
        raise ValueError(f"{where}.labels: requires at least two distinct labels; got {list(head.labels)}")
    if head.kind == "sigmoid" and len(head.labels) != 2:
        raise ValueError(f"{where}.labels: a sigmoid head has two labels, negative and positive")


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
