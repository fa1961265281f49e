from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from polyhead_server.errors import StartupError
from polyhead_server.settings import Settings
from polyhead_server.workers import supervisor
from polyhead_server.workers.ipc import Start


@pytest.fixture
def settings() -> Settings:
    return Settings(bundle=Path("x"), listen="127.0.0.1:0", workers=3)


def test_cores_are_dealt_out_evenly_and_neighbours_together(settings: Settings) -> None:
    told = supervisor.starts(settings, [0, 1, 2, 5, 6, 7, 8], usable=7)
    assert [one.cores for one in told] == [[0, 1, 2], [5, 6], [7, 8]]


def test_under_a_quota_nobody_is_pinned(settings: Settings) -> None:
    told = supervisor.starts(settings, range(64), usable=7)
    assert [one.cores for one in told] == [[], [], []]
    assert [one.settings.compute_threads("cpu") for one in told] == [2, 2, 2]


def test_threads_that_were_asked_for_are_taken_under_a_quota_too() -> None:
    (one,) = supervisor.starts(Settings(bundle=Path("x"), threads=5), range(64), usable=1)
    assert one.settings.compute_threads("cpu") == 5


@pytest.mark.parametrize("cores", [2, 64])
def test_more_workers_than_cores_are_refused(settings: Settings, cores: int) -> None:
    with pytest.raises(StartupError, match="3 is more than the 2 cores"):
        supervisor.starts(settings, range(cores), usable=2)


@pytest.mark.parametrize(("long_lives", "expected"), [(0, 6), (3, 8)])
async def test_worker_that_dies_young_again_and_again_ends_the_server(
    long_lives: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lives = [61.0] * long_lives
    runs = 0

    async def run_one(*_: object) -> tuple[int, float]:
        nonlocal runs
        runs += 1
        return -11, lives.pop() if lives else 0.0

    monkeypatch.setattr(supervisor, "_FIRST_DELAY_S", 0.0)
    monkeypatch.setattr(supervisor._Supervisor, "_run_one", run_one)
    with pytest.raises(supervisor.WorkerDiedError, match="worker 0 died 6 times in a row, the last time with code -11"):
        await supervisor.supervise(Settings(bundle=Path("x"), listen="127.0.0.1:0", workers=1))
    # The last long life is the first death of the row.
    assert runs == expected


def test_workers_cannot_share_a_unix_socket() -> None:
    with pytest.raises(StartupError, match="--workers 2 cannot share --listen unix:/x"):
        Settings(bundle=Path("x"), workers=2, listen="unix:/x")


async def test_supervisor_refuses_an_admin_address_that_others_reach() -> None:
    with pytest.raises(StartupError, match="--admin-listen"):
        await supervisor.supervise(Settings(bundle=Path("x"), workers=2, admin_listen="0.0.0.0:0"))


async def test_worker_that_takes_too_long_to_start_is_killed(
    script: Callable[[str], None], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    script("import time; time.sleep(1000)")
    monkeypatch.setattr(supervisor, "_FIRST_DELAY_S", 0.0)
    monkeypatch.setattr(supervisor, "_MOST_DEATHS", 1)
    with pytest.raises(supervisor.WorkerDiedError, match="code -9"):
        await supervisor.supervise(Settings(bundle=Path("x"), listen="127.0.0.1:0", start_timeout_s=1.0))
    assert "does not serve after 1 s, --start-timeout-s" in caplog.text


async def test_server_in_which_no_worker_can_start_ends(script: Callable[[str], None]) -> None:
    script("raise SystemExit(2)")
    with pytest.raises(StartupError, match="cannot start"):
        await supervisor.supervise(Settings(bundle=Path("x"), listen="127.0.0.1:0"))


async def test_old_worker_ends_only_once_its_successor_serves(
    script: Callable[[str], None], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """The fourth that starts ends the server, and each before it lived until the next one served."""
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
        print('{{"serving": {{}}}}', flush=True)
        if sum(line.startswith("serves") for line in open(life.name)) == 4:
            os.kill(os.getppid(), signal.SIGTERM)
        while True:
            time.sleep(1)
        """
    )
    code = await supervisor.supervise(
        Settings(bundle=Path("x"), listen="127.0.0.1:0", max_worker_age_s=0.2, drain_timeout_s=5.0)
    )
    assert code == 0
    events = [line.split() for line in (tmp_path / "life").read_text().splitlines()]
    served = [pid for what, pid in events if what == "serves"]
    ended = [pid for what, pid in events if what == "ends"]
    assert len(served) == len(set(served)) == 4
    assert sorted(ended) == sorted(served)
    for number, pid in enumerate(served[:-1]):
        assert events.index(["ends", pid]) > events.index(["serves", served[number + 1]])


async def test_worker_that_hangs_while_it_starts_is_killed_after_its_grace(
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
    monkeypatch.setattr(supervisor, "_KILL_S", 0.1)
    assert await supervisor.supervise(Settings(bundle=Path("x"), listen="127.0.0.1:0", drain_timeout_s=0.0)) == 0


async def test_server_that_is_stopped_before_it_serves_has_cut_nothing_off(script: Callable[[str], None]) -> None:
    script("import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(1000)")
    assert await supervisor.supervise(Settings(bundle=Path("x"), listen="127.0.0.1:0")) == 0


async def test_workers_that_load_different_bundles_at_the_start_do_not_serve_together(
    script: Callable[[str], None], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the bundle is replaced just then: each names itself, until it is told what the others serve."""
    caplog.set_level("INFO")
    script(
        """
        import json, os, signal, sys, time
        told = json.loads(sys.stdin.readline())
        print(json.dumps({"serving": told["identity"] or {"embedding_space": os.getpid()}}), flush=True)
        if told["identity"]:
            os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(1000)
        """
    )
    monkeypatch.setattr(supervisor, "_FIRST_DELAY_S", 0.0)
    monkeypatch.setattr(supervisor, "starts", lambda settings, *_: [Start(settings, [0]), Start(settings, [1])])
    await supervisor.supervise(Settings(bundle=Path("x"), listen="127.0.0.1:0", workers=2))
    assert caplog.text.count("has loaded another model than the others") == 1
    assert "all 2 workers serve" in caplog.text


async def test_supervisor_alone_looks_whether_the_bundle_was_replaced(
    script: Callable[[str], None], tmp_path: Path
) -> None:
    script(
        f"""
        import json, os, signal, sys, time
        told = json.loads(sys.stdin.readline())
        said = open({str(tmp_path / "said")!r}, "a", buffering=1)
        print(told["settings"]["reload_interval_s"], file=said)
        print(json.dumps({{"serving": {{}}}}), flush=True)
        open({str(tmp_path / "bundle.json")!r}, "w").write("new")
        print(json.loads(sys.stdin.readline())["what"], file=said)
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(1000)
        """
    )
    await supervisor.supervise(Settings(bundle=tmp_path, listen="127.0.0.1:0", reload_interval_s=0.01))
    assert (tmp_path / "said").read_text().split() == ["0.0", "reload"]
