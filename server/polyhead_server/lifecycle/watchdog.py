"""Detects an engine that has failed permanently, so that the process can exit and its supervisor can restart it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

# Permanent failures are counted in tens of batches or tens of seconds, so one look a second is enough.
_POLL_INTERVAL_S = 1.0


class Monitored(Protocol):
    """A component that can fail permanently: a pipeline."""

    def failure_reason(self) -> str | None:
        """Why it cannot answer any more; None while it can."""


async def wait_for_failure(
    current: Callable[[], Monitored | None], sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> str:
    """Waits until the current component has failed permanently and returns the reason.

    Args:
        current: Returns the component; a reload may replace it at any time. None before the first model is ready.
        sleep: Waits for a number of seconds.
    """
    while True:
        await sleep(_POLL_INTERVAL_S)
        if (component := current()) and (reason := component.failure_reason()):
            return reason
