"""8-bit integers for the backbone's linear layers, with answers that do not depend on the batch.

::

    fused graph --fold_biases--> the same answers, fewer additions --largest_values--> what each channel reaches
                --quantize--> every linear layer of the backbone on 8-bit integers; tables and heads stay fp32

A linear layer ``y = x W + b`` becomes ``y = (q(x / s) - z) Q a c + b`` with unsigned 8-bit ``q``, zero point ``z``,
signed 8-bit ``Q`` and a scale ``c`` for each output channel. What reads a LayerNorm or an attention has one scale
``a`` for all texts: smoothing (SmoothQuant, arXiv 2211.10438, equation 4) moves what is large in single channels by
``s`` from x to W, ``s_j = max|x_j| ** alpha / max|W_j| ** (1 - alpha)``, and costs nothing, since ``1 / s`` is part of
the LayerNorm's own weights or of the values' projection. What reads a GELU has heavy tails that no fixed scale serves,
so ``a`` is taken from each token's own largest value; a GELU is never below -0.1701, so that few of the 256 steps are
spent below zero. No scale depends on another token: that is why an answer is the same alone and in any batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from polyhead_export.errors import FusionError
from polyhead_export.onnx_export import save_graph
from polyhead_export.runners import session_on_cpu

from .fusion import ATTENTION

Array = NDArray[np.float32]

# The linear layers of one layer of a transformer: query, key, value, attention's output, and two of the feed-forward.
LINEARS_A_LAYER = 6
_CONTRIB = "com.microsoft"
_SIGNED_ZERO = 128
_GELU_ZERO = 16
_GELU_LOWEST = 0.1701
# Scales of channels that are never used must not be zero.
_TINY = 1e-5


@dataclass(frozen=True)
class Linear:
    """A product with a constant matrix.

    Attributes:
        node: The MatMul.
        source: Operator that its input comes from: LayerNormalization, MultiHeadAttention or Gelu.
        bias: The Add of its bias, or None.
    """

    node: onnx.NodeProto
    source: onnx.NodeProto
    bias: onnx.NodeProto | None


class Graph:
    """A graph with the look-ups that rewriting needs. Nodes are changed in place; ``finish`` makes the model whole."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = onnx.ModelProto()
        self.proto.CopyFrom(proto)
        self.nodes: list[onnx.NodeProto] = list(self.proto.graph.node)
        self.constants: dict[str, Array] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in self.proto.graph.initializer
        }
        self.index()

    def index(self) -> None:
        """Looks up again who makes and who reads a value."""
        self.maker = {output: node for node in self.nodes for output in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.readers[name].append(node)

    def linears(self) -> list[Linear]:
        """The backbone's linear layers, in order; those of heads and pooling are Gemm, on one vector a text."""
        products = [node for node in self.nodes if node.op_type == "MatMul" and node.input[1] in self.constants]
        return [Linear(node, self.maker[node.input[0]], self._bias(node)) for node in products]

    def _bias(self, product: onnx.NodeProto) -> onnx.NodeProto | None:
        readers = self.readers[product.output[0]]
        if len(readers) == 1 and readers[0].op_type == "Add":
            other = [name for name in readers[0].input if name != product.output[0]]
            if len(other) == 1 and self.constants.get(other[0], np.zeros(0)).ndim == 1 and other[0] in self.constants:
                return readers[0]
        return None

    def bias_name(self, linear: Linear) -> str:
        """Name of a linear layer's bias."""
        inputs = linear.bias.input if linear.bias is not None else ()
        return next(str(name) for name in inputs if name in self.constants)

    def constant(self, name: str, value: NDArray[np.generic] | np.generic) -> str:
        """Adds a constant, or takes the one that has this name."""
        self.constants.setdefault(name, np.asarray(value))
        return name

    def replace_value(self, old: str, new: str) -> None:
        """Lets whoever reads one value read another."""
        for node in self.nodes:
            for place, name in enumerate(node.input):
                if name == old:
                    node.input[place] = new

    def finish(self) -> onnx.ModelProto:
        """The model, without what nobody reads any more."""
        self._drop_unread()
        graph = self.proto.graph
        del graph.node[:], graph.value_info[:]
        graph.node.extend(self.nodes)
        read = {name for node in self.nodes for name in node.input}
        for place in reversed(range(len(graph.initializer))):
            if graph.initializer[place].name not in read:
                del graph.initializer[place]
        new = read - {tensor.name for tensor in graph.initializer}
        graph.initializer.extend(
            numpy_helper.from_array(np.asarray(value), name) for name, value in self.constants.items() if name in new
        )
        if all(entry.domain != _CONTRIB for entry in self.proto.opset_import):
            self.proto.opset_import.append(helper.make_opsetid(_CONTRIB, 1))
        return self.proto

    def _drop_unread(self) -> None:
        wanted = {output.name for output in self.proto.graph.output}
        kept = []
        for node in reversed(self.nodes):
            if wanted.intersection(node.output):
                kept.append(node)
                wanted.update(node.input)
        self.nodes = kept[::-1]


def fold_biases(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same function without the biases of keys and values.

    A key's bias adds the same to all scores of a query, which softmax does not see; a value's bias passes through the
    attention, whose weights sum to 1, and so becomes part of the output projection's.
    """
    graph = Graph(proto)
    linears = {linear.node.output[0]: linear for linear in graph.linears()}
    by_bias = {linear.bias.output[0]: linear for linear in linears.values() if linear.bias is not None}
    for attention in [node for node in graph.nodes if node.op_type == ATTENTION]:
        projection = next(linear for linear in linears.values() if linear.source is attention)
        _, key, value = (by_bias.get(name) for name in attention.input[:3])
        if key is not None:
            graph.replace_value(_output(key), key.node.output[0])
        if value is not None and projection.bias is not None:
            name, own = graph.bias_name(projection), graph.bias_name(value)
            passed = graph.constants[own].astype(np.float64) @ graph.constants[projection.node.input[1]]
            folded = graph.constant(f"{name}.with.{own}", (graph.constants[name] + passed).astype(np.float32))
            projection.bias.input[list(projection.bias.input).index(name)] = folded
            graph.replace_value(_output(value), value.node.output[0])
    return graph.finish()


def collect_absmax(path: Path, proto: onnx.ModelProto, texts: Sequence[Sequence[int]]) -> dict[str, Array]:
    """The largest absolute value of each channel of what the linear layers read.

    Args:
        path: A file to write a graph to that shows these values.
        proto: The graph with folded biases.
        texts: Token ids of the calibration texts.

    Returns:
        (channels,) by the name of the value.
    """
    watched = list(dict.fromkeys(linear.node.input[0] for linear in Graph(proto).linears()))
    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    del shown.graph.output[:]
    shown.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in watched)
    save_graph(shown, path)
    session = session_on_cpu(path)
    largest: dict[str, Array] = {}
    for ids in texts:
        feeds = {"input_ids": np.array([ids], np.int64), "attention_mask": np.ones((1, len(ids)), np.int64)}
        for name, values in zip(watched, session.run(watched, feeds), strict=True):
            found = np.abs(values).reshape(-1, values.shape[-1]).max(axis=0)  # (channels,)
            largest[name] = np.maximum(largest.get(name, np.float32(0)), found)
    return largest


def quantize(proto: onnx.ModelProto, largest: Mapping[str, Array], smoothing: float, expected: int) -> onnx.ModelProto:
    """The graph with every linear layer of the backbone on 8-bit integers.

    Args:
        proto: The graph with folded biases.
        largest: From ``collect_absmax``.
        smoothing: Share of the trouble that moves from the activations to the weights, 0 to 1; alpha of SmoothQuant.
        expected: Linear layers that there must be.

    Raises:
        FusionError: Other ones were found.
    """
    graph = Graph(proto)
    linears = graph.linears()
    if strangers := sorted({linear.source.op_type for linear in linears} - _QUANTIZERS.keys()):
        raise FusionError(f"int8 knows linear layers after {', '.join(_QUANTIZERS)}, not after {', '.join(strangers)}")
    if len(linears) != expected:
        raise FusionError(f"expected {expected} linear layers in the backbone, found {len(linears)}")
    readers: dict[str, list[Linear]] = defaultdict(list)
    for linear in linears:
        readers[linear.node.input[0]].append(linear)
    smooths = {name: _smoothing(graph, those, largest[name], smoothing) for name, those in readers.items()}
    _smooth_values(graph, linears, smooths)
    for name, those in readers.items():
        quantized = _QUANTIZERS[those[0].source.op_type](graph, name, those[0].source, smooths[name], largest[name])
        for linear in those:
            _multiply(graph, linear, quantized, smooths[name])
    _keep_apart(graph)
    return graph.finish()


@dataclass(frozen=True)
class _Quantized:
    """Names of an input on 8-bit integers, its scale (one number, or one for each token) and its zero point."""

    nodes: list[onnx.NodeProto]
    values: str
    scale: str
    zero: str
    by_token: bool = False


def _smoothing(graph: Graph, readers: Sequence[Linear], largest: Array, alpha: float) -> NDArray[np.float64]:
    """``s`` of the channels of an input, (channels,), with a geometric mean of 1."""
    if readers[0].source.op_type == "Gelu":
        return np.ones(len(largest))
    weights = np.max([np.abs(graph.constants[reader.node.input[1]]).max(axis=1) for reader in readers], axis=0)
    logs = alpha * np.log(np.maximum(largest, _TINY)) - (1 - alpha) * np.log(np.maximum(weights, _TINY))
    return np.asarray(np.exp(logs - logs.mean()))


def _smooth_values(graph: Graph, linears: Sequence[Linear], smooths: Mapping[str, NDArray[np.float64]]) -> None:
    """An attention's output is a mean of values, so what divides it may divide the values' projection instead."""
    makers = {linear.node.output[0]: linear for linear in linears}
    for attention in [node for node in graph.nodes if node.op_type == ATTENTION]:
        projection = makers[attention.input[2]].node
        # Under a name of its own: equal constants are one tensor, which others may read, too.
        weight = graph.constants[projection.input[1]] / smooths[attention.output[0]]  # (in, channels)
        projection.input[1] = graph.constant(f"{projection.output[0]}.smooth", weight)


def _quantize_normalized(
    graph: Graph, name: str, source: onnx.NodeProto, smooth: NDArray[np.float64], largest: Array
) -> _Quantized:
    """A second LayerNormalization with 1 / s in its weights; the first one still feeds the residual branch."""
    weight, bias = (
        graph.constant(f"{name}.smooth.{part}", (graph.constants[source.input[place]] / smooth).astype(np.float32))
        for place, part in ((1, "weight"), (2, "bias"))
    )
    normalized = onnx.NodeProto()
    normalized.CopyFrom(source)
    normalized.input[1], normalized.input[2], normalized.output[0] = weight, bias, f"{name}.smooth"
    normalized.name = f"{source.name}.smooth"
    return _quantize_fixed(graph, f"{name}.smooth", [normalized], float((largest / smooth).max()))


def _quantize_attended(
    graph: Graph, name: str, source: onnx.NodeProto, smooth: NDArray[np.float64], largest: Array
) -> _Quantized:
    del source
    return _quantize_fixed(graph, name, [], float((largest / smooth).max()))


def _quantize_fixed(graph: Graph, name: str, before: list[onnx.NodeProto], largest: float) -> _Quantized:
    scale = graph.constant(f"{name}.scale", np.float32(max(largest, _TINY) / (_SIGNED_ZERO - 1)))
    zero = graph.constant(f"zero.{_SIGNED_ZERO}", np.uint8(_SIGNED_ZERO))
    node = helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}.q"])
    return _Quantized([*before, node], f"{name}.q", scale, zero)


def _quantize_gelu(
    graph: Graph, name: str, source: onnx.NodeProto, smooth: NDArray[np.float64], largest: Array
) -> _Quantized:
    """A scale for each token from its largest value, in steps that reach from the lowest value of a GELU."""
    del source, smooth, largest
    above = np.float32(1 / (255 - _GELU_ZERO))
    zero = graph.constant(f"zero.{_GELU_ZERO}", np.uint8(_GELU_ZERO))
    nodes = [
        helper.make_node("ReduceMax", [name, graph.constant("last", np.array([-1]))], [f"{name}.max"], keepdims=1),
        helper.make_node("Mul", [f"{name}.max", graph.constant("gelu.above", above)], [f"{name}.step"]),
        helper.make_node(
            "Max",
            [f"{name}.step", graph.constant("gelu.below", np.float32(_GELU_LOWEST / _GELU_ZERO))],
            [f"{name}.scale"],
        ),
        # Instead of a division for each number: int8 went from 0.94 to 0.96 of the speed of dynamic int8.
        helper.make_node("Reciprocal", [f"{name}.scale"], [f"{name}.inverse"]),
        helper.make_node("Mul", [name, f"{name}.inverse"], [f"{name}.steps"]),
        helper.make_node(
            "QuantizeLinear", [f"{name}.steps", graph.constant("one", np.float32(1)), zero], [f"{name}.q"]
        ),
    ]
    return _Quantized(nodes, f"{name}.q", f"{name}.scale", zero, by_token=True)


_QUANTIZERS = {
    "LayerNormalization": _quantize_normalized,
    ATTENTION: _quantize_attended,
    "Gelu": _quantize_gelu,
}


def _multiply(graph: Graph, linear: Linear, quantized: _Quantized, smooth: NDArray[np.float64]) -> None:
    """Puts the product on integers in the place of the MatMul, and of its bias where the scale is fixed."""
    node, name = linear.node, linear.node.output[0]
    weight = graph.constants[node.input[1]].astype(np.float64) * smooth[:, None]  # (in, out)
    scales = np.maximum(np.abs(weight).max(axis=0), _TINY**2) / (_SIGNED_ZERO - 1)  # (out,)
    integers = graph.constant(f"{name}.weight", np.rint(weight / scales).astype(np.int8))
    scales_name = graph.constant(f"{name}.weight.scale", scales.astype(np.float32))
    if quantized.by_token:
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
    made = helper.make_node("MatMulIntegerToFloat", inputs, [product], domain=_CONTRIB)
    # The input is quantized once for all that read it, before the first of them.
    before = [one for one in quantized.nodes if one.output[0] not in graph.maker]
    place = graph.nodes.index(node)
    graph.nodes[place : place + 1] = [*before, made, *after]
    graph.index()


def _move_bias_to_residual(graph: Graph, linear: Linear) -> None:
    """A bias that would be added to ``x + residual`` anyhow becomes part of the LayerNorm that makes the residual."""
    if linear.bias is None or len(readers := graph.readers[_output(linear)]) != 1:
        return
    added = [name for name in readers[0].input if name != _output(linear)]
    source = graph.maker.get(added[0]) if readers[0].op_type == "Add" and len(added) == 1 else None
    # By now the quantized branch has a LayerNormalization of its own.
    if source is None or source.op_type != "LayerNormalization" or len(graph.readers[added[0]]) != 1:
        return
    name = graph.bias_name(linear)
    both = graph.constants[source.input[2]] + graph.constants[name]
    source.input[2] = graph.constant(f"{source.output[0]}.with.{name}", both)
    graph.replace_value(_output(linear), linear.node.output[0])
    graph.nodes.remove(linear.bias)


def _keep_apart(graph: Graph) -> None:
    """Sum for the Add of a residual: onnxruntime would fuse an Add with its LayerNormalization, which is slower."""
    for node in graph.nodes:
        adding = graph.maker.get(node.input[0]) if node.op_type == "LayerNormalization" else None
        if adding is not None and adding.op_type == "Add" and not graph.constants.keys() & set(adding.input):
            adding.op_type = "Sum"


def _output(linear: Linear) -> str:
    return str((linear.bias or linear.node).output[0])
