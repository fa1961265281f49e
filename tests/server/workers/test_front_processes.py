"""What the supervisor does differently with ``--fronts``, with scripts in the place of the processes."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from polyhead_server.errors import StartupError
from polyhead_server.settings import Settings
from polyhead_server.workers import ipc, supervisor
from polyhead_server.workers.config import front_configs
from polyhead_server.workers.ipc import NoParams, ReloadParams, Request, Role, WorkerConfig
from polyhead_server.workers.supervisor import supervise

from .test_commands import NEW, FakeHealth, FakeWorker, commands_to

pytestmark = pytest.mark.timeout(60)

SERVING = '{"jsonrpc": "2.0", "method": "serving", "params": {"embedding_space": "e", "heads": [], "prompts": {}}}'


def fronts(count: int, **values: object) -> Settings:
    return Settings(bundle=Path("x"), listen="127.0.0.1:0", fronts=count, **values)  # type: ignore[arg-type]


def test_there_is_one_engine_process_and_it_is_the_first() -> None:
    configs = front_configs(fronts(2, metrics_listen="127.0.0.1:1", reload_interval_s=5.0), "/run/engine.sock")
    assert [config.role for config in configs] == [Role.ENGINE, Role.FRONT, Role.FRONT]
    assert {config.engine_socket for config in configs} == {"/run/engine.sock"}
    # Not pinned: the engine may use what the fronts leave.
    assert {config.cores for config in configs} == {()}
    assert {(config.settings.metrics_listen, config.settings.reload_interval_s) for config in configs} == {("", 0.0)}


def test_a_path_that_is_too_long_for_a_socket_is_refused() -> None:
    front_configs(fronts(1), "/" + "x" * 106)
    with pytest.raises(StartupError, match="set TMPDIR to a shorter one"):
        front_configs(fronts(1), "/" + "x" * 107)


def test_the_role_survives_encoding() -> None:
    config = WorkerConfig(fronts(1), role=Role.FRONT, engine_socket="/run/engine.sock")
    request = ipc.decode(ipc.encode_notification(ipc.CONFIGURE, config))
    assert isinstance(request, Request)
    assert ipc.CONFIGURE.params_of(request) == config
    request.params["role"] = "driver"
    with pytest.raises(ipc.RpcError, match="driver"):
        ipc.CONFIGURE.params_of(request)


def left_in(folder: Path) -> list[Path]:
    return list(folder.glob("polyhead-engine-*"))


def processes() -> list[FakeWorker]:
    found = [FakeWorker(number) for number in range(3)]
    for worker, config in zip(found, front_configs(fronts(2), "/run/engine.sock"), strict=True):
        worker.config = config
    return found


async def test_the_engine_alone_reloads() -> None:
    engine, *others = processes()
    commands = commands_to(engine, *others)
    (result,) = await commands.reload(force=True)
    assert (result.process_id, commands.identity) == (0, NEW)
    assert engine.requests[-1] == ("reload", ReloadParams(force=True))
    assert not any(front.requests for front in others)


async def test_statistics_and_drain_reach_every_process() -> None:
    workers = processes()
    commands = commands_to(*workers)
    assert [one.process_id for one in await commands.stats()] == [0, 1, 2]
    await commands.drain()
    assert all(worker.requests[-1] == ("drain", NoParams()) for worker in workers)


async def test_the_server_is_alive_while_a_front_serves() -> None:
    engine, *others = processes()
    for front in others:
        front.serves = False
    for serving, alive in (([engine], False), ([others[0]], True), ([engine, others[0]], True)):
        for worker in serving:
            worker.serves = True
        commands = commands_to(*serving)
        health = FakeHealth()
        commands.health = health
        await commands.update_health()
        assert (health.alive, health.serving) == (alive, alive)


async def test_the_engine_is_stopped_after_the_last_front(
    script: Callable[[str], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The engine stops the server once all serve; each process writes its role when it ends."""
    caplog.set_level("INFO")
    script(
        f"""
        import os, signal, sys, time
        sys.stdin.readline()
        life = open({str(tmp_path / "life")!r}, "a", buffering=1)
        def end(*_):
            if sys.argv[-1] == "front":
                # Long enough for an engine that was stopped at once to end before.
                time.sleep(0.3)
            life.write(sys.argv[-1] + " ends\\n")
            sys.exit()
        signal.signal(signal.SIGTERM, end)
        print({SERVING!r}, flush=True)
        life.write(sys.argv[-1] + " serves\\n")
        while sys.argv[-1] == "front" or open(life.name).read().count("serves") < 3:
            time.sleep(0.05)
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(1000)
        """
    )
    assert await supervise(fronts(2)) == 0
    assert (tmp_path / "life").read_text().split()[-6:] == ["front", "ends", "front", "ends", "engine", "ends"]
    assert "the engine and 2 fronts serve" in caplog.text
    assert "the engine serves as process" in caplog.text


async def test_a_server_whose_engine_cannot_start_ends(script: Callable[[str], None]) -> None:
    script(
        f"""
        import signal, sys, time
        sys.stdin.readline()
        if sys.argv[-1] == "engine":
            time.sleep(0.2)
            sys.exit(2)
        print({SERVING!r}, flush=True)
        time.sleep(1000)
        """
    )
    with pytest.raises(StartupError, match="the engine cannot start"):
        await supervise(fronts(1))


@pytest.mark.parametrize(("served_s", "runs"), [(0.9, 6), (1.1, 20)])
async def test_the_server_gives_up_only_an_engine_that_dies_at_once(
    served_s: float, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = 0
    stopped = asyncio.Event()

    async def run_slot(_: object, __: int, config: WorkerConfig) -> tuple[int, float]:
        nonlocal run
        if config.role is Role.FRONT:
            await stopped.wait()
            return 0, 0.0
        run += 1
        if run == runs:
            stopped.set()
        if run == 20:
            os.kill(os.getpid(), signal.SIGTERM)
            # The loop handles the signal.
            await asyncio.sleep(0.05)
        return -9, served_s

    monkeypatch.setattr(supervisor, "RESTART_DELAY_S", 0.0)
    monkeypatch.setattr(supervisor.Supervisor, "_run_slot", run_slot)
    if runs == 6:
        with pytest.raises(supervisor.WorkerDiedError, match="the engine died 6 times in a row"):
            await supervise(fronts(1))
    else:
        assert await supervise(fronts(1)) == 0
    assert run == runs


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder for a socket, whose path is short, as that of ``tmp_path`` is not."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


async def test_the_folder_of_the_socket_is_private_and_removed(
    script: Callable[[str], None], tmp_path: Path, short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(short_folder))
    script(
        f"""
        import json, os, signal, sys, time
        folder = os.path.dirname(json.loads(sys.stdin.readline())["params"]["engine_socket"])
        with open({str(tmp_path / "modes")!r}, "a") as file:
            file.write(folder + " " + oct(os.stat(folder).st_mode) + "\\n")
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(1000)
        """
    )
    assert await supervise(fronts(1)) in {0, 1}
    folder, mode = (tmp_path / "modes").read_text().splitlines()[0].split()
    assert mode.endswith("700")
    assert folder.startswith(str(short_folder / "polyhead-engine-"))
    assert not left_in(short_folder)
