"""PyTorch, on CUDA or CPU: what answers where onnxruntime cannot. The only file of the server that knows torch."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from polyhead_export import bundle
from polyhead_training.model import load_model
from transformers.utils import logging as transformers_logging

from .base import EngineError, Runtime

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


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
        self._device = torch.device(device)
        self._heads = [head.name for head in source.manifest.heads]
        self._model = load_model(source.file("torch/model.safetensors").parent).to(self._device, _DTYPES[variant])
        self.runtime = Runtime("torch", device, variant)

    @torch.inference_mode()
    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        """See ``Engine.run``."""
        ids = torch.from_numpy(input_ids).to(self._device)  # (B, T)
        mask = torch.from_numpy(attention_mask).to(self._device)  # (B, T)
        outputs = self._model(ids, mask)
        tensors = [outputs.sentence_embedding, *(outputs.logits[name] for name in self._heads)]
        return [tensor.float().cpu().numpy() for tensor in tensors]
