"""Makes the variants of a model's graph.

::

    model --export_graph--> fp32 --+-- fuse, fold, calibrate, quantize --> int8           integers, batch-invariant
                                   +-- onnxruntime's dynamic quantizer --> int8-dynamic   faster, batch-dependent
                                   +-- onnxruntime's converter -----------> fp16          for GPUs
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers.float16 import convert_float_to_float16
from polyhead_bundle import external_data_name
from polyhead_training.model import PolyheadModel
from polyhead_training.structure import linear_shapes
from polyhead_training.tokenization import pad

from polyhead_export.errors import FusionError, GraphError
from polyhead_export.layout import EMBEDDING_OUTPUT, GRAPHS
from polyhead_export.onnx_export import quiet, save_graph
from polyhead_export.random_texts import RandomTexts
from polyhead_export.runners import Runner, onnx_runner, run_all
from polyhead_export.settings import VariantName

from .fusion import fuse_attention
from .smoothquant import collect_absmax, fold_biases, quantize

# Takes a graph; returns the largest accuracy that any head loses against the trained model, 0 for none.
AccuracyDrop = Callable[[Path], float]

Ids = Sequence[int]

# Candidates for SmoothQuant's alpha; the best on texts that calibration did not use is chosen.
_SMOOTHINGS = (0.5, 0.6, 0.7, 0.8)
_CALIBRATION_TEXTS = 96
_SELECTION_TEXTS = 48
_MAX_RANDOM_TOKENS = 256
# Values above the largest calibration value are clipped, so ranges are widened by a margin. For a model of reviews and
# news, calibrated on random tokens, the worst cosine distance on 2,372 real texts was 0.046 without a margin, 0.015
# with 1.3 and 0.008 with 1.5; calibrated on 96 real texts with the small margin, it was 0.004.
RANGE_MARGIN_RANDOM_TOKENS = 1.5
RANGE_MARGIN_REAL_TEXTS = 1.1


def make_variant(  # noqa: PLR0917
    name: VariantName,
    plain: Path,
    model: PolyheadModel,
    golden: Sequence[Ids],
    report: Callable[[str], None],
    texts: Sequence[Ids] = (),
    accuracy_drop: AccuracyDrop = lambda _: 0.0,
    open_runner: Callable[[Path], Runner] = onnx_runner,
) -> Path:
    """Writes one variant beside the plain graph.

    Args:
        name: The variant.
        plain: The fp32 graph.
        model: The trained model.
        golden: Token ids of the golden texts.
        report: Called with each line of progress.
        texts: Token ids of realistic texts, if any are available; some are used for calibration.
        accuracy_drop: Accuracy that a graph loses; the smoothing is chosen by it first, then by the cosine.
        open_runner: Opens the runner of a graph.

    Returns:
        The variant's file.

    Raises:
        GraphError: The graph cannot be converted.
    """
    target = plain.with_name(GRAPHS[name])
    if name == "int8":
        _make_int8(plain, target, model, golden, report, texts, accuracy_drop, open_runner)
    elif name == "int8-dynamic":
        _make_dynamic(plain, target)
    elif name == "fp16":
        _make_fp16(plain, target)
    return target


def _make_int8(  # noqa: PLR0917
    plain: Path,
    target: Path,
    model: PolyheadModel,
    golden: Sequence[Ids],
    report: Callable[[str], None],
    texts: Sequence[Ids],
    accuracy_drop: AccuracyDrop,
    open_runner: Callable[[Path], Runner],
) -> None:
    """Calibrates on golden texts, random tokens and available real texts; without these, the range margin is larger."""
    config = model.config
    fused = _fused(plain, int(config.backbone_config().num_hidden_layers), report)
    linears = linear_shapes(model.backbone)
    random = RandomTexts(config, seed=1).texts(_CALIBRATION_TEXTS + _SELECTION_TEXTS, _MAX_RANDOM_TOKENS)
    real = texts[:: max(1, len(texts) // len(random))][: len(random)]
    selection = [*golden[1::2], *random[:_SELECTION_TEXTS], *real[::3]]
    calibration = [*golden[::2], *random[_SELECTION_TEXTS:], *real[1::3], *real[2::3]]
    scratch = target.with_name(f"{target.name}.scratch")
    margin = np.float32(RANGE_MARGIN_REAL_TEXTS if real else RANGE_MARGIN_RANDOM_TOKENS)
    absmax = {value: margin * channels for value, channels in collect_absmax(scratch, fused, calibration).items()}
    expected = _embeddings(open_runner(plain), selection, config.pad_token_id)
    best = (-np.inf, -np.inf, 0.0)
    for smoothing in _SMOOTHINGS:
        save_graph(quantize(fused, absmax, smoothing, linears), scratch)
        cosine = float(
            (_embeddings(open_runner(scratch), selection, config.pad_token_id) * expected).sum(axis=1).mean()
        )
        best = max(best, (-accuracy_drop(scratch), cosine, smoothing))
    for path in scratch.parent.glob(f"{scratch.name}*"):
        path.unlink()
    used = f"{len(calibration)} texts, {len(real) - len(real[::3])} of them evaluation data"
    report(f"int8: calibrated on {used}; smoothing {best[2]}, mean cosine {best[1]:.5f} on {len(selection)} others")
    save_graph(quantize(fused, absmax, best[2], linears), target)


def _fused(plain: Path, layers: int, report: Callable[[str], None]) -> onnx.ModelProto:
    """Returns the graph with fused attention, or as it is where the attention is of another kind."""
    proto = onnx.load(str(plain))
    try:
        with quiet():
            return fold_biases(fuse_attention(proto, layers))
    except FusionError:
        report("int8: the attention of this backbone is not fused; its output is quantized with one scale per token")
        return proto
    except Exception as error:  # onnxscript raises errors of many types
        raise GraphError(f"onnxscript cannot fuse the graph: {error}") from error


def _embeddings(runner: Runner, texts: Sequence[Ids], pad_token_id: int) -> NDArray[np.float64]:
    """Computes embeddings of unit length, each text in a batch of its own, (texts, H)."""
    batches = [pad([ids], pad_token_id) for ids in texts]
    outputs = run_all(runner, batches, len(batches))
    embeddings = np.stack([found[EMBEDDING_OUTPUT][0] for found in outputs]).astype(np.float64)
    return np.asarray(embeddings / np.linalg.norm(embeddings, axis=1)[:, None])


def _make_dynamic(plain: Path, target: Path) -> None:
    external = plain.with_name(external_data_name(plain.name)).exists()
    logger = logging.getLogger()
    level = logger.level
    # The quantizer advises to run its own shape inference first, which makes no difference here.
    logger.setLevel(logging.ERROR)
    try:
        quantize_dynamic(
            plain,
            target,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=external,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
    except Exception as error:  # onnxruntime raises errors of many types
        raise GraphError(f"onnxruntime cannot quantize the graph: {error}") from error
    finally:
        logger.setLevel(level)
    save_graph(onnx.load(str(target)), target)


def _make_fp16(plain: Path, target: Path) -> None:
    try:
        # The converter prints the values that it truncates.
        with redirect_stdout(StringIO()):
            # Passing the path lets a graph of more than 2 GB pass through shape inference.
            proto = convert_float_to_float16(str(plain), keep_io_types=True)
    except Exception as error:  # onnxruntime raises errors of many types
        raise GraphError(f"onnxruntime cannot convert the graph to fp16: {error}") from error
    save_graph(proto, target)
