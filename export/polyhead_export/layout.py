"""What stands where in a bundle, and how the trained model comes back out of one."""

from __future__ import annotations

from pathlib import Path

from polyhead_bundle import CARD, CONFIG, TOKENIZER, WEIGHTS
from polyhead_training.model import PolyheadModel
from polyhead_training.model import load_model as load_trained_model

from .errors import ContentError

__all__ = ["CARD", "CONFIG", "GRAPH", "GRAPHS", "TOKENIZER", "WEIGHTS", "load_model"]

GRAPH = "model.onnx"
GRAPHS = {
    "fp32": GRAPH,
    "int8": "model.int8.onnx",
    "int8-dynamic": "model.int8-dynamic.onnx",
    "fp16": "model.fp16.onnx",
}


def load_model(folder: Path) -> PolyheadModel:
    """The trained model from a bundle's ``torch/`` folder, in fp32, in evaluation mode, on the CPU.

    Raises:
        ContentError: The weights do not make the model that ``config.json`` describes.
    """
    try:
        return load_trained_model(folder)
    except Exception as error:  # whatever the library at fault raises
        raise ContentError(folder, f"cannot be loaded: {error}") from error
