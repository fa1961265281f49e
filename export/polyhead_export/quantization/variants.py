"""The forms of a model's graph.

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
from typing import cast

import numpy as np
import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers.float16 import convert_float_to_float16
from polyhead_bundle import weights_name
from polyhead_training.model import PolyheadConfig
from polyhead_training.tokenization import pad

from polyhead_export.errors import GraphError
from polyhead_export.layout import GRAPHS
from polyhead_export.onnx_export import EMBEDDING_OUTPUT, random_texts, save_graph
from polyhead_export.runners import onnx_pass
from polyhead_export.settings import VariantName

from .fusion import fuse_attention
from .smoothquant import LINEARS_A_LAYER, collect_absmax, fold_biases, quantize

# Takes a graph; by how much its worst head is right less often than the trained model, 0 where it is not.
Loss = Callable[[Path], float]

Ids = Sequence[int]

# Tried for SmoothQuant's alpha; the best on texts that the calibration did not see is taken.
_SMOOTHINGS = (0.5, 0.6, 0.7, 0.8)
_CALIBRATION_TEXTS = 96
_JUDGING_TEXTS = 48
# Values beyond what the calibration saw are cut off. A model of reviews and news, calibrated on random tokens: worst
# cosine distance 0.046 on 2,372 real texts; with room above what was seen 0.015 (1.3) and 0.008 (1.5); with 96 real
# texts and a little room 0.004.
_ROOM_WITHOUT_TEXTS = 1.5
_ROOM_WITH_TEXTS = 1.1


def make_variant(  # noqa: PLR0917
    name: VariantName,
    plain: Path,
    config: PolyheadConfig,
    golden: Sequence[Ids],
    say: Callable[[str], None],
    texts: Sequence[Ids] = (),
    loss: Loss = lambda _: 0.0,
) -> Path:
    """Writes one variant beside the plain graph.

    Args:
        name: The variant.
        plain: The fp32 graph.
        config: The model's configuration.
        golden: Token ids of the golden texts.
        say: Takes each line of progress.
        texts: Token ids of texts such as the model will read, as far as there are any; some are calibrated on.
        loss: What a graph loses of the trained model's accuracy; the smoothing is chosen by it, then by the cosine.

    Returns:
        The variant's file.

    Raises:
        GraphError: The graph cannot be turned into it.
    """
    target = plain.with_name(GRAPHS[name])
    if name == "int8":
        _make_int8(plain, target, config, golden, say, texts, loss)
    elif name == "int8-dynamic":
        _make_dynamic(plain, target)
    elif name == "fp16":
        _make_fp16(plain, target)
    return target


def _make_int8(  # noqa: PLR0917
    plain: Path,
    target: Path,
    config: PolyheadConfig,
    golden: Sequence[Ids],
    say: Callable[[str], None],
    texts: Sequence[Ids],
    loss: Loss,
) -> None:
    """Real texts set the ranges where there are any; without, random tokens and the golden texts do, with more room."""
    layers = int(config.backbone_config().num_hidden_layers)
    try:
        fused = fold_biases(fuse_attention(onnx.load(str(plain)), layers))
    except GraphError:
        raise
    except Exception as error:  # whatever the library raises
        raise GraphError(f"onnxscript cannot fuse the graph: {error}") from error
    random = random_texts(config, _CALIBRATION_TEXTS + _JUDGING_TEXTS)
    real = texts[:: max(1, len(texts) // len(random))][: len(random)]
    unseen = [*golden[1::2], *random[:_JUDGING_TEXTS], *real[::3]]
    seen = [*golden[::2], *random[_JUDGING_TEXTS:], *real[1::3], *real[2::3]]
    scratch = target.with_name(f"{target.name}.scratch")
    room = np.float32(_ROOM_WITH_TEXTS if real else _ROOM_WITHOUT_TEXTS)
    largest = {value: room * channels for value, channels in collect_absmax(scratch, fused, seen).items()}
    wanted = _embeddings(plain, unseen, config.pad_token_id)
    best = (-np.inf, -np.inf, 0.0)
    for smoothing in _SMOOTHINGS:
        save_graph(quantize(fused, largest, smoothing, layers * LINEARS_A_LAYER), scratch)
        cosine = float((_embeddings(scratch, unseen, config.pad_token_id) * wanted).sum(axis=1).mean())
        best = max(best, (-loss(scratch), cosine, smoothing))
    for path in scratch.parent.glob(f"{scratch.name}*"):
        path.unlink()
    known = f"{len(seen)} texts, {len(real) - len(real[::3])} of them labelled rows"
    say(f"int8: calibrated on {known}; smoothing {best[2]}, mean cosine {best[1]:.5f} on {len(unseen)} others")
    save_graph(quantize(fused, largest, best[2], layers * LINEARS_A_LAYER), target)


def _embeddings(
    graph: Path, texts: Sequence[Ids], pad_token_id: int
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Embeddings of length 1, each text alone, (texts, H)."""
    run = onnx_pass(graph)
    found = np.stack([run(*pad([ids], pad_token_id))[EMBEDDING_OUTPUT][0] for ids in texts]).astype(np.float64)
    return cast("np.ndarray[tuple[int, int], np.dtype[np.float64]]", found / np.linalg.norm(found, axis=1)[:, None])


def _make_dynamic(plain: Path, target: Path) -> None:
    external = plain.with_name(weights_name(plain.name)).exists()
    logger = logging.getLogger()
    level = logger.level
    # It advises to run its own shape inference first, which changes nothing here.
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
    except Exception as error:  # whatever the library raises
        raise GraphError(f"onnxruntime cannot quantize the graph: {error}") from error
    finally:
        logger.setLevel(level)
    save_graph(onnx.load(str(target)), target)


def _make_fp16(plain: Path, target: Path) -> None:
    try:
        # It prints what it truncates.
        with redirect_stdout(StringIO()):
            # By its path a graph of more than 2 GB passes through shape inference, too.
            proto = convert_float_to_float16(str(plain), keep_io_types=True)
    except Exception as error:  # whatever the library raises
        raise GraphError(f"onnxruntime cannot turn the graph into fp16: {error}") from error
    save_graph(proto, target)
