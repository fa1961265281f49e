"""Signals end a process whose event loop does not."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from polyhead_server.lifecycle import stop_signals

PROGRAM = """
import asyncio, sys, time
from polyhead_server.lifecycle import stop_signals

stop_signals._GRACE_S = 0.2

stop_signals.block()

async def main():
    stopped = asyncio.Event()
    def on_stop():
        print("stop", flush=True)
        stopped.set()
    with stop_signals.handled(on_stop, {drain_timeout_s}, ignore_second={ignore_second}):
        print("ready", flush=True)
        {work}

asyncio.run(main())
"""
STUCK = "time.sleep(60)"
# Blocks in a write: what reads standard output here reads no more than the first line.
FULL_PIPE = "sys.stdout.write('x' * 10**7)"
IDLE = "await asyncio.sleep(60)"


@contextlib.contextmanager
def running(
    work: str, *, drain_timeout_s: float = 60.0, ignore_second: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """Runs a process that handles signals; it is killed at the end of the block."""
    program = PROGRAM.format(work=work, drain_timeout_s=drain_timeout_s, ignore_second=ignore_second)
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program], stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("work", "number"),
    [(STUCK, signal.SIGTERM), (STUCK, signal.SIGINT), (FULL_PIPE, signal.SIGTERM), (IDLE, signal.SIGTERM)],
)
def test_second_signal_ends_a_process_whose_loop_is_stuck(work: str, number: signal.Signals) -> None:
    with running(work) as process:
        process.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(number)
        assert process.wait(30) == 1
        assert process.stderr is not None
        assert "the event loop did not end the process in time" in process.stderr.read()


@pytest.mark.parametrize("work", [STUCK, FULL_PIPE])
def test_process_ends_at_the_drain_timeout_without_a_second_signal(work: str) -> None:
    with running(work, drain_timeout_s=0.1) as process:
        process.terminate()
        assert process.wait(30) == 1


def test_second_signal_to_a_worker_is_ignored() -> None:
    with running(STUCK, ignore_second=True) as process:
        process.terminate()
        process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.0)


def test_event_loop_handles_the_signal_first() -> None:
    with running("await stopped.wait()") as process:
        process.terminate()
        assert process.wait(30) == 0
        assert process.stdout is not None
        assert process.stdout.read() == "stop\n"


async def test_work_ends_before_the_stop() -> None:
    stop = asyncio.Event()
    task = await stop_signals.ended_before(stop, asyncio.sleep(0, "done"))
    assert task
    assert task.result() == "done"


async def test_error_of_the_work_is_left_to_the_caller() -> None:
    async def fail() -> None:
        raise ValueError("a defect")

    task = await stop_signals.ended_before(asyncio.Event(), fail())
    assert task
    with pytest.raises(ValueError, match="a defect"):
        task.result()


async def test_stop_cancels_the_work() -> None:
    stop, cancelled = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        try:
            stop.set()
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    assert await stop_signals.ended_before(stop, work()) is None
    await asyncio.wait_for(cancelled.wait(), 30)
