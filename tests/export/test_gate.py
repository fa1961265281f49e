"""A graph that deviates from the trained model fails its gate, with a specific error and the measured value."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from polyhead_bundle import Check, Head
from polyhead_export import gate
from polyhead_export.errors import (
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
from polyhead_export.eval_data import EvalData, predict, predictions
from polyhead_export.layout import EMBEDDING_OUTPUT
from polyhead_export.onnx_export import describe_graph, signature
from polyhead_export.runners import Outputs, Runner, onnx_runner, torch_runner
from polyhead_export.settings import Settings
from polyhead_training.data.labels import UNLABELLED
from polyhead_training.heads import Head as ModelHead
from polyhead_training.model import PolyheadModel, Pooling, TextVectors

HEADS = (
    Head("topic", "softmax", "logits", ("app", "billing", "support")),
    Head("sentiment", "sigmoid", "sentiment_logits", ("negative", "positive"), threshold=0.5),
)
GOLDEN = [[2, 3], [2, 9, 10, 3], [2, *range(20, 50), 3]]


def _values(checks: tuple[Check, ...]) -> dict[str, float]:
    return {check.name: check.value for check in checks}


def _failed(checks: tuple[Check, ...]) -> set[str]:
    return {check.name for check in checks if not check.passed}


def _shifted(graph_file: Path, path: Path, output: str, amount: float) -> Path:
    """The graph with ``amount`` added to the first number of an output."""
    proto = onnx.load(graph_file)
    (node,) = [node for node in proto.graph.node if output in node.output]
    node.output[0] = "before"
    width = {tensor.name: tensor.dims[1] for tensor in describe_graph(proto)[1]}[output]
    shift = np.asarray([amount, 0, 0][: int(width)], dtype=np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(shift, "shift"))
    proto.graph.node.append(onnx.helper.make_node("Add", ["before", "shift"], [output]))
    onnx.save(proto, path)
    return path


def test_exported_graph_passes_every_check(model: PolyheadModel, graph_file: Path) -> None:
    checks = gate.measure(graph_file, model, GOLDEN, HEADS)
    gate.require_passed("fp32", checks)
    assert [check.name for check in checks] == [
        "names",
        "dims",
        "difference.sentence_embedding",
        "difference.logits",
        "difference.sentiment_logits",
        "cosine_distance.mean",
        "cosine_distance.worst",
        "label_disagreement",
        "batch_invariance",
        "padding_invariance",
        "identical_outputs.sentence_embedding",
        "identical_outputs.logits",
        "identical_outputs.sentiment_logits",
        "label_share.topic",
        "label_share.sentiment",
    ]
    assert 0 < _values(checks)["difference.sentence_embedding"] < 1e-5


def test_same_graph_gets_the_same_numbers(model: PolyheadModel, graph_file: Path) -> None:
    assert gate.measure(graph_file, model, GOLDEN, HEADS)[6:] == gate.measure(graph_file, model, GOLDEN, HEADS)[6:]


def test_graph_with_shifted_output_fails_by_that_amount(tmp_path: Path, model: PolyheadModel, graph_file: Path) -> None:
    path = _shifted(graph_file, tmp_path / "model.onnx", "logits", 2e-4)
    checks = gate.measure(path, model, GOLDEN, HEADS)
    assert _failed(checks) == {"difference.logits"}
    assert _values(checks)["difference.logits"] == pytest.approx(2e-4, rel=0.01)
    with pytest.raises(ValuesError, match=r"fp32 failed its gate: difference.logits is 0\.0002 \(limit 0\.0001\)"):
        gate.require_passed("fp32", checks)


@pytest.mark.parametrize("output", ["logits", "sentiment_logits"])
def test_label_disagreement_is_counted(tmp_path: Path, model: PolyheadModel, graph_file: Path, output: str) -> None:
    counts = []
    for amount in (-100, 100):
        path = _shifted(graph_file, tmp_path / "model.onnx", output, amount)
        counts.append(_values(gate.measure(path, model, GOLDEN, HEADS))["label_disagreement"])
    # Whatever label a text had, at least one of the two shifts changes it.
    assert sum(counts) >= 1 / len(HEADS)


def test_nan_output_fails(tmp_path: Path, model: PolyheadModel, graph_file: Path) -> None:
    path = _shifted(graph_file, tmp_path / "model.onnx", "sentiment_logits", float("nan"))
    checks = gate.measure(path, model, GOLDEN, HEADS)
    assert {"difference.sentiment_logits", "batch_invariance", "padding_invariance"} <= _failed(checks)


def _scaled(runner: Runner, factor: float, shift: float) -> Runner:
    """A runner with the embedding multiplied by a factor, and shifted."""

    def run(input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> Outputs:
        outputs = runner(input_ids, attention_mask)
        return {**outputs, EMBEDDING_OUTPUT: outputs[EMBEDDING_OUTPUT] * np.float32(factor) + np.float32(shift)}

    return run


@pytest.mark.parametrize("normalize", [True, False])
def test_difference_of_an_embedding_without_unit_length_is_relative_to_its_length(
    model: PolyheadModel, graph_file: Path, monkeypatch: pytest.MonkeyPatch, normalize: bool
) -> None:
    # The graph has embeddings of length 1, which only the runners change.
    reference, graph = (_scaled(onnx_runner(graph_file), 50.0, shift) for shift in (0.0, 2e-4))
    monkeypatch.setattr(model.config, "normalize", normalize)
    values = _values(gate.measure(graph_file, model, GOLDEN, HEADS, graph=graph, reference=reference))
    expected = 2e-4 if normalize else 2e-4 / 50
    assert values["difference.sentence_embedding"] == pytest.approx(expected, rel=0.05)


def _measure_as_graph(model: PolyheadModel, graph_file: Path) -> tuple[Check, ...]:
    """The checks of a graph that computes as the model does in this test."""
    return gate.measure(graph_file, model, GOLDEN, HEADS, graph=torch_runner(model))


def _summary_with_padding(hidden: torch.Tensor, attention_mask: torch.Tensor, _pooling: str) -> TextVectors:
    """Simulates a tokenizer that pads, or a missing mask."""
    return TextVectors(hidden.mean(dim=1), hidden.mean(dim=1))


def test_output_that_depends_on_padding_fails_only_the_invariance_checks(
    model: PolyheadModel, graph_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polyhead_training.model.summarize", _summary_with_padding)
    checks = _measure_as_graph(model, graph_file)
    assert _failed(checks) == {"batch_invariance", "padding_invariance"}
    with pytest.raises(InvarianceError, match=r"batch_invariance is .*, padding_invariance is"):
        gate.require_passed("fp32", checks)


def _pooling_over_the_batch(self: Pooling, vectors: TextVectors) -> torch.Tensor:
    """Simulates per-tensor dynamic quantization: every text in the batch affects the scale."""
    return vectors.cls + 1e-3 * vectors.cls.mean(dim=0, keepdim=True)


def test_output_that_depends_on_the_batch_fails_only_batch_invariance(
    model: PolyheadModel, graph_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pooling, "forward", _pooling_over_the_batch)
    assert _failed(_measure_as_graph(model, graph_file)) == {"batch_invariance"}


def _equally_shifted_logits(self: ModelHead, features: torch.Tensor) -> torch.Tensor:
    """Shifts all logits of a text equally, depending on the batch; softmax hides this."""
    logits = cast(torch.Tensor, self.layers(features))
    return logits + 1e-2 * features[:, :1].mean(dim=0) if logits.shape[1] > 1 else logits


def test_logits_that_depend_on_the_batch_fail_even_if_probabilities_do_not(
    model: PolyheadModel, graph_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelHead, "forward", _equally_shifted_logits)
    assert _failed(_measure_as_graph(model, graph_file)) == {"batch_invariance"}


def test_difference_of_numbers_above_1_is_relative() -> None:
    alone, batched = np.asarray([0.5, -100.0]), np.asarray([0.6, -101.0])
    assert gate.relative_difference(batched, alone).tolist() == pytest.approx([0.1, 0.01])


def _rename_output(proto: onnx.ModelProto) -> None:
    (node,) = [node for node in proto.graph.node if "logits" in node.output]
    node.output[list(node.output).index("logits")] = proto.graph.output[1].name = "classes"


def _swap_outputs(proto: onnx.ModelProto) -> None:
    first, second, third = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in proto.graph.output]
    del proto.graph.output[:]
    proto.graph.output.extend([first, third, second])


def _drop_output(proto: onnx.ModelProto) -> None:
    del proto.graph.output[2]


def _fix_batch(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def _change_type(proto: onnx.ModelProto) -> None:
    proto.graph.input[1].type.tensor_type.elem_type = onnx.TensorProto.INT32


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_rename_output, (NamesError, 1, 0)),
        (_swap_outputs, (NamesError, 2, 0)),
        (_drop_output, (NamesError, 1, 0)),
        (_fix_batch, (ShapeError, 0, 1)),
        (_change_type, (ShapeError, 0, 1)),
    ],
)
def test_graph_with_another_signature_is_not_compared_further(
    tmp_path: Path,
    model: PolyheadModel,
    graph_file: Path,
    change: Callable[[onnx.ModelProto], None],
    expected: tuple[type[GateError], int, int],
) -> None:
    proto = onnx.load(graph_file)
    assert describe_graph(proto) == signature(model.config)
    change(proto)
    onnx.save(proto, tmp_path / "model.onnx")
    checks = gate.measure(tmp_path / "model.onnx", model, GOLDEN, HEADS)
    error, names, dims = expected
    assert [(check.name, check.value) for check in checks] == [("names", names), ("dims", dims)]
    with pytest.raises(error):
        gate.require_passed("fp32", checks)


def test_most_important_failure_determines_the_error_and_all_are_listed() -> None:
    checks = [Check("padding_invariance", 1.0, 1e-5), Check("difference.logits", 2.0, 1e-4), Check("names", 0, 0)]
    with pytest.raises(ValuesError) as caught:
        gate.require_passed("int8", checks)
    assert caught.value.variant == "int8"
    assert [check.name for check in caught.value.failed] == ["difference.logits", "padding_invariance"]


IDS = [[2, number, number + 1, 3] for number in range(10, 30)]
SHIFT = 1e3


@pytest.fixture
def eval_data(model: PolyheadModel) -> EvalData:
    """Rows labelled with the model's predictions; the first five are wrong for each head, and one has no label."""
    reference = predict(torch_runner(model), IDS, 0)
    targets = []
    for head in HEADS:
        answers = predictions(reference, head)
        answers[:5] = (answers[:5] + 1) % len(head.labels)
        answers[5] = UNLABELLED
        targets.append(answers)
    return EvalData(IDS, tuple(targets), reference, 0)


@pytest.mark.parametrize(("head", "column"), [("topic", 0), ("sentiment", 1)])
def test_head_with_a_constant_prediction_loses_accuracy(  # noqa: PLR0917
    tmp_path: Path, model: PolyheadModel, graph_file: Path, eval_data: EvalData, head: str, column: int
) -> None:
    path = _shifted(graph_file, tmp_path / "model.onnx", HEADS[column].output, SHIFT)
    predicted = 0 if head == "topic" else 1
    known = eval_data.targets[column][eval_data.targets[column] != UNLABELLED]
    limits = Settings(limits={"int8": {"logit_difference": 2 * SHIFT}}).limits_of("int8")
    checks = gate.measure(path, model, GOLDEN, HEADS, limits, eval_data)
    values = _values(checks)
    assert values[f"accuracy_drop.{head}"] == pytest.approx(14 / 19 - (known == predicted).mean())
    other = HEADS[1 - column].name
    assert values[f"accuracy_drop.{other}"] == values[f"macro_f1_drop.{other}"] == 0
    assert values[f"calibration.{other}"] < 1e-6
    # Its confidence is 1 everywhere, so its calibration error equals its error rate.
    before = eval_data.score(eval_data.reference, HEADS[column], column)["ece"]
    assert values[f"calibration.{head}"] == pytest.approx(abs((known != predicted).mean() - before), abs=1e-6)
    reference_labels = predictions(eval_data.reference, HEADS[column])
    assert values["label_disagreement"] >= (reference_labels != predicted).sum() / (2 * (len(IDS) + len(GOLDEN)))


@pytest.mark.parametrize(
    ("check", "error"),
    [
        ("label_disagreement", LabelsError),
        ("accuracy_drop.topic", AccuracyError),
        ("macro_f1_drop.sentiment", AccuracyError),
        ("calibration.topic", CalibrationError),
        ("cosine_distance.worst", ValuesError),
        ("identical_outputs.logits", ImplausibleModelError),
        ("label_share.topic", ImplausibleModelError),
        ("majority_gap.topic", ImplausibleModelError),
    ],
)
def test_failed_check_has_its_own_error(check: str, error: type[GateError]) -> None:
    with pytest.raises(error, match=rf"{check} is 0\.5 \(limit 0\.1\)"):
        gate.require_passed("int8", [Check("names", 0, 0), Check(check, 0.5, 0.1)])


def test_rows_without_labels_cause_no_accuracy_drop(graph_file: Path, eval_data: EvalData) -> None:
    bare = dataclasses.replace(eval_data, targets=(np.full(len(IDS), UNLABELLED),) * len(HEADS))
    assert bare.worst_accuracy_drop(onnx_runner(graph_file), HEADS) == 0
    assert eval_data.worst_accuracy_drop(onnx_runner(graph_file), HEADS) == 0


def test_graph_that_is_better_than_the_model_has_no_drop(
    model: PolyheadModel, graph_file: Path, eval_data: EvalData
) -> None:
    worse = {
        name: values + np.float32(SHIFT) * np.eye(1, values.shape[1], dtype=np.float32)
        for name, values in eval_data.reference.items()
    }
    values = _values(
        gate.measure(graph_file, model, GOLDEN, HEADS, eval_data=dataclasses.replace(eval_data, reference=worse))
    )
    assert values["accuracy_drop.topic"] == 0


def test_value_equal_to_its_limit_passes() -> None:
    gate.require_passed("fp32", [Check("cosine_distance.worst", 1e-6, 1e-6)])


def test_table_shows_value_limit_and_result() -> None:
    lines = gate.format_table([Check("names", 0, 0), Check("difference.logits", 0.25, 1e-4)]).splitlines()
    assert [line.split() for line in lines] == [
        ["check", "value", "limit"],
        ["names", "0", "0", "ok"],
        ["difference.logits", "0.25", "0.0001", "FAILED"],
    ]


def test_table_shows_every_name_literally_and_in_full() -> None:
    names = ["difference.logits_[bold]", "difference.[/x]:smile:", "difference." + "z" * 240]
    table = gate.format_table([Check(name, 0, 0) for name in names])
    assert names[0] in table
    assert names[1] in table
    assert table.count("z") == 240
