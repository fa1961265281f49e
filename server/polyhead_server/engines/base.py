"""The interface of an engine: token ids in, embeddings and logits out, and a report of where it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class EngineError(Exception):
    """An engine cannot be used on this machine. The message is one line that clients may read.

    The message of a library, which may contain paths, is in ``__cause__`` and belongs only in the log.
    """


@dataclass(frozen=True)
class Runtime:
    """The engine, device and variant that really compute the answers."""

    engine: str
    device: str
    variant: str

    def __str__(self) -> str:
        return f"{self.engine}/{self.device}/{self.variant}"


class Engine(Protocol):
    """Runs the model on batches. ``run`` may be called from several threads at once."""

    @property
    def runtime(self) -> Runtime:
        """Where this engine runs, as reported by the library and not as requested."""
        ...

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        """Runs one forward pass over a batch.

        Args:
            input_ids: (B, T) token ids.
            attention_mask: (B, T), 1 for real tokens and 0 for padding.

        Returns:
            The embedding (B, dimensions), then each head's logits (B, outputs), in the model's order.
        """
        ...

    def close(self) -> None:
        """Frees the model, whatever still refers to the engine; a later ``run`` raises EngineError.

        May be called while another thread is in ``run``, which onnxruntime then ends with an error.
        """
        ...
