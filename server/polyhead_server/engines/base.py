"""What an engine is: numbers in, numbers out, and the truth about where it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class EngineError(Exception):
    """An engine cannot be used on this machine, with the reason in one line, which clients may read.

    What a library said of it, such as a path, is the cause, and for the log.
    """


@dataclass(frozen=True)
class Runtime:
    """Where the numbers are really made."""

    engine: str
    device: str
    variant: str

    def __str__(self) -> str:
        return f"{self.engine}/{self.device}/{self.variant}"


class Engine(Protocol):
    """One pass over a batch. ``run`` may be called from several threads at once."""

    @property
    def runtime(self) -> Runtime:
        """Where this engine runs, found out and not assumed."""
        ...

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        """Answers a batch.

        Args:
            input_ids: (B, T) token ids.
            attention_mask: (B, T), 1 for tokens of the text and 0 for padding.

        Returns:
            The embedding (B, dimensions), then each head's logits (B, outputs), in the model's order.
        """
        ...

    def close(self) -> None:
        """Frees the model, whoever still refers to the engine; a run after it fails."""
        ...
