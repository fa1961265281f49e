"""Runs one batch: with the trained model in PyTorch, or with a graph in onnxruntime, both on the CPU.

Both use a single thread. The number of threads determines the order in which numbers are added, and so the last digits
of the golden outputs in a bundle, which must be the same in every export.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from .errors import GraphError
from .layout import EMBEDDING_OUTPUT, INPUT_NAMES

if TYPE_CHECKING:
    from polyhead_training.model import PolyheadModel

# Outputs for a batch of B texts by output name: (B, H) for the embedding, (B, logits) for each head.
Outputs = dict[str, NDArray[np.float32]]
# Takes input_ids and attention_mask, (B, T) each.
Runner = Callable[[NDArray[np.int64], NDArray[np.int64]], Outputs]


def torch_runner(model: PolyheadModel) -> Runner:
    """Returns a runner for the trained model in fp32; the model is switched to evaluation mode."""
    import torch

    model.eval()
    names = model.config.output_names()

    def run(input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> Outputs:
        with torch.inference_mode(), _single_thread():
            embedding, logits = model(torch.from_numpy(input_ids), torch.from_numpy(attention_mask))
        outputs = {EMBEDDING_OUTPUT: embedding, **{names[head]: values for head, values in logits.items()}}
        return {name: values.numpy() for name, values in outputs.items()}

    return run


def onnx_runner(path: Path) -> Runner:
    """Returns a runner for an ONNX file in unmodified onnxruntime.

    Raises:
        GraphError: onnxruntime cannot load the file. The runner raises it when onnxruntime cannot run a batch.
    """
    session = cpu_session(path)
    outputs = [output.name for output in session.get_outputs()]

    def run(input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> Outputs:
        feeds = dict(zip(INPUT_NAMES, (input_ids, attention_mask), strict=True))
        try:
            return dict(zip(outputs, session.run(outputs, feeds), strict=True))
        except Exception as error:  # onnxruntime defines one error type for each of its status codes
            raise GraphError(f"onnxruntime cannot run {path.name} on {input_ids.shape} tokens: {error}") from error

    return run


@contextmanager
def _single_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def cpu_session(path: Path) -> onnxruntime.InferenceSession:
    """Opens a session of unmodified onnxruntime on the CPU.

    Raises:
        GraphError: onnxruntime cannot load the file.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    # Errors only: warnings about skipped graph optimizations do not help a user who exports a model.
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime defines one error type for each of its status codes
        raise GraphError(f"onnxruntime cannot load it: {error}") from error
