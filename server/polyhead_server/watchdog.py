"""An engine that fails for good is found out, so that the process ends and whoever supervises it starts another."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

# Trouble is counted in tens of passes or of seconds.
_LOOK_S = 1.0


class Watched(Protocol):
    """What may be in trouble: a pipeline."""

    def failure_reason(self) -> str | None:
        """Why it will not answer any more, whatever it is asked; None where nothing says so."""


async def trouble(
    watched: Callable[[], Watched | None], sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> str:
    """Waits until what answers is in trouble, and returns which; a reload may bring another in its place meanwhile."""
    while True:
        await sleep(_LOOK_S)
        if (one := watched()) and (found := one.failure_reason()):
            return found
