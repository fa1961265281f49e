"""Messages for the pipeline, and what comes back for them."""

from __future__ import annotations

import asyncio

from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.inference.types import Flow, Item, ItemOutcome, Message, RequestOptions, Result, Truncation

WINDOW = RequestOptions(truncation=Truncation.WINDOW)


class FakeClock:
    """Replaces the module ``time``."""

    def __init__(self, now: float) -> None:
        self.monotonic = lambda: now


def message(*texts: str, options: RequestOptions | None = None) -> Message:
    """Makes a message whose items have their texts as ids."""
    return Message(tuple(Item(text, text) for text in texts), options or RequestOptions())


async def outcomes(pipeline: Pipeline, message: Message, deadline: float | None = None) -> list[ItemOutcome]:
    """Submits a message and waits for the outcomes of its items."""
    return await asyncio.wait_for(asyncio.gather(*await pipeline.submit(message, Flow(), deadline)), 30)


def embedding(outcome: ItemOutcome) -> list[float]:
    """Returns the embedding of an item that succeeded."""
    assert isinstance(outcome, Result)
    return [float(value) for value in outcome.output.embedding]
