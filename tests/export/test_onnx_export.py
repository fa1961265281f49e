"""The graph matches the model for every input shape, and contains no trace of the machine that exported it."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from polyhead_export import onnx_export
from polyhead_export.errors import GraphError
from polyhead_export.runners import onnx_runner, torch_runner
from polyhead_training.model import PolyheadModel, Pooling, TextVectors

from tests.support.tiny_model import make_model, write_graph

MAX_TOKENS = 48
SHAPES = [(1, 1), (1, 3), (7, 33), (3, MAX_TOKENS)]


@pytest.mark.parametrize(
    ("family", "poolings"),
    [("bert", ("cls_mean", "shared")), ("roberta", ("cls_mean", "mean")), ("distilbert", ("cls", "cls"))],
)
def test_graph_matches_the_model_for_every_family_and_shape(
    tmp_path: Path,
    family: str,
    poolings: tuple[str, str],
) -> None:
    model = make_model(family, pooling=poolings[0], embedding_pooling=poolings[1])
    write_graph(model, tmp_path / "model.onnx")
    ours, theirs = onnx_runner(tmp_path / "model.onnx"), torch_runner(model)
    random = np.random.default_rng(0)
    for texts, tokens in SHAPES:
        lengths = random.integers(1, tokens, size=(texts, 1), endpoint=True)
        mask = (np.arange(tokens) < lengths).astype(np.int64)  # (B, T)
        ids = np.where(mask == 1, random.integers(2, 200, size=(texts, tokens)), model.config.pad_token_id)
        expected, found = theirs(ids, mask), ours(ids, mask)
        assert list(found) == ["sentence_embedding", "logits", "sentiment_logits"]
        assert found["sentence_embedding"].shape == (texts, 32)
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, atol=1e-5, rtol=0)


def test_graph_has_the_names_and_dims_of_the_model(model: PolyheadModel, graph_file: Path) -> None:
    inputs, outputs = onnx_export.describe_graph(onnx.load(graph_file))
    assert (inputs, outputs) == onnx_export.signature(model.config)
    assert [(tensor.name, tensor.dtype, tensor.dims) for tensor in (*inputs, *outputs)] == [
        ("input_ids", "int64", ("batch", "sequence")),
        ("attention_mask", "int64", ("batch", "sequence")),
        ("sentence_embedding", "float32", ("batch", 32)),
        ("logits", "float32", ("batch", 3)),
        ("sentiment_logits", "float32", ("batch", 1)),
    ]


def test_graph_requires_only_standard_operators(graph_file: Path) -> None:
    proto = onnx.load(graph_file)
    assert [entry.domain for entry in proto.opset_import] == [""]
    assert not proto.functions


def test_graph_contains_no_trace_of_the_machine(graph_file: Path) -> None:
    content = graph_file.read_bytes()
    folders = [Path.cwd(), Path.home(), sys.prefix, tempfile.gettempdir(), Path(onnx_export.__file__).parent]
    # "/root" is short, but the weights are too small to contain these bytes by chance.
    for trace in [*map(str, folders), "site-packages", ".py", "Traceback", "polyhead_training"]:
        assert trace.encode() not in content, trace
    proto = onnx.load(graph_file)
    assert not any(node.doc_string or node.metadata_props for node in proto.graph.node)


def test_graph_with_a_trace_of_the_machine_is_rejected(
    tmp_path: Path, model: PolyheadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "strip_metadata", lambda proto: None)
    with pytest.raises(GraphError, match="contains a trace of the machine"):
        onnx_export.export_graph(model, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("trace", ["/home/ann/models", "C:\\models", 'File "x"', "train.py"])
def test_every_kind_of_trace_is_found(graph_file: Path, trace: str) -> None:
    proto = onnx.load(graph_file)
    proto.graph.node[0].doc_string = trace
    with pytest.raises(GraphError, match="contains a trace of the machine"):
        onnx_export.require_no_local_trace(proto)


def test_head_named_py_is_not_a_trace(graph_file: Path) -> None:
    proto = onnx.load(graph_file)
    proto.graph.node[0].name = "model.heads.py.layers.1.weight"
    onnx_export.require_no_local_trace(proto)


def test_model_in_training_mode_gives_the_same_bytes_without_dropout(
    tmp_path: Path, graph_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    onnx_export.export_graph(make_model().train(), tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "model.onnx").read_bytes() == graph_file.read_bytes()
    assert "Dropout" not in {node.op_type for node in onnx.load(graph_file).graph.node}


def test_module_in_training_mode_is_named() -> None:
    model = make_model()
    onnx_export.require_evaluation_mode(model)
    model.heads["topic"].train()
    with pytest.raises(GraphError, match=r"heads\.topic is in training mode"):
        onnx_export.require_evaluation_mode(model)


def test_model_that_cannot_be_exported_is_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def branch(self: Pooling, vectors: TextVectors) -> torch.Tensor:
        return vectors.cls if vectors.mean.sum() > 0 else vectors.mean

    monkeypatch.setattr(Pooling, "forward", branch)
    with pytest.raises(GraphError, match=r"PyTorch cannot export the model: .*data-dependent") as caught:
        onnx_export.export_graph(make_model(), tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model.onnx").exists()
