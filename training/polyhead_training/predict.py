"""What a model answers for many rows: passes over batches of like length, shared out to the processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from polyhead_training.data.collation import EncodedRows

from .model import Outputs, PolyheadModel

Matrix = NDArray[np.float32]


def predict(model: PolyheadModel, rows: EncodedRows, batch_size: int, accelerator: Accelerator) -> dict[str, Matrix]:
    """Logits of every head, (rows, outputs), in the order of the rows.

    Args:
        model: The model; it is left in evaluation mode.
        rows: The rows.
        batch_size: Texts in one pass.
        accelerator: The processes that share the rows; all of them get all answers.
    """
    sizes = {head["name"]: 1 if head["kind"] == "sigmoid" else len(head["labels"]) for head in model.config.heads}
    return _answer(model, rows, batch_size, accelerator, sizes, lambda outputs: outputs.logits)


def embed(model: PolyheadModel, rows: EncodedRows, batch_size: int, accelerator: Accelerator) -> Matrix:
    """Sentence embeddings, (rows, H), in the order of the rows; arguments as for ``predict``."""
    sizes = {"": int(model.backbone.config.hidden_size)}
    return _answer(model, rows, batch_size, accelerator, sizes, lambda outputs: {"": outputs.sentence_embedding})[""]


def _answer(  # noqa: PLR0917
    model: PolyheadModel,
    rows: EncodedRows,
    batch_size: int,
    accelerator: Accelerator,
    sizes: dict[str, int],
    pick: Callable[[Outputs], dict[str, Tensor]],
) -> dict[str, Matrix]:
    model.eval()
    answers = {name: torch.zeros(len(rows), size, device=model.device) for name, size in sizes.items()}
    batches: Sequence[list[int]] = rows.by_length(batch_size)
    with torch.inference_mode():
        for numbers in batches[accelerator.process_index :: accelerator.num_processes]:
            batch = rows.batch(numbers, model.device)
            for name, values in pick(model(batch.input_ids, batch.attention_mask)).items():
                answers[name][numbers] = values.float()
    # Every row was answered by one process and is zero in the others.
    return {name: accelerator.reduce(values, "sum").cpu().numpy() for name, values in answers.items()}
