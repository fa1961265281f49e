from __future__ import annotations

import pytest
from polyhead_server import watchdog


class Played:
    """A pipeline whose trouble is known."""

    def __init__(self, trouble: str | None) -> None:
        self._trouble = trouble

    def failure_reason(self) -> str | None:
        return self._trouble


async def test_trouble_is_waited_for_and_told() -> None:
    looks = [None, Played(None), Played(None), Played("a pass has been running for 130 s")]
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    assert await watchdog.trouble(lambda: looks.pop(0), sleep) == "a pass has been running for 130 s"
    assert not looks
    assert slept == [1.0] * 4


async def test_without_trouble_nothing_ends() -> None:
    """The control: it looks as long as it is let."""
    left = 100

    async def sleep(_: float) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        await watchdog.trouble(lambda: Played(None), sleep)
