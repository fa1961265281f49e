"""What stands where in a bundle, and how the trained model comes back out of one."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from polyhead_training.model import PolyheadModel

from .errors import ContentError

GRAPH = "model.onnx"
TOKENIZER = "tokenizer.json"
CONFIG = "torch/config.json"
WEIGHTS = "torch/model.safetensors"
CARD = "README.md"


def load_model(folder: Path) -> PolyheadModel:
    """The trained model from a bundle's ``torch/`` folder, in fp32, in evaluation mode, on the CPU.

    Raises:
        ContentError: The weights do not make the model that ``config.json`` describes.
    """
    try:
        model, report = PolyheadModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # whatever the library at fault raises
        raise ContentError(folder, f"cannot be loaded: {error}") from error
    # Weights that a file lacks would be drawn at random, and weights too many left unread.
    if strangers := sorted({*report["missing_keys"], *report["unexpected_keys"]}):
        raise ContentError(folder, f"the weights do not fit the model: {strangers[0]} is missing or one too many")
    return cast(PolyheadModel, model.eval())
