"""The engine on PyTorch, on CUDA or CPU, where onnxruntime cannot run; no other file of the server imports torch."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polyhead_bundle as bundle
import torch
from numpy.typing import NDArray
from polyhead_training.model import PolyheadModel, load_model
from torch import Tensor
from transformers.utils import logging as transformers_logging

from .base import EngineError, Runtime

logger = logging.getLogger(__name__)

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
# A batch of up to so many tokens is launched as one CUDA graph. Launched one by one, its operators take 3 ms of Python,
# in which an H200 computes 4,000 tokens in fp32 and 16,000 in fp16, and for which the event loop waits.
_MAX_GRAPH_TOKENS = 8192
# Widths of graphs are multiples of this.
_GRAPH_WIDTH_STEP = 16
# A process captures one graph at a time, also while a model is loaded beside the one that serves.
_capture_lock = threading.Lock()


class TorchEngine:
    """Runs the model of the bundle's ``torch/`` folder in the precision of the variant.

    Attributes:
        cuda: Runs the batches on a GPU; None on a CPU.
    """

    def __init__(self, source: bundle.Bundle, variant: str, device: str) -> None:
        """Loads the weights.

        Raises:
            EngineError: The device or variant does not exist, or the weights do not fit the model.
        """
        if variant not in _DTYPES:
            raise EngineError(f"PyTorch runs {' and '.join(_DTYPES)}, not {variant}")
        if device == "cuda" and not torch.cuda.is_available():
            raise EngineError("PyTorch finds no CUDA device")
        transformers_logging.disable_progress_bar()
        # One thread per run, as with onnxruntime: batches run side by side.
        torch.set_num_threads(1)
        # cuDNN's attention makes a plan for every new shape, which takes a tenth of a second.
        torch.backends.cuda.enable_cudnn_sdp(False)
        model = load_model(source.file(bundle.WEIGHTS).parent).to(device, _DTYPES[variant])
        forward = functools.partial(_forward, model, [head.name for head in source.manifest.heads])
        self._forward: Forward | None = forward
        self.cuda = CudaRunner(forward, source.manifest.max_tokens) if device == "cuda" else None
        self.runtime = Runtime("torch", device, variant)

    @torch.inference_mode()
    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        """See ``Engine.run``."""
        if self._forward is None:
            raise EngineError("it is closed")
        inputs = np.stack([input_ids, attention_mask])  # (2, B, T)
        outputs = self.cuda.run(inputs) if self.cuda else self._forward(torch.from_numpy(inputs))
        return [output.numpy() for output in outputs]

    def close(self) -> None:
        """See ``Engine.close``."""
        self._forward = self.cuda = None


Forward = Callable[[Tensor], list[Tensor]]


def _forward(model: PolyheadModel, heads: Sequence[str], inputs: Tensor) -> list[Tensor]:
    outputs = model(inputs[0], inputs[1])
    return [tensor.float() for tensor in (outputs.sentence_embedding, *(outputs.logits[name] for name in heads))]


@dataclass(frozen=True)
class _Graph:
    """The recorded launches of a forward pass of one shape, and the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: Tensor
    outputs: list[Tensor]


class CudaRunner:
    """Runs batches on a GPU, one after the other; a thread copies its outputs back while the next thread's batch runs.

    A small batch is a CUDA graph, captured when its shape comes for the first time: many operators that are short for a
    GPU are launched at once. The batch is padded to the graph's shape.

    Threads: any thread may call ``run``. ``_lock`` guards the graphs, their input and output tensors and the memory
    pool; a thread waits for its copies after it has released the lock.

    Attributes:
        forward: Token ids and mask, (2, B, T) int64 on the GPU, to tensors of B rows.
    """

    def __init__(self, forward: Forward, max_tokens: int) -> None:
        """Captures no graph yet.

        Args:
            forward: See ``forward``.
            max_tokens: Largest number of tokens of a text.
        """
        self.forward = forward
        self._max_tokens = max_tokens
        self._lock = threading.Lock()
        # By rows and width; None for a shape that cannot be captured.
        self._graphs: dict[tuple[int, int], _Graph | None] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def run(self, inputs: NDArray[np.int64]) -> list[Tensor]:
        """Converts token ids and mask, (2, B, T), to tensors of B rows in host memory."""
        rows = inputs.shape[1]
        shape = graph_shape(rows, inputs.shape[2], self._max_tokens)
        # A copy from unpinned memory would wait until the GPU has finished the batch before.
        pinned = torch.from_numpy(pad_to_shape(inputs, *shape) if shape else inputs).pin_memory()
        with self._lock:
            outputs = self._replay(pinned, shape) if shape else self._launch(pinned)
            copies = [torch.empty(output.shape, dtype=output.dtype, pin_memory=True) for output in outputs]
            for copy, output in zip(copies, outputs, strict=True):
                copy.copy_(output, non_blocking=True)
            done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            done.record()
        done.synchronize()
        return [copy[:rows] for copy in copies]

    def uncaptured_shapes(self) -> list[tuple[int, int]]:
        """Returns the shapes, rows and width, whose capture failed."""
        with self._lock:
            return [shape for shape, graph in self._graphs.items() if graph is None]

    def _launch(self, pinned: Tensor) -> list[Tensor]:
        return self.forward(pinned.cuda(non_blocking=True))

    def _replay(self, pinned: Tensor, shape: tuple[int, int]) -> list[Tensor]:
        if shape not in self._graphs:
            self._graphs[shape] = self._capture_if_possible(pinned)
        graph = self._graphs[shape]
        if graph is None:
            return self._launch(pinned)
        graph.inputs.copy_(pinned, non_blocking=True)
        graph.graph.replay()
        return graph.outputs

    def _capture_if_possible(self, pinned: Tensor) -> _Graph | None:
        current = torch.cuda.current_stream()
        try:
            with _capture_lock:
                return self._capture(pinned)
        except Exception:
            logger.warning("batches of %d x %d tokens cannot be captured", *pinned.shape[1:], exc_info=True)
            # PyTorch 2.11 may consider this pool still in use by a capture, and would capture no other shape in it.
            self._pool = torch.cuda.graph_pool_handle()
            return None
        finally:
            # A failed capture may leave the thread on the capture stream, where its batches would race with others.
            torch.cuda.set_stream(current)

    def _capture(self, pinned: Tensor) -> _Graph:
        inputs = pinned.cuda(non_blocking=True)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            # Libraries allocate workspaces and choose kernels in a first run, which cannot be captured.
            self.forward(inputs)
        graph = torch.cuda.CUDAGraph()
        # No two graphs run at once, so all share one memory pool. Other threads may wait for their events meanwhile.
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
            outputs = self.forward(inputs)
        return _Graph(graph, inputs, outputs)


def graph_shape(rows: int, width: int, max_tokens: int) -> tuple[int, int] | None:
    """Returns the rows and width of the smallest graph that a batch fits in; None for a batch too large to gain by it.

    Rows are 1 to 8, 10, 12, 14, 16, 20...; widths are multiples of 16, and ``max_tokens``.
    """
    step = max(1, (1 << (rows - 1).bit_length()) // 8)
    graph_rows = -(-rows // step) * step
    graph_width = max(width, min(-(-width // _GRAPH_WIDTH_STEP) * _GRAPH_WIDTH_STEP, max_tokens))
    return (graph_rows, graph_width) if graph_rows * graph_width <= _MAX_GRAPH_TOKENS else None


def pad_to_shape(inputs: NDArray[np.int64], rows: int, width: int) -> NDArray[np.int64]:
    """Pads token ids and mask, (2, B, T), to the shape (2, rows, width)."""
    padded = np.zeros((2, rows, width), dtype=np.int64)
    padded[:, : inputs.shape[1], : inputs.shape[2]] = inputs
    # A row without any attended token would give NaN.
    padded[1, inputs.shape[1] :, 0] = 1
    return padded
