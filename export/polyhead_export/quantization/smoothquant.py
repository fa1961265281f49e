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
- Any other input, for example the output of an attention with relative positions, which no fused operator computes, has
  a scale for each token too. So have the inputs of a weight that several layers share, unless all can be smoothed.

No scale depends on another token; therefore the output for a text is the same in every batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from polyhead_export.errors import FusionError
from polyhead_export.onnx_export import save_graph
from polyhead_export.runners import cpu_session, worker_threads

from .activations import SIGNED_ZERO, TINY, Quantized, can_smooth, quantize_input
from .fusion import ATTENTION
from .graph_editor import CONTRIB_DOMAIN, Array, Graph, Linear


def fold_biases(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Removes the biases of keys and values without changing the function.

    A key's bias adds the same number to all scores of a query, which softmax ignores. A value's bias passes through the
    attention unchanged, since attention weights sum to 1, and is added to the bias of the output projection.
    """
    graph = Graph(proto)
    linears = {linear.node.output[0]: linear for linear in graph.linears()}
    by_bias = {linear.bias.output[0]: linear for linear in linears.values() if linear.bias is not None}
    for attention in [node for node in graph.nodes if node.op_type == ATTENTION]:
        projection = next((linear for linear in linears.values() if linear.source is attention), None)
        if projection is None:
            continue
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


def quantize(
    proto: onnx.ModelProto, absmax: Mapping[str, Array], smoothing: float, expected: Sequence[tuple[int, int]]
) -> onnx.ModelProto:
    """Quantizes every linear layer of the backbone to 8-bit integers.

    Args:
        proto: The graph with folded biases.
        absmax: Result of ``collect_absmax``.
        smoothing: SmoothQuant's alpha, 0 to 1: the share of the difficulty that moves from activations to weights.
        expected: Shape (in, out) of each linear layer of the backbone, as ``linear_shapes`` of the trained model.

    Raises:
        FusionError: The graph has other linear layers.
    """
    graph = Graph(proto)
    linears = graph.linears()
    _require_linears(graph, linears, expected)
    factors: dict[str, NDArray[np.float64] | None] = {}
    for group in _groups(linears):
        inputs = dict.fromkeys(linear.node.input[0] for linear in group)
        smoothed = all(can_smooth(graph, linear.source) for linear in group)
        found = _smoothing_factors(graph, group, absmax, smoothing) if smoothed else None
        factors |= dict.fromkeys(inputs, found)
    _smooth_values(graph, linears, factors)
    quantized = {
        linear.node.input[0]: quantize_input(
            graph, linear.node.input[0], linear.source, factors[linear.node.input[0]], absmax[linear.node.input[0]]
        )
        for linear in linears
    }
    for linear in linears:
        _multiply(graph, linear, quantized[linear.node.input[0]], factors[linear.node.input[0]])
    _prevent_residual_fusion(graph)
    return graph.finish()


def _require_linears(graph: Graph, linears: Sequence[Linear], expected: Sequence[tuple[int, int]]) -> None:
    """Checks that the graph has the model's linear layers; layers that share their weights count once."""
    found = Counter(graph.constants[name].shape for name in {linear.node.input[1] for linear in linears})
    if found != Counter(expected) or not expected:
        counts = f"{len(expected)} linear layers in the backbone, found {found.total()} in the graph"
        raise FusionError(f"int8 quantizes the backbone's linear layers: expected {counts}")


def _groups(linears: Sequence[Linear]) -> list[list[Linear]]:
    """Returns groups of layers that must have the same factors, as they share an input or, as in ALBERT, a weight."""
    groups: list[tuple[set[str], list[Linear]]] = []
    for linear in linears:
        names, members = set(linear.node.input[:2]), [linear]
        for group in [group for group in groups if group[0] & names]:
            groups.remove(group)
            names, members = names | group[0], [*group[1], *members]
        groups.append((names, members))
    return [members for _, members in groups]


def _smoothing_factors(
    graph: Graph, group: Sequence[Linear], absmax: Mapping[str, Array], alpha: float
) -> NDArray[np.float64]:
    """Computes ``s`` for the channels of the inputs of a group, (channels,), scaled to a geometric mean of 1."""
    weights = np.max([np.abs(graph.constants[linear.node.input[1]]).max(axis=1) for linear in group], axis=0)
    largest = np.max([absmax[linear.node.input[0]] for linear in group], axis=0)
    logs = alpha * np.log(np.maximum(largest, TINY)) - (1 - alpha) * np.log(np.maximum(weights, TINY))
    return np.asarray(np.exp(logs - logs.mean()))


def _smooth_values(graph: Graph, linears: Sequence[Linear], factors: Mapping[str, NDArray[np.float64] | None]) -> None:
    """Divides the values' projection by ``s`` instead of the attention's output, which is a mean of values."""
    makers = {linear.node.output[0]: linear for linear in linears}
    for projection in [linear for linear in linears if linear.source.op_type == ATTENTION]:
        found = factors[projection.node.input[0]]
        if found is not None:
            value = makers[projection.source.input[2]].node
            # A new constant is required: equal constants share one tensor, which other nodes may read.
            name = f"{value.input[1]}.over.{projection.node.input[1]}"
            value.input[1] = graph.constant(name, graph.constants[value.input[1]] / found)  # (in, channels)


def _multiply(graph: Graph, linear: Linear, quantized: Quantized, factors: NDArray[np.float64] | None) -> None:
    """Replaces the MatMul with an integer product, which includes the bias if the scale is fixed."""
    node, name = linear.node, linear.node.input[1]
    weight = graph.constants[name].astype(np.float64)  # (in, out)
    if factors is not None:
        weight = weight * factors[:, None]
    scales = np.maximum(np.abs(weight).max(axis=0), TINY**2) / (SIGNED_ZERO - 1)  # (out,)
    # Layers that share their weight have the same factors, so they share its integers.
    integers = graph.constant(f"{name}.int8", np.rint(weight / scales).astype(np.int8))
    scales_name = graph.constant(f"{name}.int8.scale", scales.astype(np.float32))
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
    if len(source.input) < 3:
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
