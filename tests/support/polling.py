"""Waiting for a condition."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any


def wait_until(condition: Callable[[], Any], what: str = "the condition is true", timeout_s: float = 120.0) -> None:
    """Waits until ``condition()`` is true; fails after ``timeout_s`` seconds, naming what it waited for."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.01)


async def until(condition: Callable[[], Any], timeout_s: float = 30.0) -> None:
    """Lets other tasks run until ``condition()`` is true; raises TimeoutError after ``timeout_s`` seconds."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.001)
