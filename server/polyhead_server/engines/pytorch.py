"""PyTorch, on CUDA or CPU: what answers where onnxruntime cannot. The only file of the server that knows torch."""

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
# A pass of up to so many tokens is launched at once, as a graph. Launched one by one its operators take 3 ms of Python,
# in which an H200 computes 4,000 tokens in fp32 and 16,000 in fp16, and for which the event loop waits.
_GRAPH_TOKENS = 8192
_GRAPH_WIDTH = 16
# A process captures one graph at a time, also while a model is loaded beside the one that serves.
_capturing = threading.Lock()


class TorchEngine:
    """Runs the model of the bundle's ``torch/`` folder, in the precision of the variant."""

    def __init__(self, source: bundle.Bundle, variant: str, device: str) -> None:
        """Loads the weights.

        Raises:
            EngineError: There is no such device or variant, or the weights do not fit the model.
        """
        if variant not in _DTYPES:
            raise EngineError(f"PyTorch runs {' and '.join(_DTYPES)}, not {variant}")
        if device == "cuda" and not torch.cuda.is_available():
            raise EngineError("PyTorch finds no CUDA device")
        transformers_logging.disable_progress_bar()
        # One thread for each run, as with onnxruntime: the batches run side by side.
        torch.set_num_threads(1)
        # cuDNN's attention plans anew for every shape that it has not seen, for a tenth of a second.
        torch.backends.cuda.enable_cudnn_sdp(False)
        model = load_model(source.file("torch/model.safetensors").parent).to(device, _DTYPES[variant])
        forward = functools.partial(_forward, model, [head.name for head in source.manifest.heads])
        self._forward: Forward | None = forward
        self._cuda = CudaPasses(forward, source.manifest.max_tokens) if device == "cuda" else None
        self.runtime = Runtime("torch", device, variant)

    @torch.inference_mode()
    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        """See ``Engine.run``."""
        if self._forward is None:
            raise EngineError("it is closed")
        inputs = np.stack([input_ids, attention_mask])  # (2, B, T)
        outputs = self._cuda.run(inputs) if self._cuda else self._forward(torch.from_numpy(inputs))
        return [output.numpy() for output in outputs]

    def close(self) -> None:
        """See ``Engine.close``."""
        self._forward = self._cuda = None


Forward = Callable[[Tensor], list[Tensor]]


def _forward(model: PolyheadModel, heads: Sequence[str], inputs: Tensor) -> list[Tensor]:
    outputs = model(inputs[0], inputs[1])
    return [tensor.float() for tensor in (outputs.sentence_embedding, *(outputs.logits[name] for name in heads))]


@dataclass(frozen=True)
class _Graph:
    """The launches of a pass of one shape, recorded, and the places that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: Tensor
    outputs: list[Tensor]


class CudaPasses:
    """Passes on a GPU, one after the other; a thread hands over its answers while the next one's pass runs.

    A small pass is a CUDA graph, captured when its shape comes for the first time: many operators that are short for a
    GPU are launched at once. It is padded to the graph's shape.
    """

    def __init__(self, forward: Forward, max_tokens: int) -> None:
        """Launches nothing yet.

        Args:
            forward: Token ids and mask, (2, B, T) int64 on the GPU, to tensors of B rows.
            max_tokens: The most tokens that a text may have.
        """
        self._forward = forward
        self._max_tokens = max_tokens
        self._lock = threading.Lock()
        # None for shapes that cannot be captured.
        self._graphs: dict[tuple[int, int], _Graph | None] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def run(self, inputs: NDArray[np.int64]) -> list[Tensor]:
        """(2, B, T) token ids and mask to tensors of B rows, in memory of the host."""
        rows = inputs.shape[1]
        shape = graph_shape(rows, inputs.shape[2], self._max_tokens)
        # A copy from any other memory would wait until the GPU is done with the pass before.
        pinned = torch.from_numpy(padded(inputs, *shape) if shape else inputs).pin_memory()
        with self._lock:
            outputs = self._replay(pinned, shape) if shape else self._launch(pinned)
            hosted = [torch.empty(one.shape, dtype=one.dtype, pin_memory=True) for one in outputs]
            for ours, one in zip(hosted, outputs, strict=True):
                ours.copy_(one, non_blocking=True)
            done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            done.record()
        done.synchronize()
        return [one[:rows] for one in hosted]

    def _launch(self, pinned: Tensor) -> list[Tensor]:
        return self._forward(pinned.cuda(non_blocking=True))

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
        ours = torch.cuda.current_stream()
        try:
            with _capturing:
                return self._capture(pinned)
        except Exception:
            logger.warning("passes of %d x %d tokens cannot be captured", *pinned.shape[1:], exc_info=True)
            # PyTorch 2.11 may take this memory for still being captured into, and would capture no other shape in it.
            self._pool = torch.cuda.graph_pool_handle()
            return None
        finally:
            # A capture that fails may leave the thread on the other stream, where its passes would meet others.
            torch.cuda.set_stream(ours)

    def _capture(self, pinned: Tensor) -> _Graph:
        ours = pinned.cuda(non_blocking=True)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            # Libraries take their workspaces and choose their kernels at a first run, which cannot be captured.
            self._forward(ours)
        graph = torch.cuda.CUDAGraph()
        # No two graphs run at once, so that all work in the same memory. Other threads go on waiting meanwhile.
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
            outputs = self._forward(ours)
        return _Graph(graph, ours, outputs)


def graph_shape(rows: int, width: int, max_tokens: int) -> tuple[int, int] | None:
    """The rows and width of the smallest graph that a pass fits in; None where that is too large to be worth it.

    Rows are 1 to 8, 10, 12, 14, 16, 20..., widths multiples of 16 and the most tokens that a text may have.
    """
    step = max(1, (1 << (rows - 1).bit_length()) // 8)
    graph_rows = -(-rows // step) * step
    graph_width = max(width, min(-(-width // _GRAPH_WIDTH) * _GRAPH_WIDTH, max_tokens))
    return (graph_rows, graph_width) if graph_rows * graph_width <= _GRAPH_TOKENS else None


def padded(inputs: NDArray[np.int64], rows: int, width: int) -> NDArray[np.int64]:
    """Token ids and mask, (2, B, T), in the shape (2, rows, width)."""
    whole = np.zeros((2, rows, width), dtype=np.int64)
    whole[:, : inputs.shape[1], : inputs.shape[2]] = inputs
    # Attention to no token at all would be no number.
    whole[1, inputs.shape[1] :, 0] = 1
    return whole
