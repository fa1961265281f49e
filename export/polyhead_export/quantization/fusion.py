"""Fuses attention into one operator per layer, and counts the operators of a graph.

::

    plain graph --onnxscript--> MatMul, Softmax, ... become MultiHeadAttention --count--> one per layer, or FusionError
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
    """Replaces the attention of every layer with one ``com.microsoft.MultiHeadAttention``.

    onnxscript's other fusions are not applied: LayerNormalization fused with its residual is slower on CPUs than the
    two operators are separately, and the quantizer requires the projections to be separate from the attention.

    Args:
        proto: The plain graph; it is not modified.
        layers: Number of layers of the backbone.

    Raises:
        FusionError: The number of attention operators is not ``layers``.
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
    found = sum(node.op_type == ATTENTION for node in fused.graph.node)
    if found != layers:
        operators = summary(count_operators(fused))
        raise FusionError(f"expected {layers} {ATTENTION} after fusion, found {found}; the graph has {operators}")
    return fused


def count_operators(proto: onnx.ModelProto) -> dict[str, int]:
    """Counts the operators of a graph by name; the names of contrib operators include their domain."""
    return dict(sorted(Counter(_name(node) for node in proto.graph.node).items()))


def summary(counts: dict[str, int]) -> str:
    """Formats operator counts in one line, the most frequent operators first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {name.rpartition('.')[2]}" for name, count in ordered)


def _name(node: onnx.NodeProto) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else str(node.op_type)
