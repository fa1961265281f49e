"""Backbone vectors of the rows, computed once while the backbone is frozen.

A frozen backbone runs in evaluation mode, without dropout, so its vectors for a text are the same in every epoch.
Pooling and heads, which may train meanwhile, read nothing else::

    rows --model.encode, once--> RUN_DIR.in_progress/features_train.npy --model.outputs, in every epoch--> logits
"""

from __future__ import annotations

import hashlib
import time
from array import array
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from .data.collation import EncodedRows
from .model import Outputs, PolyheadModel, TextVectors
from .runs.checkpoint import replace_file, replacing
from .terminal import Report, progress_bar
from .units import format_duration, format_size

# Bytes per megabyte of the configuration.
_MEGABYTE = 1_000_000


class Features:
    """The backbone's vectors of the rows of a split.

    Attributes:
        values: (rows, V, H) float32, memory-mapped: the vector of the first token and the mean vector of each row, and
            a third if the sentence embedding has another pooling.
    """

    def __init__(self, path: Path) -> None:
        self.values: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, rows: Sequence[int], device: torch.device) -> TextVectors:
        """Returns the vectors of the rows with these numbers, (B, H) each."""
        vectors = torch.from_numpy(self.values[list(rows)]).to(device)  # (B, V, H)
        return TextVectors(*vectors.unbind(dim=1))


class SharedVectors:
    """Files with vectors that several runs share, of a backbone that no stage of theirs trains.

    A resumed run finds the vectors that it computed before, so that it continues with the same numbers.

    Args:
        folder: Folder of the files; it may be missing.
        max_megabytes: Maximum size of all vectors together, in MB; further ones are not kept.
    """

    def __init__(self, folder: Path, max_megabytes: int) -> None:
        self._folder = folder
        self._left = max_megabytes * _MEGABYTE
        self._vectors: dict[bytes, NDArray[np.float32]] = {}
        for path in sorted(folder.glob("*.npz")):
            with np.load(path, allow_pickle=False) as stored:
                self._keep([key.tobytes() for key in stored["keys"]], stored["values"])

    def add(self, precision: str, rows: EncodedRows, values: NDArray[np.float32]) -> None:
        """Keeps the (rows, V, H) vectors of rows, computed in a number format, that are not known."""
        keys = [_key(precision, ids) for ids in rows.ids]
        new = [number for number, key in enumerate(keys) if key not in self._vectors]
        if not new or values[new].nbytes > self._left:
            return
        self._folder.mkdir(exist_ok=True)
        found = [keys[number] for number in new]
        with replacing(self._folder / f"{len(self._vectors):012}.npz") as stream:
            np.savez(stream, keys=np.frombuffer(b"".join(found), np.uint8).reshape(len(found), -1), values=values[new])
        self._keep(found, values[new])

    def get(self, precision: str, rows: EncodedRows) -> NDArray[np.float32] | None:
        """Returns the (rows, V, H) vectors of rows; None unless all of them are known."""
        found = [self._vectors.get(_key(precision, ids)) for ids in rows.ids]
        known = [vectors for vectors in found if vectors is not None]
        return np.stack(known) if len(known) == len(found) > 0 else None

    def _keep(self, keys: Sequence[bytes], values: NDArray[np.float32]) -> None:
        self._left -= values.nbytes
        self._vectors |= dict(zip(keys, values, strict=True))


def _key(precision: str, ids: Sequence[int]) -> bytes:
    """Identifies a text, and the number format of the backbone, by 32 bytes."""
    return hashlib.sha256(precision.encode() + array("q", ids).tobytes()).digest()


def row_outputs(model: PolyheadModel, rows: EncodedRows, numbers: Sequence[int], features: Features | None) -> Outputs:
    """Computes the model's outputs for the rows with these numbers, from their features if these are known."""
    if features is not None:
        return model.outputs(features.batch(numbers, model.device))
    batch = rows.batch(numbers, model.device)
    outputs: Outputs = model(batch.input_ids, batch.attention_mask)
    return outputs


class FeatureCache:
    """Files with the features of each split, which are valid as long as the backbone is frozen.

    A file is complete or absent, and its content depends on the rows and the backbone alone, so a resumed run continues
    with the same numbers. Every process of a launcher must make the same calls.

    Args:
        folder: Folder of the run in progress.
        model: The model.
        batch_size: Texts per forward pass.
        accelerator: The processes that share the rows.
        max_megabytes: Maximum size of all files together, in MB; a split that exceeds it is not cached.
        report: Receives messages for the terminal.
        shared: Vectors of other runs with the same backbone; None if a stage trains it.
    """

    def __init__(
        self,
        *,
        folder: Path,
        model: PolyheadModel,
        batch_size: int,
        accelerator: Accelerator,
        max_megabytes: int,
        report: Report,
        shared: SharedVectors | None = None,
    ) -> None:
        self.shared = shared
        self._folder = folder
        self._model = model
        self._batch_size = batch_size
        self._accelerator = accelerator
        self._max_bytes = max_megabytes * _MEGABYTE
        self._report = report
        self._frozen = False
        # Bytes of the splits that are cached, and 0 of those that are too large.
        self._sizes: dict[str, int] = {}

    def freeze(self) -> None:
        """Allows features to be computed: the backbone does not change until ``clear``."""
        self._frozen = True

    def clear(self) -> None:
        """Deletes all features; to be called before the backbone changes."""
        self._frozen = False
        self._sizes.clear()
        if self._accelerator.is_main_process:
            for path in self._folder.glob("features_*.npy"):
                path.unlink()
        self._accelerator.wait_for_everyone()

    def existing(self, split: str) -> Features | None:
        """Returns the features of a split if they have been computed since the backbone last changed."""
        path = self._path(split)
        return Features(path) if path.exists() else None

    def get(self, split: str, rows: EncodedRows, *, mixed_precision: bool = False) -> Features | None:
        """Returns the features of a split, and computes them on first use.

        Args:
            split: Name of the split.
            rows: Its rows.
            mixed_precision: Whether the backbone runs in the number format of training, not in fp32.

        Returns:
            The features; None if the backbone is not frozen, or if they are too large.
        """
        if not self._frozen or not self._fits(split, len(rows)):
            return None
        path = self._path(split)
        precision = str(self._accelerator.mixed_precision) if mixed_precision else "no"
        if not path.exists():
            self._compute(path, split, rows, precision)
        features = Features(path)
        if self.shared:
            self.shared.add(precision, rows, features.values)
        return features

    @property
    def _shape(self) -> tuple[int, int]:
        """Number of vectors of a row, and their size."""
        return self._model.vectors_per_text, int(self._model.backbone.config.hidden_size)

    def _path(self, split: str) -> Path:
        return self._folder / f"features_{split}.npy"

    def _fits(self, split: str, rows: int) -> bool:
        if split not in self._sizes:
            size = rows * int(np.prod(self._shape)) * np.dtype(np.float32).itemsize
            fits = sum(self._sizes.values()) + size <= self._max_bytes
            self._sizes[split] = size if fits else 0
            # 0 turns the cache off, which needs no explanation.
            if not fits and self._max_bytes:
                self._report(
                    f"{split}: the backbone's vectors of {rows:,} texts ({format_size(size)}) exceed "
                    f"training.feature_cache_mb ({format_size(self._max_bytes)}), so every epoch computes them again"
                )
        return self._sizes[split] > 0

    def _compute(self, path: Path, split: str, rows: EncodedRows, precision: str) -> None:
        start = time.monotonic()
        if self.shared and (known := self.shared.get(precision, rows)) is not None:
            with replacing(path) as stream:
                np.save(stream, known)
            return

        def encode(numbers: Sequence[int]) -> Tensor:
            batch = rows.batch(numbers, self._model.device)
            with nullcontext() if precision == "no" else self._accelerator.autocast():
                vectors = self._model.encode(batch.input_ids, batch.attention_mask)
            return torch.stack([one for one in vectors if one is not None], dim=1).float()  # (B, V, H)

        compute_rows(
            path,
            encode,
            self._model,
            rows,
            self._shape,
            np.float32,
            self._batch_size,
            self._accelerator,
            f"{split}: backbone",
        )
        size, seconds = format_size(path.stat().st_size), format_duration(time.monotonic() - start)
        self._report(
            f"{split}: the frozen backbone's vectors of {len(rows):,} texts were computed once ({size}, {seconds})"
        )


def compute_rows(  # noqa: PLR0917
    path: Path,
    compute: Callable[[Sequence[int]], Tensor],
    model: PolyheadModel,
    rows: EncodedRows,
    shape: Sequence[int],
    dtype: DTypeLike,
    batch_size: int,
    accelerator: Accelerator,
    description: str,
) -> None:
    """Writes an array with values of every row to a file, durably, and replaces an existing one atomically.

    Args:
        path: The file, in ``.npy`` format.
        compute: Computes the values, (B, ...), of the rows with these numbers.
        model: The model; the call leaves it in evaluation mode.
        rows: The rows.
        shape: Shape of the values of one row.
        dtype: Number format of the file.
        batch_size: Texts per forward pass.
        accelerator: The processes that share the rows.
        description: Text of the progress bar.
    """
    partial = path.with_name(path.name + ".partial")
    if accelerator.is_main_process:
        np.lib.format.open_memmap(partial, mode="w+", dtype=dtype, shape=(len(rows), *shape)).flush()
    accelerator.wait_for_everyone()
    values = np.lib.format.open_memmap(partial, mode="r+")
    model.eval()
    batches = rows.by_length(batch_size)[accelerator.process_index :: accelerator.num_processes]
    with (
        torch.inference_mode(),
        progress_bar(description, "batches", len(batches), enabled=accelerator.is_main_process) as advance,
    ):
        for numbers in batches:
            values[numbers] = compute(numbers).cpu().numpy()
            advance("")
    values.flush()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        replace_file(partial, path)
    accelerator.wait_for_everyone()
