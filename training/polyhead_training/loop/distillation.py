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
from polyhead_training.features import Features, compute_rows, row_outputs
from polyhead_training.model import PolyheadModel

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


def base_embeddings(  # noqa: PLR0917
    folder: Path,
    model: PolyheadModel,
    rows: EncodedRows,
    batch_size: int,
    accelerator: Accelerator,
    features: Features | None = None,
) -> BaseEmbeddings:
    """Opens the rows' embeddings before training, and computes them on first use.

    Args:
        folder: Folder of the run in progress.
        model: The model. Either no part of its embedding has been trained yet, or the file exists already.
        rows: The training rows.
        batch_size: Texts per forward pass.
        accelerator: The processes that share the rows.
        features: The backbone's vectors of the rows, if they are known already.
    """
    path = folder / NAME

    def embed(numbers: Sequence[int]) -> Tensor:
        with accelerator.autocast():
            embedding = row_outputs(model, rows, numbers, features).sentence_embedding.float()  # (B, H)
        return torch.nn.functional.normalize(embedding, dim=-1)

    if not path.exists():
        shape = (int(model.backbone.config.hidden_size),)
        compute_rows(path, embed, model, rows, shape, np.float16, batch_size, accelerator, "embeddings before training")
    return BaseEmbeddings(path)
