"""A model of the engine process, and the messages of all fronts that it has admitted."""

from __future__ import annotations

import asyncio
import logging

from polyhead_server.inference.engine_core import EngineCore
from polyhead_server.inference.model import Model

logger = logging.getLogger(__name__)

# Seconds in which the messages that a replaced model has admitted must be tokenized.
TOKENIZATION_TIMEOUT_S = 10.0


class ServedModel:
    """A model of the engine process, and the messages of all fronts that it has admitted.

    Attributes:
        number: Its number among the models of this process.
        core: Queue and compute threads.
        model: The model.
        accepts: Whether it still takes texts of messages that it has admitted.
    """

    def __init__(self, number: int, core: EngineCore) -> None:
        self.number = number
        self.core = core
        self.model: Model = core.model
        self.accepts = True
        self._open_messages = 0
        self._none_open = asyncio.Event()
        self._none_open.set()

    def open(self) -> None:
        """Counts a message whose texts will come."""
        self._open_messages += 1
        self._none_open.clear()

    def end(self) -> None:
        """Counts a message whose texts have all come."""
        self._open_messages -= 1
        if not self._open_messages:
            self._none_open.set()

    async def close(self) -> None:
        """Finishes what was admitted and frees the model."""
        try:
            await asyncio.wait_for(self._none_open.wait(), TOKENIZATION_TIMEOUT_S)
        except TimeoutError:
            logger.warning("a front has not tokenized %d messages in time; another model answers", self._open_messages)
        self.accepts = False
        await self.core.close()


class Host:
    """What the connections share.

    Attributes:
        current: The model that answers; None before the first one.
    """

    current: ServedModel | None = None
