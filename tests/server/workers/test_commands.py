"""What workers are told together, with workers that are played."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from polyhead_server.settings import Settings
from polyhead_server.workers.commands import WorkerCommands
from polyhead_server.workers.ipc import Start, Values
from polyhead_server.workers.process import WorkerFailedError, WorkerProcess


class PlayedWorker:
    """Does whatever it is told, unless ``fails`` says why not."""

    def __init__(self, number: int, fails: str = "", serves: bool = True) -> None:
        self.number = number
        self.fails = fails
        self.told = Start(Settings(bundle=Path("x")), [])
        self.heard: list[tuple[str, Values]] = []
        self.sent: list[Values] = []
        self.told_to_end = False
        self.served_since = 1.0 if serves else None
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.serves = serves

    async def up(self) -> bool:
        return self.serves

    async def do(self, what: str, arguments: Values, _: float) -> Values:
        self.heard.append((what, arguments))
        if self.fails:
            raise WorkerFailedError(self.fails)
        return {"number": self.number, "identity": {"embedding_space": "new"}}

    def send(self, data: bytes) -> None:
        self.sent.append(json.loads(data))


def orders_to(*workers: PlayedWorker, **settings: Any) -> tuple[WorkerCommands, dict[int, WorkerProcess]]:
    serving = {worker.number: cast(WorkerProcess, worker) for worker in workers if worker.serves}
    told = Settings(bundle=Path("x"), workers=max(1, len(workers)), **settings)
    return WorkerCommands(told, cast(set[WorkerProcess], set(workers)), serving), serving


async def ask(orders: WorkerCommands, asker: PlayedWorker, what: str, arguments: Values | None = None) -> Values:
    """What a worker hears that has asked."""
    orders.hear(cast(WorkerProcess, asker), {"ask": 5, "what": what, "arguments": arguments or {}})
    await asyncio.gather(*orders._answers)
    answers = asker.sent.pop()
    assert answers.pop("answers") == 5
    return answers


@pytest.mark.parametrize("what", ["reload", "drain", "stats"])
async def test_what_one_is_asked_all_do(what: str) -> None:
    workers = [PlayedWorker(number) for number in range(3)]
    orders, _ = orders_to(*workers)
    answers = await ask(orders, workers[1], what, {"force": True})
    assert [answer["number"] for answer in answers["workers"]] == [0, 1, 2]
    assert [worker.heard for worker in workers] == [[(what, {"force": True})]] * 3


async def test_reload_stops_at_the_first_that_cannot(caplog: pytest.LogCaptureFixture) -> None:
    workers = [PlayedWorker(0), PlayedWorker(1, fails="it is damaged"), PlayedWorker(2)]
    orders, _ = orders_to(*workers)
    answers = await ask(orders, workers[0], "reload", {"force": False})
    assert answers == {"message": "worker 1: it is damaged. 1 of 3 workers answer with the new model"}
    assert not workers[2].heard
    assert "reload stopped at worker 1: it is damaged" in caplog.text


async def test_who_starts_after_a_reload_is_held_to_the_new_model() -> None:
    orders, _ = orders_to(PlayedWorker(0))
    orders.identity = {"embedding_space": "old"}
    await orders.reload_as_told()
    assert orders.identity == {"embedding_space": "new"}


async def test_reload_that_is_refused_changes_nothing() -> None:
    orders, _ = orders_to(PlayedWorker(0, fails="no"))
    orders.identity = {"embedding_space": "old"}
    await orders.reload_as_told()
    assert orders.identity == {"embedding_space": "old"}


async def test_who_starts_after_a_drain_is_drained() -> None:
    worker = PlayedWorker(0)
    orders, _ = orders_to(worker)
    await ask(orders, worker, "drain")
    assert orders.drained


@pytest.mark.parametrize(("knew", "orders_given"), [(False, ["drain"]), (True, [])])
async def test_who_started_before_a_drain_and_serves_after_it_is_told(knew: bool, orders_given: list[str]) -> None:
    worker = PlayedWorker(0)
    worker.told = Start(Settings(bundle=Path("x")), [], drained=knew)
    orders, _ = orders_to(worker)
    orders.drained = True
    await orders.welcome(cast(WorkerProcess, worker))
    assert heard(worker) == orders_given


async def test_worker_that_ends_meanwhile_has_no_answer() -> None:
    workers = [PlayedWorker(0), PlayedWorker(1, fails="it ended")]
    workers[1].ended.set_result(0)
    orders, _ = orders_to(*workers)
    assert [answer["number"] for answer in (await ask(orders, workers[0], "stats"))["workers"]] == [0]


async def test_worker_that_stays_and_does_not_answer_is_no_answer() -> None:
    workers = [PlayedWorker(0), PlayedWorker(1, fails="it did not answer within 10 s")]
    orders, _ = orders_to(*workers)
    assert "did not answer" in (await ask(orders, workers[0], "stats"))["message"]


async def test_those_that_are_told_to_end_are_left_alone() -> None:
    workers = [PlayedWorker(0), PlayedWorker(0)]
    workers[0].told_to_end = True
    orders, _ = orders_to(*workers)
    await ask(orders, workers[1], "reload", {"force": False})
    assert (len(workers[0].heard), len(workers[1].heard)) == (0, 1)


async def test_reload_without_workers_fails() -> None:
    orders, _ = orders_to(PlayedWorker(0, serves=False))
    with pytest.raises(WorkerFailedError, match="no worker serves"):
        await orders._reload({"force": False})


def heard(worker: PlayedWorker) -> list[str]:
    return [what for what, _ in worker.heard]


async def test_admin_service_is_with_the_lowest_worker_and_stays() -> None:
    workers = [PlayedWorker(number) for number in range(2)]
    orders, serving = orders_to(*workers, admin_listen="unix:/x")
    lowest = serving.pop(0)
    await orders.hand_admin()
    serving[0] = lowest
    await orders.hand_admin()
    assert [heard(worker) for worker in workers] == [[], ["open_admin"]]


async def test_admin_service_leaves_a_worker_before_it_comes_to_its_successor() -> None:
    order: list[str] = []
    old, new = PlayedWorker(0), PlayedWorker(0)
    orders, serving = orders_to(old, admin_listen="unix:/x")
    await orders.hand_admin()

    def noting(name: str, do: Callable[..., Any]) -> Callable[..., Any]:
        async def noted(what: str, arguments: Values, timeout_s: float) -> Values:
            order.append(f"{name} {what}")
            return cast(Values, await do(what, arguments, timeout_s))

        return noted

    for name, worker in (("old", old), ("new", new)):
        worker.do = noting(name, worker.do)  # type: ignore[method-assign]
    serving[0] = cast(WorkerProcess, new)
    await orders.hand_admin()
    assert order == ["old close_admin", "new open_admin"]


async def test_admin_service_goes_to_the_next_when_one_cannot_have_it() -> None:
    workers = [PlayedWorker(0, fails="taken"), PlayedWorker(1)]
    orders, _ = orders_to(*workers, admin_listen="unix:/x")
    await orders.hand_admin()
    assert [heard(worker) for worker in workers] == [["open_admin"], ["open_admin"]]


async def test_worker_that_was_told_to_end_does_not_get_the_admin_service() -> None:
    workers = [PlayedWorker(0), PlayedWorker(1)]
    workers[0].told_to_end = True
    orders, _ = orders_to(*workers, admin_listen="unix:/x")
    await orders.hand_admin()
    assert [heard(worker) for worker in workers] == [[], ["open_admin"]]


async def test_without_an_address_there_is_no_admin_service() -> None:
    worker = PlayedWorker(0)
    orders, _ = orders_to(worker)
    await orders.hand_admin()
    assert not worker.heard


async def test_bundle_that_is_replaced_is_loaded_by_all_and_told_to_those_who_start_later(tmp_path: Path) -> None:
    served = tmp_path / "served"
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "bundle.json").write_text(name)
    served.symlink_to(tmp_path / "old")
    workers = [PlayedWorker(0), PlayedWorker(1)]
    orders, _ = orders_to(*workers)
    orders.identity = {"embedding_space": "old"}
    looks: list[int] = []

    async def sleep(every_s: float) -> None:
        assert every_s == 5
        looks.append(len(workers[1].heard))
        if len(looks) == 3:
            served.unlink()
            served.symlink_to(tmp_path / "new")
        elif len(looks) == 4:
            served.unlink()
        elif len(looks) == 5:
            # It is the same as before.
            served.symlink_to(tmp_path / "new")
        elif len(looks) == 6:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        await orders.watch(served / "bundle.json", 5, sleep)
    assert looks == [0, 0, 0, 1, 1, 1]
    assert [worker.heard for worker in workers] == [[("reload", {"force": False})]] * 2
    assert orders.identity == {"embedding_space": "new"}
