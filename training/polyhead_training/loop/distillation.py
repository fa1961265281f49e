"""Embeddings of the training texts before training, the targets of the distillation loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from polyhead_training.data.collation import EncodedRows
from polyhead_training.model import PolyheadModel
from polyhead_training.runs.checkpoint import replace_file
from polyhead_training.terminal import progress_bar

NAME = "base_embeddings.npy"


class BaseEmbeddings:
    """Embeddings of the training rows by the untrained model, in a file beside the checkpoints.

    Attributes:
        values: (rows, H) float16, of Euclidean length 1, memory-mapped.
    """

    def __init__(self, path: Path) -> None:
        self.values: NDArray[np.float16] = np.load(path, mmap_mode="r", allow_pickle=False)

    def batch(self, rows: Sequence[int], device: torch.device) -> Tensor:
        """Returns the (B, H) float32 embeddings of the rows with these numbers."""
        return torch.from_numpy(self.values[list(rows)].astype(np.float32)).to(device)


def base_embeddings(
    folder: Path, model: PolyheadModel, rows: EncodedRows, batch_size: int, accelerator: Accelerator
) -> BaseEmbeddings:
    """Opens the rows' embeddings before training, and computes them on first use.

    Args:
        folder: Folder of the run in progress.
        model: The model. Either no part of its embedding has been trained yet, or the file exists already.
        rows: The training rows.
        batch_size: Texts per forward pass.
        accelerator: The processes that share the rows.
    """
    path = folder / NAME
    if not path.exists():
        _compute(path, model, rows, batch_size, accelerator)
    return BaseEmbeddings(path)


def _compute(path: Path, model: PolyheadModel, rows: EncodedRows, batch_size: int, accelerator: Accelerator) -> None:
    partial = path.with_name(path.name + ".partial")
    shape = (len(rows), int(model.backbone.config.hidden_size))
    if accelerator.is_main_process:
        np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=shape).flush()
    accelerator.wait_for_everyone()
    values = np.lib.format.open_memmap(partial, mode="r+")
    model.eval()
    batches = rows.by_length(batch_size)[accelerator.process_index :: accelerator.num_processes]
    with (
        torch.inference_mode(),
        accelerator.autocast(),
        progress_bar(
            "embeddings before training", "batches", len(batches), enabled=accelerator.is_main_process
        ) as advance,
    ):
        for numbers in batches:
            batch = rows.batch(numbers, model.device)
            embedding = model(batch.input_ids, batch.attention_mask).sentence_embedding.float()  # (B, H)
            values[numbers] = torch.nn.functional.normalize(embedding, dim=-1).cpu().numpy()
            advance("")
    values.flush()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        replace_file(partial, path)
    accelerator.wait_for_everyone()
