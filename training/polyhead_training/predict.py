"""Inference over many rows, in batches of similar length that are distributed over the processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from polyhead_training.data.collation import EncodedRows

from .features import Features, row_outputs
from .model import Outputs, PolyheadModel
from .model_types import output_width

Matrix = NDArray[np.float32]


def predict(
    model: PolyheadModel,
    rows: EncodedRows,
    batch_size: int,
    accelerator: Accelerator,
    features: Features | None = None,
) -> dict[str, Matrix]:
    """Computes the logits of every head, (rows, outputs), in the order of the rows.

    Args:
        model: The model; the call leaves it in evaluation mode.
        rows: The rows.
        batch_size: Texts per forward pass.
        accelerator: The processes that share the rows; every process receives the results of all rows.
        features: The backbone's vectors of the rows, if they are known already.
    """
    sizes = {head["name"]: output_width(head["kind"], len(head["labels"])) for head in model.config.heads}
    return _run_batches(model, rows, batch_size, accelerator, sizes, lambda outputs: outputs.logits, features)


def embed(model: PolyheadModel, rows: EncodedRows, batch_size: int, accelerator: Accelerator) -> Matrix:
    """Computes sentence embeddings, (rows, H), in the order of the rows; takes the same arguments as ``predict``."""
    sizes = {"": model.config.embedding_size()}
    results = _run_batches(
        model, rows, batch_size, accelerator, sizes, lambda outputs: {"": outputs.sentence_embedding}
    )
    return results[""]


def _run_batches(  # noqa: PLR0917
    model: PolyheadModel,
    rows: EncodedRows,
    batch_size: int,
    accelerator: Accelerator,
    sizes: dict[str, int],
    select: Callable[[Outputs], dict[str, Tensor]],
    features: Features | None = None,
) -> dict[str, Matrix]:
    model.eval()
    results = {name: torch.zeros(len(rows), size, device=model.device) for name, size in sizes.items()}
    batches: Sequence[list[int]] = rows.by_length(batch_size)
    with torch.inference_mode():
        for numbers in batches[accelerator.process_index :: accelerator.num_processes]:
            for name, values in select(row_outputs(model, rows, numbers, features)).items():
                results[name][numbers] = values.float()
    # Each row is computed by one process and is zero in the others, so the sum is its result.
    return {name: accelerator.reduce(values, "sum").cpu().numpy() for name, values in results.items()}
