"""Exports the model to one ONNX file without any trace of the machine that wrote it.

::

    PolyheadModel --flat tuple--> torch.onnx.export --strip_metadata--> model.onnx --describe_graph--> inputs, outputs
"""

from __future__ import annotations

import hashlib
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import onnx
import torch
from polyhead_bundle import Embedding, Tensor, external_data_name
from polyhead_training.errors import first_line
from polyhead_training.model import PolyheadConfig, PolyheadModel
from polyhead_training.model_types import output_width
from torch import nn
from torch.export import Dim
from transformers.activations import NewGELUActivation

from .errors import GraphError
from .layout import EMBEDDING_OUTPUT, INPUT_NAMES

# LayerNormalization was added in opset 17 and Gelu in 20; every supported onnxruntime reads 20.
_OPSET = 20
# protobuf cannot read a message above 2 GiB; 64 MiB are left for names and for the graph without its weights.
MAX_PROTO_BYTES = 2**31 - 2**26
# Bytes; smaller tensors stay in the graph when its weights are moved to another file.
_MIN_EXTERNAL_TENSOR = 1024
# A path of two folders or more, a Python file (but a head may be named py: heads.py.layers), a line of a stack trace.
_LOCAL_TRACE = re.compile(rb'(?:/[\w.+@-]+){2,}|[A-Za-z]:\\[\w.\\-]+|[\w-]+\.py(?![\w.])|File "')


class _FlatModel(nn.Module):
    """The model with its outputs in one flat tuple, in the order of the graph's outputs."""

    def __init__(self, model: PolyheadModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        embedding, logits = self.model(input_ids, attention_mask)  # (B, H), head -> (B, logits)
        return (embedding, *logits.values())


def signature(config: PolyheadConfig) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Inputs and outputs, in order, that the graph of a model has, derived from its configuration."""
    inputs = tuple(Tensor(name, "int64", ("batch", "sequence")) for name in INPUT_NAMES)
    widths = {head["name"]: output_width(head["kind"], len(head["labels"])) for head in config.heads}
    outputs = {EMBEDDING_OUTPUT: config.embedding_size()}
    outputs |= {output: widths[head] for head, output in config.output_names().items()}
    return inputs, tuple(Tensor(name, "float32", ("batch", width)) for name, width in outputs.items())


def describe_embedding(config: PolyheadConfig) -> Embedding:
    """Describes the sentence embedding of a model, derived from its configuration."""
    pooling = config.pooling if config.embedding_pooling == "shared" else config.embedding_pooling
    return Embedding(EMBEDDING_OUTPUT, config.embedding_size(), pooling, config.normalize)


def export_graph(model: PolyheadModel, path: Path) -> None:
    """Writes the model as one fp32 ONNX file; the same model gives the same bytes on the same machine.

    The graph uses only the ONNX standard's operators, which every runtime supports and every quantizer requires.
    onnxruntime's BERT fusions gain too little to replace them: on all-MiniLM-L6-v2 with one thread, two measurements
    gave 1.03 and 1.10 times the sentences per second at 1x16, 1.01 and 1.02 at 8x32, 1.07 and 1.07 at 8x128.

    Args:
        model: The model; it is switched to evaluation mode.
        path: The file to write.

    Raises:
        GraphError: The model cannot be exported, or the file would contain a trace of this machine.
    """
    flat = _FlatModel(model).eval()
    require_evaluation_mode(flat)
    proto = _trace(flat, model.config)
    _share_equal_weights(proto)
    strip_metadata(proto)
    require_no_local_trace(proto)
    save_graph(proto, path)


def save_graph(proto: onnx.ModelProto, path: Path) -> None:
    """Writes a graph as one file, or, if that is too large for protobuf, with its weights in ``NAME.data``."""
    data = path.with_name(external_data_name(path.name))
    # onnx appends to an existing file.
    data.unlink(missing_ok=True)
    size = sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
    if size < MAX_PROTO_BYTES:
        onnx.save_model(proto, str(path))
    else:
        onnx.save_model(
            proto, str(path), save_as_external_data=True, location=data.name, size_threshold=_MIN_EXTERNAL_TENSOR
        )


def describe_graph(proto: onnx.ModelProto) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Returns the inputs and outputs of a graph, in order."""
    return tuple(map(_describe, proto.graph.input)), tuple(map(_describe, proto.graph.output))


def require_evaluation_mode(module: nn.Module) -> None:
    """Rejects a model with a module in training mode, which would be exported with its dropout.

    Raises:
        GraphError: Names the module.
    """
    for name, submodule in module.named_modules():
        if submodule.training:
            raise GraphError(f"{name or 'the model'} is in training mode; call eval() before exporting")


def require_no_local_trace(proto: onnx.ModelProto) -> None:
    """Rejects a graph that contains a path, a file name or a stack trace of the machine that exported it.

    Raises:
        GraphError: Quotes the trace.
    """
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(proto)
    # Weights are arbitrary bytes, which may match by chance.
    for tensor in skeleton.graph.initializer:
        tensor.ClearField("raw_data")
    if found := _LOCAL_TRACE.search(skeleton.SerializeToString()):
        raise GraphError(f"the graph contains a trace of the machine that exported it: {found[0][:80]!r}")


def _trace(flat: _FlatModel, config: PolyheadConfig) -> onnx.ModelProto:
    # Sizes 0 and 1 would be exported as constants; the second row ends in padding.
    ids = torch.arange(10).reshape(2, 5)  # (B, T)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])  # (B, T)
    dims = {0: Dim("batch"), 1: Dim("sequence", max=config.max_tokens)}
    try:
        with quiet(), _plain_operators(flat.model), torch.no_grad():
            program = torch.onnx.export(
                flat,
                (ids, mask),
                dynamo=True,
                opset_version=_OPSET,
                input_names=list(INPUT_NAMES),
                output_names=[EMBEDDING_OUTPUT, *config.output_names().values()],
                dynamic_shapes=(dims, dims),
                verbose=False,
            )
            return cast(Any, program).model_proto
    except torch.onnx.OnnxExporterError as error:
        # The cause holds the reason; the message of the error itself is a page about how to report it.
        raise GraphError(f"PyTorch cannot export the model: {first_line(error.__cause__ or error)}") from error


def _share_equal_weights(proto: onnx.ModelProto) -> None:
    """Keeps one of equal weights: the exporter transposes a weight that layers share, as in ALBERT, for each layer."""
    kept: dict[tuple[bytes, int, tuple[int, ...]], str] = {}
    names = {
        tensor.name: kept.setdefault(
            (hashlib.sha256(tensor.raw_data).digest(), tensor.data_type, tuple(tensor.dims)), tensor.name
        )
        for tensor in proto.graph.initializer
        if tensor.raw_data
    }
    for node in proto.graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = names.get(name, name)
    for position in reversed(range(len(proto.graph.initializer))):
        name = proto.graph.initializer[position].name
        if names.get(name, name) != name:
            del proto.graph.initializer[position]


def strip_metadata(proto: onnx.ModelProto) -> None:
    """Removes the exporter's debugging metadata: documentation, stack traces, names of Python classes."""
    graph = proto.graph
    lists = (graph.node, graph.input, graph.output, graph.value_info, graph.initializer)
    for message in (proto, graph, *(message for messages in lists for message in messages)):
        message.ClearField("doc_string")
        message.ClearField("metadata_props")


def _describe(value: onnx.ValueInfoProto) -> Tensor:
    tensor = value.type.tensor_type
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    return Tensor(value.name, dtype, tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim))


@contextmanager
def _plain_operators(model: PolyheadModel) -> Iterator[None]:
    """Exports operators that ONNX and the quantizers know.

    PyTorch's own attention adds a guard against rows of padding only, which never occur. GELU's approximation by tanh
    is written out in some families, and is one operator in ONNX.
    """
    config = model.backbone.config
    previous = config._attn_implementation
    config._attn_implementation = "eager"
    replaced = [
        (parent, name, child)
        for parent in model.backbone.modules()
        for name, child in parent.named_children()
        if isinstance(child, NewGELUActivation)
    ]
    for parent, name, _ in replaced:
        setattr(parent, name, nn.GELU(approximate="tanh").eval())
    try:
        yield
    finally:
        config._attn_implementation = previous
        for parent, name, child in replaced:
            setattr(parent, name, child)


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the exporter's warnings about missing packages and its own deprecated calls, which users cannot fix."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
