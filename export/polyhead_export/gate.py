"""The gate: compares a graph with the trained model, and checks that its output does not depend on the batch.

::

    golden texts, ragged random batches --torch fp32--> outputs --+
                                        --the graph---> outputs --+--> differences --> Check, Check, ...
    a text alone, with batch-mates, padded --the graph---------------> differences -->
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from polyhead_bundle import Check, Head, Tensor
from polyhead_training.evaluation.novelty import NoveltyModel
from polyhead_training.evaluation.probabilities import probabilities
from polyhead_training.model import PolyheadModel
from polyhead_training.tokenization import pad
from rich.console import Console
from rich.table import Table

from . import plausibility
from .errors import (
    AccuracyError,
    CalibrationError,
    GateError,
    ImplausibleModelError,
    InvarianceError,
    LabelsError,
    NamesError,
    ShapeError,
    ValuesError,
)
from .eval_data import EvalData
from .head_checks import compare_abstention, compare_prediction_sets, compare_predictions, compare_scores
from .layout import EMBEDDING_OUTPUT
from .novelty import compare_novelty
from .onnx_export import describe_graph, signature
from .random_texts import RandomTexts
from .runners import Outputs, Runner, SharedRunner, onnx_runner, run_all, torch_runner
from .settings import Limits, Settings

Ids = Sequence[int]

# The error that a failed check raises, by the first part of the check's name; the most important error comes first.
_ERRORS: dict[str, type[GateError]] = {
    "names": NamesError,
    "dims": ShapeError,
    "identical_outputs": ImplausibleModelError,
    "label_share": ImplausibleModelError,
    "majority_gap": ImplausibleModelError,
    "constant_gap": ImplausibleModelError,
    "golden": ValuesError,
    "difference": ValuesError,
    "cosine_distance": ValuesError,
    "novelty_difference": ValuesError,
    "value_difference": ValuesError,
    "value_difference_mean": ValuesError,
    "label_disagreement": LabelsError,
    "accuracy_drop": AccuracyError,
    "micro_f1_drop": AccuracyError,
    "macro_f1_drop": AccuracyError,
    "qwk_drop": AccuracyError,
    "r2_drop": AccuracyError,
    "answered_accuracy_drop": AccuracyError,
    "promise_gap": AccuracyError,
    "set_coverage_gap": AccuracyError,
    "coverage_difference": CalibrationError,
    "calibration": CalibrationError,
    "batch_invariance": InvarianceError,
    "padding_invariance": InvarianceError,
}
# A batch of the server holds about this many short texts besides the one that is checked.
_BATCH_MATES = 7
_TABLE_WIDTH = 200

DEFAULT_LIMITS = Settings().limits_of("fp32")


# A graph may output NaN. The checks report that; numpy's warnings would only repeat it.
@np.errstate(invalid="ignore", divide="ignore")
def measure(  # noqa: PLR0917
    path: Path,
    model: PolyheadModel,
    golden: Sequence[Ids],
    heads: Sequence[Head],
    limits: Limits = DEFAULT_LIMITS,
    eval_data: EvalData | None = None,
    graph: Runner | None = None,
    reference: Runner | None = None,
    novelty: NoveltyModel | None = None,
) -> tuple[Check, ...]:
    """Compares a graph with the trained model.

    Args:
        path: The ONNX file.
        model: The trained model, fp32.
        golden: Token ids of the golden texts, special tokens included.
        heads: The heads with their calibration, in the model's order.
        limits: How far the graph may deviate.
        eval_data: Labelled rows; without them, accuracy and calibration are not checked.
        graph: Runner of the graph; None opens one.
        reference: Runner of the trained model; None opens one.
        novelty: Computes the novelty of embeddings, to be compared; None for a model without it.

    Returns:
        All checks, including failed ones. When ``names`` or ``dims`` fail, only these two, since nothing else can be
        compared.
    """
    checks = compare_signatures(signature(model.config), describe_graph(onnx.load(path, load_external_data=False)))
    if not all(check.passed for check in checks):
        return checks
    graph = graph or SharedRunner(partial(onnx_runner, path))
    reference = reference or torch_runner(model)
    random_texts = RandomTexts(model.config, seed=0)
    texts: list[Sequence[Ids]] = [[ids] for ids in golden]
    batches = [pad(batch, model.config.pad_token_id) for batch in (*texts, *random_texts.ragged_batches())]
    pairs = list(zip(*(run_all(runner, batches, len(batches)) for runner in (graph, reference)), strict=True))
    rows = eval_data.predict(graph, f"{path.name}: evaluation data") if eval_data else None
    evaluated = [(rows, eval_data.reference)] if eval_data and rows else []
    units = {head.output: head.spread for head in heads}
    if not model.config.normalize:
        units[EMBEDDING_OUTPUT] = _mean_length([theirs[EMBEDDING_OUTPUT] for _, theirs in [*pairs, *evaluated]])
    return (
        *checks,
        *_compare_values([*pairs, *evaluated], units, limits),
        *(
            [compare_novelty([*pairs[: len(golden)], *evaluated], novelty, limits.novelty_difference)]
            if novelty
            else []
        ),
        *compare_predictions([*pairs[: len(golden)], *evaluated], heads, limits),
        *(compare_scores(eval_data, rows, heads, limits) if eval_data and rows else ()),
        *(compare_abstention(eval_data, rows, heads, limits) if eval_data and rows else ()),
        *(compare_prediction_sets(eval_data, rows, heads, limits) if eval_data and rows else ()),
        *_check_invariance(graph, golden, random_texts, heads, limits),
        *plausibility.measure([theirs for _, theirs in pairs[: len(golden)]], heads, limits, eval_data),
    )


def require_passed(variant: str, checks: Sequence[Check]) -> None:
    """Rejects a variant with a failed check.

    Raises:
        GateError: The subclass of the most important failed check; it lists all failed checks.
    """
    importance = list(_ERRORS)
    failed = [check for check in checks if not check.passed]
    if failed:
        failed.sort(key=lambda check: importance.index(_kind(check)))
        raise _ERRORS[_kind(failed[0])](variant, failed)


def format_table(checks: Sequence[Check]) -> str:
    """Formats checks as a table for a terminal: name, value, limit, result."""
    table = Table(box=None, padding=(0, 0, 0, 2))
    table.add_column("check", overflow="fold")
    table.add_column("value", justify="right")
    table.add_column("limit", justify="right")
    table.add_column()
    for check in checks:
        result = "ok" if check.passed else "FAILED"
        table.add_row(check.name, f"{check.value:.2g}", f"{check.limit:.2g}", result)
    # The table goes to a callback, not to a terminal of a known width; names must not be cut off.
    console = Console(width=_TABLE_WIDTH, color_system=None, markup=False, emoji=False, highlight=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def compare_signatures(
    expected: tuple[tuple[Tensor, ...], tuple[Tensor, ...]], actual: tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
) -> tuple[Check, Check]:
    """Checks ``names`` (inputs and outputs, in order) and ``dims`` (with types): how many differ; the limit is 0."""
    pairs = [pair for side in zip(expected, actual, strict=True) for pair in zip_longest(*side)]
    named = [(a, b) for a, b in pairs if a is not None and b is not None and a.name == b.name]
    return Check("names", len(pairs) - len(named), 0), Check("dims", sum(a != b for a, b in named), 0)


def _compare_values(
    pairs: Sequence[tuple[Outputs, Outputs]], units: Mapping[str, float], limits: Limits
) -> list[Check]:
    """Compares all numbers of every output, in its unit; outputs without one have unit 1."""
    differences = {
        name: _max([np.abs(ours[name] - theirs[name]) for ours, theirs in pairs]) / units.get(name, 1.0)
        for name in pairs[0][1]
    }
    distances = [_cosine_distance(ours[EMBEDDING_OUTPUT], theirs[EMBEDDING_OUTPUT]) for ours, theirs in pairs]
    output_limits = {EMBEDDING_OUTPUT: limits.difference}
    return [
        *(
            Check(f"difference.{name}", value, output_limits.get(name, limits.logit_difference))
            for name, value in differences.items()
        ),
        Check("cosine_distance.mean", float(np.mean(np.concatenate(distances))), limits.cosine_mean),
        Check("cosine_distance.worst", _max(distances), limits.cosine_worst),
    ]


def _check_invariance(
    graph: Runner, golden: Sequence[Ids], random_texts: RandomTexts, heads: Sequence[Head], limits: Limits
) -> list[Check]:
    """Compares the output for each golden text in a batch of its own with its output among others and padded."""
    max_tokens, pad_token_id = random_texts.config.max_tokens, random_texts.config.pad_token_id
    rows = [index % (_BATCH_MATES + 1) for index in range(len(golden))]
    batches = []
    for row, ids in zip(rows, golden, strict=True):
        mates = random_texts.texts(_BATCH_MATES, 2 * len(ids))
        input_ids, mask = pad([ids, [0] * max_tokens], pad_token_id)  # (2, T)
        together = pad([*mates[:row], ids, *mates[row:]], pad_token_id)
        batches += [pad([ids], pad_token_id), together, (input_ids[:1], mask[:1])]
    outputs = list(run_all(graph, batches, len(batches)))
    batched, padded = [], []
    for index, row in enumerate(rows):
        single, together_outputs, padded_outputs = outputs[3 * index : 3 * index + 3]
        alone = _all_outputs(single, heads, 0)
        batched.append(relative_difference(_all_outputs(together_outputs, heads, row), alone))
        padded.append(relative_difference(_all_outputs(padded_outputs, heads, 0), alone))
    return [
        Check("batch_invariance", _max(batched), limits.invariance),
        Check("padding_invariance", _max(padded), limits.invariance),
    ]


def _all_outputs(outputs: Outputs, heads: Sequence[Head], row: int) -> NDArray[np.float64]:
    """All numbers for one text: the embedding, and every head's logits and probabilities, (H + logits + labels,).

    The value of a regression head is in units of its spread.
    """
    logits = [outputs[head.output][row] / head.spread for head in heads]
    scores = [probabilities(head.kind, outputs[head.output][row], head.temperature) / head.spread for head in heads]
    return np.concatenate([outputs[EMBEDDING_OUTPUT][row], *logits, *scores])


def relative_difference(values: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Absolute difference of each number, relative to its reference where that is above 1: logits are unbounded."""
    return np.asarray(np.abs(values - reference) / np.maximum(1, np.abs(reference)))


def _cosine_distance(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> NDArray[np.float64]:
    """1 - cosine of each pair of (B, H) rows, (B,). scikit-learn's function rejects NaN, which a check must report."""
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    return np.asarray(1 - (a * b).sum(axis=-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)))


def _mean_length(embeddings: Sequence[NDArray[np.float32]]) -> float:
    """Mean Euclidean length of (B, H) embeddings: the scale of those that are not scaled to length 1."""
    return float(np.mean(np.concatenate([np.linalg.norm(rows, axis=-1) for rows in embeddings]))) or 1.0


def _max(differences: Sequence[NDArray[np.floating]]) -> float:
    """The largest difference; NaN when any is NaN, which no limit accepts."""
    return float(np.max([np.max(values) for values in differences]))


def _kind(check: Check) -> str:
    return check.name.partition(".")[0]
