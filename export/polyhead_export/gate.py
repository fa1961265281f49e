"""The gate: a graph leaves the machine only if it answers as the trained model does, alone and in any company.

::

    golden texts, ragged random batches --torch fp32--> answers --+
                                        --the graph---> answers --+--> differences --> Check, Check, ...
    a text alone, among neighbours, padded --the graph----------------> differences -->
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from polyhead_bundle import Check, Head, Manifest, Tensor
from polyhead_training.model import PolyheadModel
from polyhead_training.tokenization import pad

from .errors import (
    AccuracyError,
    CalibrationError,
    GateError,
    InvarianceError,
    LabelsError,
    NamesError,
    ShapeError,
    ValuesError,
)
from .eval_data import Labelled, labels_of
from .onnx_export import EMBEDDING_OUTPUT, describe_graph, signature
from .runners import Answers, Runner, onnx_pass, torch_pass
from .settings import Limits, Settings

Ids = Sequence[int]

# Which error a failed check raises, by the first part of its name; the order is that of importance.
_ERRORS: dict[str, type[GateError]] = {
    "names": NamesError,
    "dims": ShapeError,
    "golden": ValuesError,
    "difference": ValuesError,
    "cosine_distance": ValuesError,
    "other_labels": LabelsError,
    "accuracy_drop": AccuracyError,
    "macro_f1_drop": AccuracyError,
    "calibration": CalibrationError,
    "alone_or_batched": InvarianceError,
    "padded_or_not": InvarianceError,
}
# A batch of the server holds about this many short texts.
_NEIGHBOURS = 7


DEFAULT_LIMITS = Settings().limits_of("fp32")


# A graph may answer with what is no number. The checks say so, numpy's warnings need not.
@np.errstate(invalid="ignore", divide="ignore")
def measure(  # noqa: PLR0917
    path: Path,
    model: PolyheadModel,
    golden: Sequence[Ids],
    heads: Sequence[Head],
    limits: Limits = DEFAULT_LIMITS,
    labelled: Labelled | None = None,
) -> tuple[Check, ...]:
    """Holds a graph against the trained model.

    Args:
        path: The ONNX file.
        model: The trained model, fp32.
        golden: Token ids of the golden texts, special tokens included.
        heads: The heads with their calibration, in the model's order.
        limits: What the graph may be off by.
        labelled: Held-out rows; without them nothing is said about accuracy and calibration.

    Returns:
        Every check, failed ones too; only ``names`` and ``dims`` when these failed, since nothing else can be compared.
    """
    checks = compare_signatures(signature(model.config), describe_graph(onnx.load(path, load_external_data=False)))
    if not all(check.passed for check in checks):
        return checks
    graph, reference = onnx_pass(path), torch_pass(model)
    neighbours = _Neighbours(model)
    texts: list[list[Ids]] = [[ids] for ids in golden]
    batches = [pad(batch, model.config.pad_token_id) for batch in [*texts, *neighbours.ragged_batches()]]
    pairs = [(graph(*batch), reference(*batch)) for batch in batches]
    rows = labelled.answer(graph) if labelled else None
    return (
        *checks,
        *_compare_values(pairs, labelled, rows, limits),
        Check("other_labels", _other_labels(pairs[: len(golden)], labelled, rows, heads), limits.other_labels),
        *(_compare_scores(labelled, rows, heads, limits) if labelled and rows else ()),
        *_compare_company(graph, golden, neighbours, heads, limits),
    )


def compare_golden(path: Path, manifest: Manifest, variant: str, golden: Sequence[Ids], tolerance: float) -> Check:
    """Check ``golden``: the largest difference of any answer to a golden text from the one in the manifest.

    Args:
        path: The variant's ONNX file, whose outputs are those of the manifest.
        manifest: The manifest with the golden answers.
        variant: Name of the variant.
        golden: Token ids of its golden texts, in order.
        tolerance: The limit.
    """
    graph = onnx_pass(path)
    differences = []
    for expected, ids in zip(manifest.variants[variant].golden, golden, strict=True):
        answers = graph(*pad([ids], manifest.pad_token_id))
        differences.append(np.abs(answers[manifest.embedding.output][0] - np.asarray(expected.embedding)))
        differences += [
            np.abs(answers[head.output][0] - np.asarray(expected.logits[head.name])) for head in manifest.heads
        ]
    return Check("golden", _worst(differences), tolerance)


def require_passed(variant: str, checks: Sequence[Check]) -> None:
    """Refuses a variant of which a check failed.

    Raises:
        NamesError, ShapeError, ValuesError, InvarianceError: By the most important check that failed; holds all of them.
    """
    importance = list(_ERRORS)
    failed = [check for check in checks if not check.passed]
    if failed:
        failed.sort(key=lambda check: importance.index(_kind(check)))
        raise _ERRORS[_kind(failed[0])](variant, failed)


def table(checks: Sequence[Check]) -> str:
    """The checks as lines of text: name, value, limit, and whether it passed."""
    width = max(len(check.name) for check in checks)
    rows = [
        f"  {check.name:{width}}  {check.value:9.2g}  {check.limit:9.2g}  {'ok' if check.passed else 'FAILED'}"
        for check in checks
    ]
    return "\n".join([f"  {'check':{width}}  {'value':>9}  {'limit':>9}", *rows])


def compare_signatures(
    expected: tuple[tuple[Tensor, ...], tuple[Tensor, ...]], found: tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
) -> tuple[Check, Check]:
    """Checks ``names`` (inputs and outputs, in order) and ``dims`` (with types): how many differ; none may."""
    pairs = [pair for side in zip(expected, found, strict=True) for pair in zip_longest(*side)]
    named = [(a, b) for a, b in pairs if a is not None and b is not None and a.name == b.name]
    return Check("names", len(pairs) - len(named), 0), Check("dims", sum(a != b for a, b in named), 0)


class _Neighbours:
    """Random texts, the same ones in every run."""

    def __init__(self, model: PolyheadModel) -> None:
        self._random = np.random.default_rng(0)
        self.max_tokens = model.config.max_tokens
        self.pad_token_id = model.config.pad_token_id
        vocabulary = np.arange(model.config.backbone_config().vocab_size)
        # RoBERTa takes padding inside a text for the end of it, whatever the mask says.
        self._vocabulary = vocabulary[vocabulary != self.pad_token_id]

    def texts(self, count: int, longest: int) -> list[list[int]]:
        """``count`` texts of 1 to ``longest`` tokens."""
        lengths = self._random.integers(1, min(longest, self.max_tokens), size=count, endpoint=True)
        return [self._random.choice(self._vocabulary, size=length).tolist() for length in lengths]

    def ragged_batches(self) -> Iterator[list[Ids]]:
        """Batches of the shapes that break fixed dimensions: one text, many texts, the longest text."""
        for count, longest in ((1, 3), (7, 33), (33, 7), (2, self.max_tokens)):
            (longest_text,) = [self._random.choice(self._vocabulary, size=min(longest, self.max_tokens)).tolist()]
            yield [*self.texts(count - 1, longest), longest_text]


def _compare_values(
    pairs: Sequence[tuple[Answers, Answers]], labelled: Labelled | None, rows: Answers | None, limits: Limits
) -> list[Check]:
    both = [*pairs, (rows, labelled.reference)] if labelled and rows else list(pairs)
    worst = {name: _worst([np.abs(ours[name] - theirs[name]) for ours, theirs in both]) for name in pairs[0][1]}
    distances = [_cosine_distance(ours[EMBEDDING_OUTPUT], theirs[EMBEDDING_OUTPUT]) for ours, theirs in both]
    allowed = {EMBEDDING_OUTPUT: limits.difference}
    return [
        *(
            Check(f"difference.{name}", value, allowed.get(name, limits.logit_difference))
            for name, value in worst.items()
        ),
        Check("cosine_distance.mean", float(np.mean(np.concatenate(distances))), limits.cosine_mean),
        Check("cosine_distance.worst", _worst(distances), limits.cosine_worst),
    ]


def _other_labels(
    golden: Sequence[tuple[Answers, Answers]], labelled: Labelled | None, rows: Answers | None, heads: Sequence[Head]
) -> float:
    """Share of the answers that have another label."""
    both = [*golden, (rows, labelled.reference)] if labelled and rows else golden
    others = [labels_of(ours, head) != labels_of(theirs, head) for ours, theirs in both for head in heads]
    return float(np.concatenate(others).mean()) if heads else 0.0


def _compare_scores(labelled: Labelled, rows: Answers, heads: Sequence[Head], limits: Limits) -> Iterator[Check]:
    """What each head loses on the labelled rows, and how far its calibration moves."""
    for column, head in enumerate(heads):
        if not labelled.known(column):
            continue
        ours, theirs = labelled.score(rows, head, column), labelled.score(labelled.reference, head, column)
        drops = (("accuracy", limits.accuracy_drop), ("macro_f1", limits.macro_f1_drop))
        for measure_name, limit in drops:
            drop = getattr(theirs, measure_name) - getattr(ours, measure_name)
            yield Check(f"{measure_name}_drop.{head.name}", max(0.0, drop), limit)
        yield Check(f"calibration.{head.name}", abs((ours.ece or 0.0) - (theirs.ece or 0.0)), limits.calibration)


def _compare_company(
    graph: Runner, golden: Sequence[Ids], neighbours: _Neighbours, heads: Sequence[Head], limits: Limits
) -> list[Check]:
    batched, padded = [], []
    for index, ids in enumerate(golden):
        alone = _answer(graph(*pad([ids], neighbours.pad_token_id)), heads, 0)
        row = index % (_NEIGHBOURS + 1)
        company = neighbours.texts(_NEIGHBOURS, 2 * len(ids))
        together = graph(*pad([*company[:row], ids, *company[row:]], neighbours.pad_token_id))
        batched.append(_apart(_answer(together, heads, row), alone))
        input_ids, mask = pad([ids, [0] * neighbours.max_tokens], neighbours.pad_token_id)  # (2, T)
        padded.append(_apart(_answer(graph(input_ids[:1], mask[:1]), heads, 0), alone))
    return [
        Check("alone_or_batched", _worst(batched), limits.invariance),
        Check("padded_or_not", _worst(padded), limits.invariance),
    ]


def _answer(answers: Answers, heads: Sequence[Head], row: int) -> NDArray[np.float64]:
    """Everything about one text: embedding, every head's logits and probabilities, (H + logits + probabilities,)."""
    logits = [answers[head.output][row] for head in heads]
    probabilities = [_probabilities(head, answers[head.output][row]) for head in heads]
    return np.concatenate([answers[EMBEDDING_OUTPUT][row], *logits, *probabilities])


def _apart(ours: NDArray[np.float64], alone: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far each number is from the one of the text alone; logits have no bounds, so above 1 it is a share."""
    return np.asarray(np.abs(ours - alone) / np.maximum(1, np.abs(alone)))


def _probabilities(head: Head, logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """(outputs,) logits to (outputs,) probabilities."""
    scaled = logits.astype(np.float64) / head.temperature
    if head.kind == "sigmoid":
        return np.asarray(np.exp(-np.logaddexp(0, -scaled)))
    exponentials = np.exp(scaled - scaled.max())
    return np.asarray(exponentials / exponentials.sum())


def _cosine_distance(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> NDArray[np.float64]:
    """1 - cosine of each pair of (B, H) rows, (B,)."""
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    return np.asarray(1 - (a * b).sum(axis=-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)))


def _worst(differences: Sequence[NDArray[np.floating]]) -> float:
    """The largest one; not a number when any is not a number, which no limit lets pass."""
    return float(np.max([np.max(values) for values in differences]))


def _kind(check: Check) -> str:
    return check.name.partition(".")[0]
