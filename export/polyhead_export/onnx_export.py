"""From the model to one ONNX file that says nothing about the machine that wrote it.

::

    PolyheadModel --flat tuple--> torch.onnx.export --strip--> model.onnx --describe--> inputs, outputs
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from polyhead_bundle import Embedding, Tensor, weights_name
from polyhead_training.model import PolyheadConfig, PolyheadModel
from torch import nn
from torch.export import Dim

from .errors import GraphError

INPUT_NAMES = ("input_ids", "attention_mask")
EMBEDDING_OUTPUT = "sentence_embedding"

# LayerNormalization came with 17 and Gelu with 20; every onnxruntime that we support reads 20.
_OPSET = 20
# protobuf reads no message above 2 GiB; some room for names and for the skeleton.
_LARGEST_FILE = 2**31 - 2**26
_SMALL_TENSOR = 1024
_LONGEST_RANDOM = 256
# A path of two folders or more, a Python file (a head may be called py: heads.py.layers), a line of a stack trace.
_LOCAL_TRACE = re.compile(rb'(?:/[\w.+@-]+){2,}|[A-Za-z]:\\[\w.\\-]+|[\w-]+\.py(?![\w.])|File "')


class _FlatModel(nn.Module):
    """The model with its answers in one flat tuple, in the order of the graph's outputs."""

    def __init__(self, model: PolyheadModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        embedding, logits = self.model(input_ids, attention_mask)  # (B, H), head -> (B, outputs)
        return (embedding, *logits.values())


def signature(config: PolyheadConfig) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Inputs and outputs that the graph of such a model has, in order."""
    inputs = tuple(Tensor(name, "int64", ("batch", "sequence")) for name in INPUT_NAMES)
    widths = {head["name"]: 1 if head["kind"] == "sigmoid" else len(head["labels"]) for head in config.heads}
    answers = {EMBEDDING_OUTPUT: int(config.backbone_config().hidden_size)}
    answers |= {output: widths[head] for head, output in config.output_names().items()}
    return inputs, tuple(Tensor(name, "float32", ("batch", width)) for name, width in answers.items())


def describe_embedding(config: PolyheadConfig) -> Embedding:
    """The sentence embedding of such a model."""
    pooling = config.pooling if config.embedding_pooling == "shared" else config.embedding_pooling
    return Embedding(EMBEDDING_OUTPUT, int(config.backbone_config().hidden_size), pooling, config.normalize)


def export_graph(model: PolyheadModel, path: Path) -> None:
    """Writes the model as one fp32 ONNX file; the same model gives the same bytes on the same machine.

    The graph is the plain one. onnxruntime's BERT fusions were measured on all-MiniLM-L6-v2 at one thread, twice: 1.03
    and 1.10 times the sentences a second at 1x16, 1.01 and 1.02 at 8x32, 1.07 and 1.07 at 8x128. That is too little to
    leave the standard's operators for, which every runtime knows and every quantizer starts from.

    Args:
        model: The model; it is put into evaluation mode.
        path: The file to write.

    Raises:
        GraphError: The model cannot be exported, or the file would tell about this machine.
    """
    flat = _FlatModel(model).eval()
    require_evaluation_mode(flat)
    proto = _trace(flat, model.config)
    _strip(proto)
    require_no_local_trace(proto)
    save_graph(proto, path)


def save_graph(proto: onnx.ModelProto, path: Path) -> None:
    """Writes a graph as one file, or, where that would be too large for protobuf, with its weights in ``NAME.data``."""
    data = path.with_name(weights_name(path.name))
    # onnx appends to a file that is there.
    data.unlink(missing_ok=True)
    size = sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
    if size < _LARGEST_FILE:
        onnx.save_model(proto, str(path))
    else:
        onnx.save_model(proto, str(path), save_as_external_data=True, location=data.name, size_threshold=_SMALL_TENSOR)


def random_texts(config: PolyheadConfig, count: int) -> list[list[int]]:
    """Texts of random tokens and of all lengths, the same ones in every run, for what must be measured without data."""
    chooser = np.random.default_rng(1)
    vocabulary = np.arange(config.backbone_config().vocab_size)
    # RoBERTa takes padding inside a text for the end of it, whatever the mask says.
    vocabulary = vocabulary[vocabulary != config.pad_token_id]
    lengths = chooser.integers(1, min(config.max_tokens, _LONGEST_RANDOM), size=count, endpoint=True)
    return [chooser.choice(vocabulary, size=length).tolist() for length in lengths]


def describe_graph(proto: onnx.ModelProto) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Inputs and outputs of a graph, in order."""
    return tuple(map(_describe, proto.graph.input)), tuple(map(_describe, proto.graph.output))


def require_evaluation_mode(module: nn.Module) -> None:
    """Refuses a model of which a part would be exported with its dropout.

    Raises:
        GraphError: Names a part that is in training mode.
    """
    for name, part in module.named_modules():
        if part.training:
            raise GraphError(f"{name or 'the model'} is in training mode; call eval() before exporting")


def require_no_local_trace(proto: onnx.ModelProto) -> None:
    """Refuses a graph that holds a path, a file name or a stack trace of the machine that made it.

    Raises:
        GraphError: Shows what was found.
    """
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(proto)
    # The weights are random bytes, in which anything may be found.
    for tensor in skeleton.graph.initializer:
        tensor.ClearField("raw_data")
    if found := _LOCAL_TRACE.search(skeleton.SerializeToString()):
        raise GraphError(f"the graph tells about the machine that exported it: {found[0][:80]!r}")


def _trace(flat: _FlatModel, config: PolyheadConfig) -> onnx.ModelProto:
    # Sizes 0 and 1 would become constants of the graph; the second row ends in padding.
    ids = torch.arange(10).reshape(2, 5)  # (B, T)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])  # (B, T)
    dims = {0: Dim("batch"), 1: Dim("sequence", max=config.max_tokens)}
    try:
        with _quiet(), _plain_attention(flat.model), torch.no_grad():
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
        # The cause is what went wrong; the error itself is a page about how to report it.
        reason = (str(error.__cause__ or error).strip() or repr(error)).splitlines()[0]
        raise GraphError(f"PyTorch cannot export the model: {reason}") from error


def _strip(proto: onnx.ModelProto) -> None:
    """Removes what the exporter writes for debugging: documentation, stack traces, names of Python classes."""
    graph = proto.graph
    lists = (graph.node, graph.input, graph.output, graph.value_info, graph.initializer)
    for part in (proto, graph, *(part for parts in lists for part in parts)):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


def _describe(value: onnx.ValueInfoProto) -> Tensor:
    tensor = value.type.tensor_type
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    return Tensor(value.name, dtype, tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim))


@contextmanager
def _plain_attention(model: PolyheadModel) -> Iterator[None]:
    """PyTorch's own attention would be exported with a guard against rows that are all padding, which no text is."""
    config = model.backbone.config
    chosen = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = chosen


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about missing packages and its own deprecated calls, none of which a user can mend."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
