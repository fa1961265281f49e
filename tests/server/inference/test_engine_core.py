"""What the engine core does with finished batches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from polyhead_server.errors import ExpiredError, InternalError
from polyhead_server.inference.engine_core import EngineCore
from polyhead_server.inference.executor import BatchOutcome
from polyhead_server.inference.model import Model
from polyhead_server.inference.types import Batch, Entry, ItemOutcome
from polyhead_server.settings import Settings

from tests.support.queue_entries import entry

pytestmark = pytest.mark.timeout(60)


class Undeliverable(asyncio.Future[ItemOutcome]):
    """A future whose waiter cannot be reached."""

    def set_result(self, _: ItemOutcome) -> None:
        raise RuntimeError("no way to the waiter")


def batch(*entries: Entry) -> BatchOutcome:
    return BatchOutcome(Batch(list(entries), []), [ExpiredError() for _ in entries], 0, 0.001, failed=True)


async def test_outcome_that_cannot_be_delivered_keeps_no_other_text_waiting(
    model: Model, settings: Callable[..., Settings], caplog: pytest.LogCaptureFixture
) -> None:
    caught: list[BaseException] = []
    core = EngineCore(model, settings(), on_exception=caught.append)
    before, lost, mate, later = (entry(3) for _ in range(4))
    lost.future = Undeliverable()
    sharing = entry(3)
    mate.shared = [sharing]
    core._resolve_batches([batch(before, lost, mate), batch(later)])
    assert isinstance(await before.future, ExpiredError)
    # Its batch-mates get an error, and the other batches their outcomes.
    assert isinstance(await mate.future, InternalError)
    assert isinstance(await sharing.future, InternalError)
    assert isinstance(await later.future, ExpiredError)
    assert [str(error) for error in caught] == ["no way to the waiter"]
    assert "could not be delivered" in caplog.text
