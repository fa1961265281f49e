"""Logits of a teacher for the training texts: a finished run, usually of a larger backbone trained on the same rows.

::

    run directory --open_teacher--> Teacher --logits, once--> RUN_DIR.in_progress/teacher_logits.npy --> TeacherLogits
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from polyhead_training.config import Config
from polyhead_training.data.collation import encode_texts
from polyhead_training.data.dataset import Row
from polyhead_training.errors import RunError
from polyhead_training.features import compute_rows, row_outputs
from polyhead_training.model_config import HeadConfig
from polyhead_training.model_types import output_width
from polyhead_training.runs.run_directory import Run, load_run
from polyhead_training.tokenization import load_tokenizer

NAME = "teacher_logits.npy"
_FIELD = "training.teacher"


@dataclass(frozen=True)
class Teacher:
    """A finished run whose predictions the heads of the same names learn.

    Attributes:
        run: The run.
        tokenizer: Its tokenizer.
        batch_size: Texts per forward pass.
        outputs: For each head that both have, the number of the teacher's output for each output of the head.
        signs: For each of these heads, the factor of the logits: -1 where two labels are in the other order.
    """

    run: Run
    tokenizer: Tokenizer
    batch_size: int
    outputs: dict[str, list[int]]
    signs: dict[str, float]

    def sha256(self) -> str:
        """Computes the hash of the weights."""
        with (self.run.path / "model" / "model.safetensors").open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def logits(self, folder: Path, rows: Sequence[Row], accelerator: Accelerator) -> TeacherLogits:
        """Opens the logits of the training rows, and computes them on first use.

        Args:
            folder: Folder of the run in progress.
            rows: The training rows; the teacher reads their texts with its own prompt, tokenizer and token limit.
            accelerator: The processes that share the rows.
        """
        path, texts = folder / NAME, [self.run.prefix + row.text for row in rows]
        if not path.exists():
            model = self.run.model.to(accelerator.device)
            encoded = encode_texts(texts, self.tokenizer, model.config.max_tokens, model.config.pad_token_id)

            def compute(numbers: Sequence[int]) -> Tensor:
                with accelerator.autocast():
                    found = row_outputs(model, encoded, numbers, None).logits
                parts = [self.signs[name] * found[name][:, chosen] for name, chosen in self.outputs.items()]
                return torch.cat(parts, dim=1).float()  # (B, all outputs)

            shape = (sum(map(len, self.outputs.values())),)
            size = self.batch_size
            compute_rows(path, compute, model, encoded, shape, np.float32, size, accelerator, "train: teacher")
            # The device's memory is for the model that trains.
            model.to("cpu")
        return TeacherLogits(path, self)


class TeacherLogits:
    """The teacher's logits of the training rows, in the order of the heads' own outputs.

    Args:
        path: A file from ``Teacher.logits``.
        teacher: The teacher.
    """

    def __init__(self, path: Path, teacher: Teacher) -> None:
        self.values: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
        self._widths = {name: len(outputs) for name, outputs in teacher.outputs.items()}

    def batch(self, rows: Sequence[int], device: torch.device) -> dict[str, Tensor]:
        """Returns the (B, outputs) logits of the rows with these numbers, by head name."""
        values = torch.from_numpy(self.values[list(rows)]).to(device)  # (B, all outputs)
        return dict(zip(self._widths, torch.split(values, list(self._widths.values()), dim=1), strict=True))


def open_teacher(config: Config, heads: Sequence[HeadConfig]) -> Teacher | None:
    """Loads the teacher that a configuration names, and matches its heads and labels by name.

    Args:
        config: The configuration.
        heads: The heads with their labels.

    Returns:
        The teacher; None if the configuration names none.

    Raises:
        ConfigError: It is not a run directory, has none of the heads, or has one with another kind or other labels.
    """
    if config.training.teacher is None:
        return None
    path = config.resolve(_FIELD, config.training.teacher)
    try:
        run = load_run(path)
        tokenizer = load_tokenizer(run.tokenizer_path)
    except (RunError, ValueError) as error:
        raise config.error(_FIELD, str(error)) from error
    known = {str(head["name"]): head for head in run.heads}
    shared = [head for head in heads if head.name in known]
    if not shared:
        names = ", ".join(head.name for head in heads)
        reason = f"{path} has the heads {', '.join(known)}, none of {names}"
        raise config.error(_FIELD, f"{reason}: name the heads alike")
    outputs, signs = {}, {}
    for head in shared:
        labels, theirs = list(head.labels or ()), list(known[head.name]["labels"])
        if fault := _fault(head, str(known[head.name]["kind"]), theirs):
            reason = f"head {head.name!r} of {path} {fault}: train the teacher with the same heads"
            raise config.error(_FIELD, reason)
        signs[head.name] = -1.0 if head.kind == "sigmoid" and labels != theirs else 1.0
        # The outputs of a softmax and of a multilabel head are its labels; others keep their order.
        width = output_width(head.kind, len(labels))
        outputs[head.name] = [theirs.index(label) for label in labels] if width == len(labels) else list(range(width))
    return Teacher(run, tokenizer, config.training.batch_size, outputs, signs)


def _fault(head: HeadConfig, kind: str, labels: Sequence[str]) -> str | None:
    """Describes how a teacher's head differs from the head of the same name; None if the two match."""
    if kind != head.kind:
        return f"is of the kind {kind!r}, not {head.kind!r}"
    own = head.labels or ()
    missing, unexpected = sorted(set(own) - set(labels)), sorted(set(labels) - set(own))
    faults = [f"lacks the label {missing[0]!r}"] if missing else []
    faults += [f"has the label {unexpected[0]!r}, which the training rows do not have"] if unexpected else []
    if kind == "ordinal" and not faults and tuple(own) != tuple(labels):
        faults = [f"has the order {', '.join(labels)}"]
    return " and ".join(faults) or None
