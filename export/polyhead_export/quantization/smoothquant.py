"""Quantizes the backbone's linear layers to 8-bit integers so that outputs do not depend on the batch.

::

    fused graph --fold_biases--> same function, fewer additions --collect_absmax--> largest value of each channel
                --quantize--> linear layers of the backbone on 8-bit integers; embedding tables and heads stay fp32

A linear layer ``y = x W + b`` becomes ``y = (q(x / s) - z) Q a c + b`` with unsigned 8-bit ``q``, zero point ``z``,
signed 8-bit ``Q`` and a scale ``c`` for each output channel.

- The output of a LayerNorm or an attention has one scale ``a`` for all texts. Smoothing (SmoothQuant, arXiv 2211.10438,
  equation 4) moves outliers of single channels by ``s`` from x to W, ``s_j = max|x_j| ** alpha / max|W_j| ** (1 -
  alpha)``. It adds no operator, since ``1 / s`` becomes part of the LayerNorm's weights or of the values' projection.
- The output of a GELU has heavy tails that no fixed scale covers, so ``a`` is computed from each token's largest value.
  A GELU is never below -0.1701, so only few of the 256 steps are used for negative values.

No scale depends on another token; therefore the output for a text is the same in every batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from polyhead_export.errors import FusionError
from polyhead_export.onnx_export import save_graph
from polyhead_export.runners import cpu_session, worker_threads

from .fusion import ATTENTION
from .graph_editor import CONTRIB_DOMAIN, Array, Graph, Linear

# Linear layers of one transformer layer: query, key, value, attention output, and two in the feed-forward network.
LINEARS_PER_LAYER = 6
_SIGNED_ZERO = 128
_GELU_ZERO = 16
_GELU_MIN = 0.1701
# The scale of a channel that is never used must not be zero.
_TINY = 1e-5


def fold_biases(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Removes the biases of keys and values without changing the function.

    A key's bias adds the same number to all scores of a query, which softmax ignores. A value's bias passes through the
    attention unchanged, since attention weights sum to 1, and is added to the bias of the output projection.
    """
    graph = Graph(proto)
    linears = {linear.node.output[0]: linear for linear in graph.linears()}
    by_bias = {linear.bias.output[0]: linear for linear in linears.values() if linear.bias is not None}
    for attention in [node for node in graph.nodes if node.op_type == ATTENTION]:
        projection = next(linear for linear in linears.values() if linear.source is attention)
        _, key, value = (by_bias.get(name) for name in attention.input[:3])
        if key is not None:
            graph.replace_value(key.output, key.node.output[0])
        if value is not None and projection.bias is not None:
            name, value_bias = graph.bias_name(projection), graph.bias_name(value)
            projected = graph.constants[value_bias].astype(np.float64) @ graph.constants[projection.node.input[1]]
            folded = graph.constant(f"{name}.with.{value_bias}", (graph.constants[name] + projected).astype(np.float32))
            projection.bias.input[list(projection.bias.input).index(name)] = folded
            graph.replace_value(value.output, value.node.output[0])
    return graph.finish()


def collect_absmax(path: Path, proto: onnx.ModelProto, texts: Sequence[Sequence[int]]) -> dict[str, Array]:
    """Computes the largest absolute value of each channel of the linear layers' inputs.

    Args:
        path: A scratch file for a graph with these inputs as outputs.
        proto: The graph with folded biases.
        texts: Token ids of the calibration texts.

    Returns:
        (channels,) by the name of the input.
    """
    inputs = list(dict.fromkeys(linear.node.input[0] for linear in Graph(proto).linears()))
    observed = onnx.ModelProto()
    observed.CopyFrom(proto)
    del observed.graph.output[:]
    observed.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in inputs)
    save_graph(observed, path)
    session = cpu_session(path)

    def text_absmax(ids: Sequence[int]) -> list[Array]:
        feeds = {"input_ids": np.array([ids], np.int64), "attention_mask": np.ones((1, len(ids)), np.int64)}
        return [
            np.abs(values).reshape(-1, values.shape[-1]).max(axis=0)  # (channels,)
            for values in session.run(inputs, feeds)
        ]

    absmax: dict[str, Array] = {}
    with worker_threads() as threads:
        for found in threads.map(text_absmax, texts):
            for name, values in zip(inputs, found, strict=True):
                absmax[name] = np.maximum(absmax.get(name, np.float32(0)), values)
    return absmax


def quantize(proto: onnx.ModelProto, absmax: Mapping[str, Array], smoothing: float, expected: int) -> onnx.ModelProto:
    """Quantizes every linear layer of the backbone to 8-bit integers.

    Args:
        proto: The graph with folded biases.
        absmax: Result of ``collect_absmax``.
        smoothing: SmoothQuant's alpha, 0 to 1: the share of the difficulty that moves from activations to weights.
        expected: Expected number of linear layers.

    Raises:
        FusionError: The graph has another number of linear layers, or one with an unsupported input.
    """
    graph = Graph(proto)
    linears = graph.linears()
    if unsupported := sorted({linear.source.op_type for linear in linears} - _QUANTIZERS.keys()):
        supported = ", ".join(_QUANTIZERS)
        raise FusionError(f"int8 supports linear layers after {supported}, not after {', '.join(unsupported)}")
    if len(linears) != expected:
        raise FusionError(f"expected {expected} linear layers in the backbone, found {len(linears)}")
    readers: dict[str, list[Linear]] = defaultdict(list)
    for linear in linears:
        readers[linear.node.input[0]].append(linear)
    factors = {name: _smoothing_factors(graph, group, absmax[name], smoothing) for name, group in readers.items()}
    _smooth_values(graph, linears, factors)
    for name, group in readers.items():
        source = group[0].source
        quantized = _QUANTIZERS[source.op_type](graph, name, source, factors[name], absmax[name])
        for linear in group:
            _multiply(graph, linear, quantized, factors[name])
    _prevent_residual_fusion(graph)
    return graph.finish()


@dataclass(frozen=True)
class _Quantized:
    """A quantized input of linear layers.

    Attributes:
        nodes: The nodes that quantize it.
        values: Name of the 8-bit integers.
        scale: Name of the scale: a scalar, or one number per token.
        zero: Name of the zero point.
        per_token: Whether each token has its own scale.
    """

    nodes: list[onnx.NodeProto]
    values: str
    scale: str
    zero: str
    per_token: bool = False


def _smoothing_factors(graph: Graph, readers: Sequence[Linear], absmax: Array, alpha: float) -> NDArray[np.float64]:
    """Computes ``s`` for the channels of an input, (channels,), scaled to a geometric mean of 1."""
    if readers[0].source.op_type == "Gelu":
        return np.ones(len(absmax))
    weights = np.max([np.abs(graph.constants[reader.node.input[1]]).max(axis=1) for reader in readers], axis=0)
    logs = alpha * np.log(np.maximum(absmax, _TINY)) - (1 - alpha) * np.log(np.maximum(weights, _TINY))
    return np.asarray(np.exp(logs - logs.mean()))


def _smooth_values(graph: Graph, linears: Sequence[Linear], factors: Mapping[str, NDArray[np.float64]]) -> None:
    """Divides the values' projection by ``s`` instead of the attention's output, which is a mean of values."""
    makers = {linear.node.output[0]: linear for linear in linears}
    for attention in [node for node in graph.nodes if node.op_type == ATTENTION]:
        projection = makers[attention.input[2]].node
        # A new constant is required: equal constants share one tensor, which other nodes may read.
        weight = graph.constants[projection.input[1]] / factors[attention.output[0]]  # (in, channels)
        projection.input[1] = graph.constant(f"{projection.output[0]}.smooth", weight)


def _quantize_normalized(
    graph: Graph, name: str, source: onnx.NodeProto, factors: NDArray[np.float64], absmax: Array
) -> _Quantized:
    """Adds a second LayerNormalization with 1 / s in its weights; the first one still feeds the residual branch."""
    weight, bias = (
        graph.constant(f"{name}.smooth.{part}", (graph.constants[source.input[position]] / factors).astype(np.float32))
        for position, part in ((1, "weight"), (2, "bias"))
    )
    normalized = onnx.NodeProto()
    normalized.CopyFrom(source)
    normalized.input[1], normalized.input[2], normalized.output[0] = weight, bias, f"{name}.smooth"
    normalized.name = f"{source.name}.smooth"
    return _quantize_fixed(graph, f"{name}.smooth", [normalized], float((absmax / factors).max()))


def _quantize_attended(
    graph: Graph, name: str, source: onnx.NodeProto, factors: NDArray[np.float64], absmax: Array
) -> _Quantized:
    """Quantizes an attention's output with a fixed scale."""
    del source
    return _quantize_fixed(graph, name, [], float((absmax / factors).max()))


def _quantize_fixed(graph: Graph, name: str, before: list[onnx.NodeProto], absmax: float) -> _Quantized:
    """Quantizes a value with one scale for all texts; the nodes ``before`` compute the value."""
    scale = graph.constant(f"{name}.scale", np.float32(max(absmax, _TINY) / (_SIGNED_ZERO - 1)))
    zero = graph.constant(f"zero.{_SIGNED_ZERO}", np.uint8(_SIGNED_ZERO))
    node = helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}.q"])
    return _Quantized([*before, node], f"{name}.q", scale, zero)


def _quantize_gelu(
    graph: Graph, name: str, source: onnx.NodeProto, factors: NDArray[np.float64], absmax: Array
) -> _Quantized:
    """Quantizes a GELU's output with one scale per token, in a range that starts at the GELU's minimum."""
    del source, factors, absmax
    above = np.float32(1 / (255 - _GELU_ZERO))
    zero = graph.constant(f"zero.{_GELU_ZERO}", np.uint8(_GELU_ZERO))
    nodes = [
        helper.make_node("ReduceMax", [name, graph.constant("last", np.array([-1]))], [f"{name}.max"], keepdims=1),
        helper.make_node("Mul", [f"{name}.max", graph.constant("gelu.above", above)], [f"{name}.step"]),
        helper.make_node(
            "Max",
            [f"{name}.step", graph.constant("gelu.below", np.float32(_GELU_MIN / _GELU_ZERO))],
            [f"{name}.scale"],
        ),
        # Cheaper than one division per number: int8 rose from 0.94 to 0.96 of the speed of dynamic int8.
        helper.make_node("Reciprocal", [f"{name}.scale"], [f"{name}.inverse"]),
        helper.make_node("Mul", [name, f"{name}.inverse"], [f"{name}.steps"]),
        helper.make_node(
            "QuantizeLinear", [f"{name}.steps", graph.constant("one", np.float32(1)), zero], [f"{name}.q"]
        ),
    ]
    return _Quantized(nodes, f"{name}.q", f"{name}.scale", zero, per_token=True)


_QUANTIZERS = {
    "LayerNormalization": _quantize_normalized,
    ATTENTION: _quantize_attended,
    "Gelu": _quantize_gelu,
}


def _multiply(graph: Graph, linear: Linear, quantized: _Quantized, factors: NDArray[np.float64]) -> None:
    """Replaces the MatMul with an integer product, which includes the bias if the scale is fixed."""
    node, name = linear.node, linear.node.output[0]
    weight = graph.constants[node.input[1]].astype(np.float64) * factors[:, None]  # (in, out)
    scales = np.maximum(np.abs(weight).max(axis=0), _TINY**2) / (_SIGNED_ZERO - 1)  # (out,)
    integers = graph.constant(f"{name}.weight", np.rint(weight / scales).astype(np.int8))
    scales_name = graph.constant(f"{name}.weight.scale", scales.astype(np.float32))
    if quantized.per_token:
        one = graph.constant("one", np.float32(1))
        inputs, product = [quantized.values, integers, one, scales_name, quantized.zero], f"{node.output[0]}.unscaled"
        after = [helper.make_node("Mul", [product, quantized.scale], [node.output[0]])]
        _move_bias_to_residual(graph, linear)
    else:
        inputs, product, after = (
            [quantized.values, integers, quantized.scale, scales_name, quantized.zero],
            node.output[0],
            [],
        )
        if linear.bias is not None:
            inputs += ["", graph.bias_name(linear)]
            product = linear.bias.output[0]
            graph.nodes.remove(linear.bias)
    replacement = helper.make_node("MatMulIntegerToFloat", inputs, [product], domain=CONTRIB_DOMAIN)
    # The input is quantized once, before its first reader.
    before = [quantizer for quantizer in quantized.nodes if quantizer.output[0] not in graph.maker]
    position = graph.nodes.index(node)
    graph.nodes[position : position + 1] = [*before, replacement, *after]
    graph.index()


def _move_bias_to_residual(graph: Graph, linear: Linear) -> None:
    """Adds a bias that precedes ``x + residual`` to the bias of the LayerNorm that computes the residual."""
    if linear.bias is None or len(readers := graph.readers[linear.output]) != 1:
        return
    added = [name for name in readers[0].input if name != linear.output]
    source = graph.maker.get(added[0]) if readers[0].op_type == "Add" and len(added) == 1 else None
    # At this point the quantized branch has its own LayerNormalization.
    if source is None or source.op_type != "LayerNormalization" or len(graph.readers[added[0]]) != 1:
        return
    name = graph.bias_name(linear)
    total = graph.constants[source.input[2]] + graph.constants[name]
    source.input[2] = graph.constant(f"{source.output[0]}.with.{name}", total)
    graph.replace_value(linear.output, linear.node.output[0])
    graph.nodes.remove(linear.bias)


def _prevent_residual_fusion(graph: Graph) -> None:
    """Replaces the Add of each residual with a Sum, since onnxruntime's fusion of Add and LayerNorm is slower."""
    for node in graph.nodes:
        adding = graph.maker.get(node.input[0]) if node.op_type == "LayerNormalization" else None
        if adding is not None and adding.op_type == "Add" and not graph.constants.keys() & set(adding.input):
            adding.op_type = "Sum"
