"""What a target is, and what several of them need."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

Check = Callable[[bytes], None]


@dataclass(frozen=True)
class Target:
    """A reader of bytes.

    Attributes:
        create: Prepares it, and returns the function to fuzz. What ends its threads and removes its files is pushed on
            the stack.
        seeds: Valid inputs.
        json_at: Offset at which inputs are JSON documents; None if they are not.
    """

    create: Callable[[ExitStack], Check]
    seeds: Callable[[], list[bytes]]
    json_at: int | None = None


def folder(stack: ExitStack) -> Path:
    """Returns an empty folder, which the stack removes."""
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fuzz-")))


def event_loop(stack: ExitStack) -> asyncio.AbstractEventLoop:
    """Returns an event loop, which the stack closes."""
    loop = asyncio.new_event_loop()
    stack.callback(loop.close)
    return loop
