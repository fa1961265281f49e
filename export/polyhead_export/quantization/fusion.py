"""The graph's attention as one operator a layer, and what a graph is made of.

::

    plain graph --onnxscript--> MatMul, Softmax, ... become MultiHeadAttention --count--> one a layer, or FusionError
"""

from __future__ import annotations

from collections import Counter

import onnx
import onnx_ir
import onnx_ir.passes.common as common_passes
from onnxscript.optimizer import optimize
from onnxscript.rewriter.ort_fusions import shape_optimization
from onnxscript.rewriter.ort_fusions.mha import fuse_mha1, fuse_mha2
from onnxscript.rewriter.ort_fusions.mha_scale import fuse_mha_scale
from onnxscript.rewriter.ort_fusions.sdpa import fuse_sdpa

from polyhead_export.errors import FusionError

ATTENTION = "MultiHeadAttention"


def fuse_attention(proto: onnx.ModelProto, layers: int) -> onnx.ModelProto:
    """The graph with the attention of every layer as one ``com.microsoft.MultiHeadAttention``.

    onnxscript's other fusions are left out: LayerNormalization with its residual in one operator is slower on CPUs than
    the two on their own, and a quantizer needs the projections apart from the attention.

    Args:
        proto: The plain graph; it is left as it is.
        layers: Layers of the backbone.

    Raises:
        FusionError: Another number of attentions was found.
    """
    model = onnx_ir.from_proto(proto)
    common_passes.ShapeInferencePass()(model)
    optimize(model)
    shape_optimization.rules.apply_to_model(model)
    optimize(model)
    common_passes.CommonSubexpressionEliminationPass()(model)
    fuse_sdpa(model, apply_shape_inference=True)
    for fuse in (fuse_mha1, fuse_mha2, fuse_mha_scale):
        fuse(model)
    optimize(model)
    common_passes.ClearMetadataAndDocStringPass()(model)
    fused = onnx_ir.to_proto(model)
    require_count(fused, ATTENTION, layers)
    return fused


def operators(proto: onnx.ModelProto) -> dict[str, int]:
    """How often each operator stands in a graph, by its name; contrib ones with their domain."""
    return dict(sorted(Counter(_name(node) for node in proto.graph.node).items()))


def summary(counted: dict[str, int]) -> str:
    """One line for people, the commonest operators first."""
    ordered = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {name.rpartition('.')[2]}" for name, count in ordered)


def require_count(proto: onnx.ModelProto, operator: str, expected: int) -> None:
    """Refuses a graph in which a fusion that was expected did not happen, or not everywhere.

    Raises:
        FusionError: Says how many of the operator there are, and what else.
    """
    found = sum(node.op_type == operator for node in proto.graph.node)
    if found != expected:
        raise FusionError(
            f"expected {expected} {operator} after fusion, found {found}; the graph has {summary(operators(proto))}"
        )


def _name(node: onnx.NodeProto) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else str(node.op_type)
