from __future__ import annotations

import pytest
from polyhead_server.lifecycle.watchdog import wait_for_failure


class FakePipeline:
    """A pipeline with a given failure reason."""

    def __init__(self, reason: str | None) -> None:
        self._reason = reason

    def failure_reason(self) -> str | None:
        return self._reason


async def test_failure_is_waited_for_and_its_reason_returned() -> None:
    reason = "a batch has been running for 130 s"
    pipelines = [None, FakePipeline(None), FakePipeline(None), FakePipeline(reason)]
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    assert await wait_for_failure(lambda: pipelines.pop(0), sleep) == reason
    assert not pipelines
    assert slept == [1.0] * 4


async def test_healthy_pipeline_is_watched_without_end() -> None:
    """Control for the test above."""
    remaining = 100

    async def sleep(_: float) -> None:
        nonlocal remaining
        remaining -= 1
        if not remaining:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        await wait_for_failure(lambda: FakePipeline(None), sleep)
