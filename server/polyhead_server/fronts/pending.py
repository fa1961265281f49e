"""What a front keeps of messages that the engine process has not answered."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from polyhead_server.errors import ServerError
from polyhead_server.inference.intake import Submission
from polyhead_server.inference.model import Model
from polyhead_server.inference.types import Entry

from .model_files import output_sizes
from .records import Flag


class Target:
    """A model as its front submits to it; the pipeline of the model owns it.

    Attributes:
        model: The model.
        number: Its number in the engine process that is connected now; None where that one does not serve it.
        is_stale: Whether the engine has refused a message because another model answers.
        replaced: Set once another model answers in this front.
        messages: Number of messages that have not been answered.
        idle: Set while that is 0.
    """

    def __init__(self, model: Model, number: int) -> None:
        self.model = model
        self.number: int | None = number
        self.is_stale = False
        self.replaced = asyncio.Event()
        self.messages = 0
        self.idle = asyncio.Event()
        self.idle.set()
        manifest = model.source.manifest
        self.output_sizes = output_sizes(manifest)
        self.heads = len(manifest.heads)


@dataclass(slots=True, eq=False)
class Message:
    """A message that has not been answered.

    Attributes:
        target: Its model.
        submission: Its texts.
        flow: Number of its call.
        tokens: Estimated tokens of its texts, which bound what waits while there is no engine.
        sizes: Estimated tokens of each text.
        is_sent: Whether an engine process may have admitted it.
        admission: Outcome of the admission of a stream's message; None for a unary one, which does not wait for it.
        entries: Entries without an outcome, by number.
        count: Number of all its entries so far.
        tokenized: Number of texts that are tokenized.
        is_last: Whether all of them are.
        losses: Number of engine processes that have ended while they had the message.
    """

    target: Target
    submission: Submission
    flow: int
    tokens: int
    sizes: list[int]
    is_sent: bool = False
    admission: asyncio.Future[tuple[int, ServerError | None]] | None = None
    entries: dict[int, Entry] = field(default_factory=dict)
    count: int = 0
    tokenized: int = 0
    is_last: bool = False
    losses: int = 0

    @property
    def flags(self) -> int:
        """Flags of its records."""
        return (Flag.UNARY if self.submission.flow.unary else 0) | (Flag.BLOCKING if self.submission.blocking else 0)


@dataclass(slots=True, eq=False)
class Stream:
    """A stream's call: its number, and whether the engine has capacity for more of it."""

    number: int
    capacity: asyncio.Event
