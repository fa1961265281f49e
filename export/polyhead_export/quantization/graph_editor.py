"""Edits an ONNX graph: look-ups by value name, new constants, and removal of unused nodes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[np.float32]

# Domain of onnxruntime's own operators.
CONTRIB_DOMAIN = "com.microsoft"


@dataclass(frozen=True)
class Linear:
    """A linear layer: a product with a constant matrix.

    Attributes:
        node: The MatMul.
        source: The operator that computes its input.
        bias: The Add of its bias, or None.
    """

    node: onnx.NodeProto
    source: onnx.NodeProto
    bias: onnx.NodeProto | None

    @property
    def output(self) -> str:
        """Name of the layer's output, with its bias."""
        return str((self.bias or self.node).output[0])


class Graph:
    """A copy of a graph with the look-ups that rewriting requires.

    Nodes are modified in place; call ``index`` after changing ``nodes``, and ``finish`` to obtain the model.

    Attributes:
        nodes: The nodes, in topological order.
        constants: Constants by name.
        maker: The node that computes each value, by the value's name.
        readers: The nodes that read each value, by the value's name.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = onnx.ModelProto()
        self.proto.CopyFrom(proto)
        self.nodes: list[onnx.NodeProto] = list(self.proto.graph.node)
        self.constants: dict[str, Array] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in self.proto.graph.initializer
        }
        self.index()

    def index(self) -> None:
        """Rebuilds ``maker`` and ``readers``."""
        self.maker = {output: node for node in self.nodes for output in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.readers[name].append(node)

    def linears(self) -> list[Linear]:
        """Returns the backbone's linear layers in order; heads and pooling use Gemm, on one vector per text.

        Products with a table alone, such as DeBERTa's projections of relative positions, depend on no text.
        """
        of_text = self._values_of_text()
        products = [
            node
            for node in self.nodes
            if node.op_type == "MatMul" and node.input[1] in self.constants and node.input[0] in of_text
        ]
        return [Linear(node, self.maker[node.input[0]], self._bias(node)) for node in products]

    def _values_of_text(self) -> set[str]:
        """Returns the values that depend on the content of the inputs, not only on their shapes."""
        found = {value.name for value in self.proto.graph.input}
        for node in self.nodes:
            if node.op_type != "Shape" and found.intersection(node.input):
                found.update(node.output)
        return found

    def _bias(self, product: onnx.NodeProto) -> onnx.NodeProto | None:
        readers = self.readers[product.output[0]]
        if len(readers) == 1 and readers[0].op_type == "Add":
            other = [name for name in readers[0].input if name != product.output[0]]
            if len(other) == 1 and self.constants.get(other[0], np.zeros(0)).ndim == 1 and other[0] in self.constants:
                return readers[0]
        return None

    def bias_name(self, linear: Linear) -> str:
        """Name of the constant that holds a linear layer's bias."""
        inputs = linear.bias.input if linear.bias is not None else ()
        return next(str(name) for name in inputs if name in self.constants)

    def constant(self, name: str, value: NDArray[np.generic] | np.generic) -> str:
        """Adds a constant unless one with this name exists, and returns the name."""
        self.constants.setdefault(name, np.asarray(value))
        return name

    def replace_value(self, old: str, new: str) -> None:
        """Makes every reader of the value ``old`` read ``new`` instead."""
        for node in self.nodes:
            for position, name in enumerate(node.input):
                if name == old:
                    node.input[position] = new

    def finish(self) -> onnx.ModelProto:
        """Returns the model, without unused nodes and constants."""
        self._drop_unused()
        graph = self.proto.graph
        del graph.node[:], graph.value_info[:]
        graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        for position in reversed(range(len(graph.initializer))):
            if graph.initializer[position].name not in used:
                del graph.initializer[position]
        added = used - {tensor.name for tensor in graph.initializer}
        graph.initializer.extend(
            numpy_helper.from_array(np.asarray(value), name) for name, value in self.constants.items() if name in added
        )
        if all(entry.domain != CONTRIB_DOMAIN for entry in self.proto.opset_import):
            self.proto.opset_import.append(helper.make_opsetid(CONTRIB_DOMAIN, 1))
        return self.proto

    def _drop_unused(self) -> None:
        used = {output.name for output in self.proto.graph.output}
        kept = []
        for node in reversed(self.nodes):
            if used.intersection(node.output):
                kept.append(node)
                used.update(node.input)
        self.nodes = kept[::-1]
