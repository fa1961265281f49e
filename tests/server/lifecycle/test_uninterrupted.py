from __future__ import annotations

import asyncio

import pytest
from polyhead_server.lifecycle.uninterrupted import Uninterrupted

from tests.support.polling import until

pytestmark = pytest.mark.timeout(30)


async def test_all_work_is_cancelled() -> None:
    tasks = Uninterrupted()
    task = tasks.start(asyncio.sleep(60))
    tasks.cancel()
    await until(task.cancelled)
