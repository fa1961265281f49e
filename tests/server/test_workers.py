from __future__ import annotations

import socket
from pathlib import Path

import pytest
from polyhead_server import workers
from polyhead_server.errors import StartupError
from polyhead_server.settings import Settings, split_address


def test_cores_are_dealt_out_evenly_and_neighbours_together() -> None:
    assert workers.parts([0, 1, 2, 5, 6, 7, 8], 3) == [[0, 1, 2], [5, 6], [7, 8]]


def test_more_workers_than_cores_are_refused() -> None:
    with pytest.raises(StartupError, match="3 is more than the 2 cores"):
        workers.parts([0, 1], 3)


def test_worker_reads_the_settings_that_the_supervisor_wrote() -> None:
    settings = Settings(bundle=Path("a bundle"), threads=3, max_padding=0.5)
    assert workers.decode(workers.encode(settings, [1, 2])) == (settings, [1, 2])


@pytest.mark.parametrize("shares", [0, 1])
def test_address_where_somebody_listens_is_refused(shares: int) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shares)
        other.bind(("127.0.0.1", 0))
        other.listen()
        with (
            pytest.raises(StartupError, match="another server"),
            workers.reserve(f"127.0.0.1:{other.getsockname()[1]}"),
        ):
            pass


def test_reserved_address_is_open_to_workers_alone() -> None:
    with workers.reserve("127.0.0.1:0") as address, socket.socket() as worker, socket.socket() as stranger:
        host, port = address.split(":")
        worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        worker.bind((host, int(port)))
        worker.listen()
        with pytest.raises(OSError, match="in use"):
            stranger.bind((host, int(port)))
        # The reservation takes no connection: each of them reaches the worker.
        for _ in range(20):
            socket.create_connection((host, int(port)), timeout=5).close()
            worker.accept()[0].close()


def test_address_that_is_not_ours_is_refused() -> None:
    with pytest.raises(StartupError, match="cannot listen"), workers.reserve("192.0.2.1:50051"):
        pass


@pytest.mark.parametrize("address", ["50051", ":50051", "127.0.0.1:", "127.0.0.1:70000", "127.0.0.1:x"])
def test_address_of_another_form_is_refused(address: str) -> None:
    with pytest.raises(StartupError, match="is not HOST:PORT"):
        split_address(address)


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

    monkeypatch.setattr(workers, "_FIRST_DELAY_S", 0.0)
    monkeypatch.setattr(workers._Supervisor, "_run_one", run_one)
    with pytest.raises(workers.WorkerDiedError, match="worker 0 died 6 times in a row, the last time with code -11"):
        await workers.supervise(Settings(bundle=Path("x"), listen="127.0.0.1:0", workers=1))
    # The last long life is the first death of the row.
    assert runs == expected
