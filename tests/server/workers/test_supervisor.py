from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from polyhead_server.errors import StartupError
from polyhead_server.settings import Settings
from polyhead_server.workers import supervisor
from polyhead_server.workers.config import worker_configs
from polyhead_server.workers.ipc import WorkerConfig
from polyhead_server.workers.supervisor import supervise

SERVING = '{"jsonrpc": "2.0", "method": "serving", "params": {"embedding_space": "e", "heads": []}}'


@pytest.fixture
def settings() -> Settings:
    return Settings(bundle=Path("x"), listen="127.0.0.1:0", workers=3)


def test_cores_are_divided_evenly_and_contiguously(settings: Settings) -> None:
    configs = worker_configs(settings, [0, 1, 2, 5, 6, 7, 8], usable=7)
    assert [config.cores for config in configs] == [(0, 1, 2), (5, 6), (7, 8)]


def test_workers_are_not_pinned_under_a_quota(settings: Settings) -> None:
    configs = worker_configs(settings, range(64), usable=7)
    assert [config.cores for config in configs] == [(), (), ()]
    assert [config.settings.compute_threads("cpu") for config in configs] == [2, 2, 2]


def test_threads_setting_holds_under_a_quota_too() -> None:
    (config,) = worker_configs(Settings(bundle=Path("x"), threads=5), range(64), usable=1)
    assert config.settings.compute_threads("cpu") == 5


def test_workers_neither_watch_the_bundle_nor_open_the_addresses_of_the_supervisor() -> None:
    settings = Settings(
        bundle=Path("x"), reload_interval_s=5.0, metrics_listen="127.0.0.1:1", admin_listen="127.0.0.1:2"
    )
    (config,) = worker_configs(settings, [0], usable=1)
    own = config.settings
    assert (own.reload_interval_s, own.metrics_listen, own.admin_listen) == (0.0, "", "")


@pytest.mark.parametrize("cores", [2, 64])
def test_more_workers_than_cores_are_refused(settings: Settings, cores: int) -> None:
    with pytest.raises(StartupError, match="3 is more than the 2 cores"):
        worker_configs(settings, range(cores), usable=2)


@pytest.mark.parametrize(("long_lives", "expected"), [(0, 6), (3, 8)])
async def test_worker_that_dies_young_too_often_ends_the_server(
    long_lives: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lives = [61.0] * long_lives
    runs = 0

    async def run_slot(*_: object) -> tuple[int, float]:
        nonlocal runs
        runs += 1
        return -11, lives.pop() if lives else 0.0

    monkeypatch.setattr(supervisor, "RESTART_DELAY_S", 0.0)
    monkeypatch.setattr(supervisor.Supervisor, "_run_slot", run_slot)
    with pytest.raises(supervisor.WorkerDiedError, match="worker 0 died 6 times in a row, the last time with code -11"):
        await supervise(Settings(bundle=Path("x"), listen="127.0.0.1:0", workers=1))
    # The death that ends the last long life is the first of the row.
    assert runs == expected


def test_workers_cannot_share_a_unix_socket() -> None:
    with pytest.raises(StartupError, match="--workers 2 cannot share --listen unix:/x"):
        Settings(bundle=Path("x"), workers=2, listen="unix:/x")


async def test_supervisor_refuses_an_admin_address_that_other_machines_can_reach() -> None:
    with pytest.raises(StartupError, match="--admin-listen"):
        await supervise(Settings(bundle=Path("x"), workers=2, admin_listen="0.0.0.0:0"))


async def test_worker_that_takes_too_long_to_start_is_killed(
    script: Callable[[str], None], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    script("import time; time.sleep(1000)")
    monkeypatch.setattr(supervisor, "RESTART_DELAY_S", 0.0)
    monkeypatch.setattr(supervisor, "MAX_DEATHS", 1)
    with pytest.raises(supervisor.WorkerDiedError, match="code -9"):
        await supervise(Settings(bundle=Path("x"), listen="127.0.0.1:0", start_timeout_s=1.0))
    assert "does not serve after 1 s (--start-timeout-s)" in caplog.text


async def test_server_ends_if_no_worker_can_start(script: Callable[[str], None]) -> None:
    script("raise SystemExit(2)")
    with pytest.raises(StartupError, match="cannot start"):
        await supervise(Settings(bundle=Path("x"), listen="127.0.0.1:0"))


async def test_old_worker_is_stopped_only_once_its_successor_serves(
    script: Callable[[str], None], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """The fourth worker stops the server; each worker before it must live until the next one serves."""
    caplog.set_level("INFO")
    script(
        f"""
        import os, signal, sys, time
        sys.stdin.readline()
        life = open({str(tmp_path / "life")!r}, "a", buffering=1)
        def end(*_):
            print("ends", os.getpid(), file=life)
            sys.exit()
        signal.signal(signal.SIGTERM, end)
        print("serves", os.getpid(), file=life)
        print({SERVING!r}, flush=True)
        if sum(line.startswith("serves") for line in open(life.name)) == 4:
            os.kill(os.getppid(), signal.SIGTERM)
        while True:
            time.sleep(1)
        """
    )
    code = await supervise(Settings(bundle=Path("x"), listen="127.0.0.1:0", max_worker_age_s=0.2, drain_timeout_s=5.0))
    assert code == 0
    events = [line.split() for line in (tmp_path / "life").read_text().splitlines()]
    served = [pid for what, pid in events if what == "serves"]
    ended = [pid for what, pid in events if what == "ends"]
    assert len(served) == len(set(served)) == 4
    assert sorted(ended) == sorted(served)
    for number, pid in enumerate(served[:-1]):
        assert events.index(["ends", pid]) > events.index(["serves", served[number + 1]])


async def test_worker_that_hangs_while_it_starts_is_killed_after_the_grace_period(
    script: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    script(
        """
        import os, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(1000)
        """
    )
    monkeypatch.setattr(supervisor, "KILL_GRACE_S", 0.1)
    assert await supervise(Settings(bundle=Path("x"), listen="127.0.0.1:0", drain_timeout_s=0.0)) == 0


async def test_server_that_is_stopped_before_it_serves_exits_with_0(script: Callable[[str], None]) -> None:
    script("import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(1000)")
    assert await supervise(Settings(bundle=Path("x"), listen="127.0.0.1:0")) == 0


async def test_workers_that_load_different_bundles_at_the_start_do_not_serve_together(
    script: Callable[[str], None], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle may be replaced while the first workers load it: here each announces another model, unless it is
    configured with the identity that the others serve.
    """
    caplog.set_level("INFO")
    script(
        """
        import json, os, signal, sys, time
        config = json.loads(sys.stdin.readline())["params"]
        identity = config["identity"] or {"embedding_space": str(os.getpid()), "heads": []}
        print(json.dumps({"jsonrpc": "2.0", "method": "serving", "params": identity}), flush=True)
        if config["identity"]:
            os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(1000)
        """
    )
    monkeypatch.setattr(supervisor, "RESTART_DELAY_S", 0.0)
    configs = [WorkerConfig(Settings(bundle=Path("x")), (core,)) for core in range(2)]
    monkeypatch.setattr(supervisor, "worker_configs", lambda *_: configs)
    await supervise(Settings(bundle=Path("x"), listen="127.0.0.1:0", workers=2))
    assert caplog.text.count("has loaded another model than the others") == 1
    assert "all 2 workers serve" in caplog.text


async def test_supervisor_watches_the_bundle_for_its_workers(script: Callable[[str], None], tmp_path: Path) -> None:
    script(
        f"""
        import json, os, signal, sys, time
        config = json.loads(sys.stdin.readline())["params"]
        received = open({str(tmp_path / "received")!r}, "a", buffering=1)
        print(config["settings"]["reload_interval_s"], file=received)
        print({SERVING!r}, flush=True)
        open({str(tmp_path / "bundle.json")!r}, "w").write("new")
        ping = json.loads(sys.stdin.readline())
        print(json.dumps({{"jsonrpc": "2.0", "id": ping["id"], "error": {{"code": 1, "message": "x"}}}}), flush=True)
        print(ping["method"], json.loads(sys.stdin.readline())["method"], file=received)
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(1000)
        """
    )
    await supervise(Settings(bundle=tmp_path, listen="127.0.0.1:0", reload_interval_s=0.01))
    assert (tmp_path / "received").read_text().split() == ["0.0", "stats", "reload"]
