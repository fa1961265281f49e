"""File names inside a bundle, names in its graphs, and loading the trained model from one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from polyhead_bundle import CARD, CONFIG, TOKENIZER, WEIGHTS

from .errors import ContentError

if TYPE_CHECKING:  # verifying a bundle without its weights requires no torch
    from polyhead_training.model import PolyheadModel

__all__ = [
    "CARD",
    "CONFIG",
    "EMBEDDING_OUTPUT",
    "GOLDEN_LIMITS",
    "GRAPH",
    "GRAPHS",
    "INPUT_NAMES",
    "TOKENIZER",
    "WEIGHTS",
    "load_model",
]

INPUT_NAMES = ("input_ids", "attention_mask")
EMBEDDING_OUTPUT = "sentence_embedding"

GRAPH = "model.onnx"
# File name of each variant's graph.
GRAPHS = {
    "fp32": GRAPH,
    "int8": "model.int8.onnx",
    "int8-dynamic": "model.int8-dynamic.onnx",
    "fp16": "model.fp16.onnx",
}
# Default limit of each variant for the difference of any output for a golden text.
GOLDEN_LIMITS = {"fp32": 1e-3, "int8": 0.05, "int8-dynamic": 0.05, "fp16": 0.02}


def load_model(folder: Path) -> PolyheadModel:
    """Loads the trained model from a bundle's ``torch/`` folder: fp32, in evaluation mode, on the CPU.

    Raises:
        ContentError: The weights do not match the model that ``config.json`` describes.
    """
    from polyhead_training.model import load_model as load_trained_model

    try:
        return load_trained_model(folder)
    except Exception as error:  # the libraries involved raise errors of many types
        raise ContentError(folder, f"cannot be loaded: {error}") from error
