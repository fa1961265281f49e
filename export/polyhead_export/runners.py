"""Two ways to run one batch: the trained model in PyTorch, and a graph in onnxruntime, both on the CPU.

Both on one thread: how many there are decides in which order numbers are added up, and so the last digits that a bundle
holds, which shall be the same whenever it is exported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from polyhead_training.model import PolyheadModel

from .errors import GraphError
from .onnx_export import EMBEDDING_OUTPUT, INPUT_NAMES

# Answers to a batch of B texts by the name of the output: (B, H) or (B, outputs) each.
Answers = dict[str, NDArray[np.float32]]
# Takes input_ids and attention_mask, (B, T) each.
Runner = Callable[[NDArray[np.int64], NDArray[np.int64]], Answers]


def torch_pass(model: PolyheadModel) -> Runner:
    """Runs the trained model itself, in fp32; it is put into evaluation mode."""
    model.eval()
    names = model.config.output_names()

    def run(input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> Answers:
        with torch.inference_mode(), _one_thread():
            embedding, logits = model(torch.from_numpy(input_ids), torch.from_numpy(attention_mask))
        answers = {EMBEDDING_OUTPUT: embedding, **{names[head]: values for head, values in logits.items()}}
        return {name: values.numpy() for name, values in answers.items()}

    return run


def onnx_pass(path: Path) -> Runner:
    """Runs an ONNX file as stock onnxruntime does.

    Raises:
        GraphError: onnxruntime cannot load the file; or, from what is returned, cannot run it on a batch.
    """
    session = session_on_cpu(path)
    outputs = [output.name for output in session.get_outputs()]

    def run(input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> Answers:
        feeds = dict(zip(INPUT_NAMES, (input_ids, attention_mask), strict=True))
        try:
            return dict(zip(outputs, session.run(outputs, feeds), strict=True))
        except Exception as error:  # onnxruntime raises its own types, one for each of its status codes
            raise GraphError(f"onnxruntime cannot run {path.name} on {input_ids.shape} tokens: {error}") from error

    return run


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def session_on_cpu(path: Path) -> onnxruntime.InferenceSession:
    """A session of stock onnxruntime on the CPU.

    Raises:
        GraphError: onnxruntime cannot load the file.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    # Errors only: what a graph optimizer could not do is of no use to whoever exports.
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own types, one for each of its status codes
        raise GraphError(f"onnxruntime cannot load it: {error}") from error
