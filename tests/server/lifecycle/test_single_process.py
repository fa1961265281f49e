"""Operations on one model of a process, or on all, with units that remember what was requested."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from polyhead_server.errors import ModelNotFoundError, ReloadError
from polyhead_server.lifecycle.model_unit import ModelUnit
from polyhead_server.lifecycle.single_process import SingleProcess
from polyhead_server.process_reports import ModelIdentity, ReloadResult
from polyhead_server.serving.backend import Backend
from polyhead_server.serving.models import Models


class FakeOperations:
    """Reloads, or fails with the reason ``fails`` if it is set."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.fails = ""
        self.requested: list[str] = []

    async def reload(self, *, force: bool) -> ReloadResult:
        self.requested.append(f"reload force={force}")
        if self.fails:
            raise ReloadError(f"{self.name}: {self.fails}")
        return ReloadResult(1, self.name, {}, ModelIdentity("e", ()), self.name)

    async def reload_and_log(self) -> bool:
        self.requested.append("reload and log")
        return not self.fails

    async def drain(self) -> None:
        self.requested.append("drain")

    async def stats(self) -> str:
        return self.name


class FakeBackend:
    def __init__(self, name: str) -> None:
        self._name = name
        self.service = SimpleNamespace(model_ids=lambda: [f"{name}-0123"])

    def served_name(self) -> str:
        return self._name


@pytest.fixture
def operations() -> list[FakeOperations]:
    return [FakeOperations(name) for name in ("a", "b", "c")]


@pytest.fixture
def process(operations: list[FakeOperations]) -> SingleProcess:
    backends = [cast(Backend, FakeBackend(one.name)) for one in operations]

    def unit(of: FakeOperations, backend: Backend) -> Any:
        async def drift() -> str:
            return f"drift of {of.name}"

        return SimpleNamespace(operations=of, backend=backend, drift=drift)

    units = list(map(unit, operations, backends))
    return SingleProcess(cast("list[ModelUnit]", units), Models(backends))


async def test_reload_reaches_the_named_model_or_all(process: SingleProcess, operations: list[FakeOperations]) -> None:
    # A model's id names it as well.
    for name in ("b", "b-0123"):
        assert [result.model_name for result in await process.reload(force=True, model=name)] == ["b"]
    assert [result.model_name for result in await process.reload(force=False)] == ["a", "b", "c"]
    assert [one.requested for one in operations] == [
        ["reload force=False"],
        ["reload force=True", "reload force=True", "reload force=False"],
        ["reload force=False"],
    ]


async def test_refused_reloads_are_named_and_others_go_on(
    process: SingleProcess, operations: list[FakeOperations]
) -> None:
    operations[0].fails = operations[2].fails = "it is damaged"
    with pytest.raises(ReloadError) as caught:
        await process.reload(force=False)
    assert str(caught.value) == "a: it is damaged; c: it is damaged (reloaded: b)"
    with pytest.raises(ReloadError) as caught:
        await process.reload(force=False, model="a")
    assert str(caught.value) == "a: it is damaged"


async def test_signal_reloads_all(process: SingleProcess, operations: list[FakeOperations]) -> None:
    operations[0].fails = "it is damaged"
    await process.reload_and_log()
    assert [one.requested for one in operations] == [["reload and log"]] * 3


async def test_models_drain_together(process: SingleProcess, operations: list[FakeOperations]) -> None:
    await process.drain()
    assert [one.requested for one in operations] == [["drain"], [], []]


async def test_statistics_are_those_of_the_named_model_or_of_all(process: SingleProcess) -> None:
    found: list[Any] = [await process.stats(), await process.stats("c")]
    assert found == [["a", "b", "c"], ["c"]]


async def test_drift_is_that_of_the_named_model_or_of_the_first(process: SingleProcess) -> None:
    found: list[Any] = [await process.drift(), await process.drift("c")]
    assert found == ["drift of a", "drift of c"]
    with pytest.raises(ModelNotFoundError):
        await process.drift("d")


async def test_unknown_name_changes_nothing(process: SingleProcess, operations: list[FakeOperations]) -> None:
    for call in (process.reload(force=True, model="d"), process.stats("d")):
        with pytest.raises(ModelNotFoundError, match="the models 'a', 'b', 'c'"):
            await call
    assert not any(one.requested for one in operations)
