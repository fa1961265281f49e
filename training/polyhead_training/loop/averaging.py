"""Average of a stage's weights over its steps, which evaluates better than the last weights alone.

::

    weights after each step --update--> Average --swapped--> validation, best.safetensors
                                                --apply, after the last step--> the model

The average belongs to one stage: it starts at the stage's first weights, and the next stage starts from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from polyhead_training.training_config import TrainingConfig

from .stages import Stage

# Share of a stage's steps after which the stochastic weight average starts.
_SWA_START = 0.5


class Average:
    """Average of the weights that a stage trains; without averaging, it has no weights and every method does nothing.

    Args:
        config: The kind of average and its decay.
        stage: The stage. Layers that are unfrozen later are part of the average from the first step.
    """

    def __init__(self, config: TrainingConfig, stage: Stage) -> None:
        self._config = config
        self._steps = stage.steps
        self._parameters = stage.parameters() if config.average != "none" else []
        self._values = [parameter.detach().clone() for parameter in self._parameters]

    @property
    def tensors(self) -> list[Tensor]:
        """The averaged weights, in the order of the stage's parameters, for the checkpoint."""
        return self._values

    def update(self, step: int) -> None:
        """Adds the weights after a step of the stage, counted from 1."""
        if not self._values:
            return
        with torch.no_grad():
            share = newest_share(self._config, step, self._steps)
            torch._foreach_lerp_(self._values, [parameter.detach() for parameter in self._parameters], share)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Gives the model the averaged weights for the duration of the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def apply(self) -> None:
        """Gives the model the averaged weights for good."""
        with torch.no_grad():
            for parameter, value in zip(self._parameters, self._values, strict=True):
                parameter.copy_(value)

    def _swap(self) -> None:
        for number, parameter in enumerate(self._parameters):
            parameter.data, self._values[number] = self._values[number], parameter.data


def newest_share(config: TrainingConfig, step: int, steps: int) -> float:
    """Returns the weight of the newest weights in the average after a step of a stage, 0 to 1.

    - ``ema``: 1 - decay, where the decay rises from step to step to ``ema_decay``, so that a short stage does not
      average its untrained start (as in TensorFlow's ExponentialMovingAverage with ``num_updates``).
    - ``swa``: 1 / n for the n-th step of the second half of the stage, which gives the mean of these steps
      (Izmailov et al., arXiv 1803.05407); 1 before, so that the average is the current weights.

    Args:
        config: The kind of average and its decay.
        step: Step of the stage, counted from 1.
        steps: Number of steps of the stage.
    """
    if config.average == "ema":
        return 1.0 - min(config.ema_decay, (1 + step) / (10 + step))
    return 1.0 / max(1, step - int(steps * _SWA_START))
