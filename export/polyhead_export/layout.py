"""File names inside a bundle, and loading the trained model from one."""

from __future__ import annotations

from pathlib import Path

from polyhead_bundle import CARD, CONFIG, TOKENIZER, WEIGHTS
from polyhead_training.model import PolyheadModel
from polyhead_training.model import load_model as load_trained_model

from .errors import ContentError

__all__ = ["CARD", "CONFIG", "GRAPH", "GRAPHS", "TOKENIZER", "WEIGHTS", "load_model"]

GRAPH = "model.onnx"
# File name of each variant's graph.
GRAPHS = {
    "fp32": GRAPH,
    "int8": "model.int8.onnx",
    "int8-dynamic": "model.int8-dynamic.onnx",
    "fp16": "model.fp16.onnx",
}


def load_model(folder: Path) -> PolyheadModel:
    """Loads the trained model from a bundle's ``torch/`` folder: fp32, in evaluation mode, on the CPU.

    Raises:
        ContentError: The weights do not match the model that ``config.json`` describes.
    """
    try:
        return load_trained_model(folder)
    except Exception as error:  # the libraries involved raise errors of many types
        raise ContentError(folder, f"cannot be loaded: {error}") from error
