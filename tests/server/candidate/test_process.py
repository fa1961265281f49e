"""A candidate's process as the server handles it, with scripts in place of the program."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from polyhead_server.candidate import process as process_module
from polyhead_server.candidate.process import CandidateProcess
from polyhead_server.errors import CandidateError

pytestmark = pytest.mark.timeout(60)


@dataclass
class Number:
    number: int


ECHO = """
    import json, sys
    number = json.loads(sys.stdin.readline())["number"]
    for line in iter(sys.stdin.readline, ""):
        number += 1
        print(json.dumps({"number": number}), flush=True)
"""


async def test_requests_are_answered_in_order(script: Callable[[str], None]) -> None:
    script(ECHO)
    process = await CandidateProcess.start("m", Number(7))
    assert await process.request(Number) == Number(8)
    assert await process.request(Number) == Number(9)
    await process.stop()
    assert process.ended.result() == 0


async def test_process_that_ends_is_noticed(script: Callable[[str], None]) -> None:
    script("import sys; sys.exit(3)")
    process = await CandidateProcess.start("m", Number(7))
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    process.on_end(ended.set_result)
    with pytest.raises(CandidateError, match="ended with code 3"):
        await process.receive(Number, 30)
    assert await ended == 3
    with pytest.raises(CandidateError, match="ended with code 3"):
        await process.request(Number)


async def test_last_line_of_a_process_counts(script: Callable[[str], None]) -> None:
    script("""print('{"number": 5}')""")
    process = await CandidateProcess.start("m", Number(7))
    assert await process.receive(Number, 30) == Number(5)
    await process.ended


# Answers the first request once a file exists, and the second at once.
LATE = """
    import os, sys, time
    sys.stdin.readline()
    sys.stdin.readline()
    while not os.path.exists(f"{sys.argv[0]}.go"):
        time.sleep(0.01)
    print('{"number": 1}', flush=True)
    sys.stdin.readline()
    print('{"number": 2}', flush=True)
    sys.stdin.readline()
"""


async def test_process_without_compute_is_skipped_and_its_late_answer_too(
    script: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script(LATE)
    process = await CandidateProcess.start("m", Number(0))
    monkeypatch.setattr(process_module, "RESPONSE_TIMEOUT_S", 0.05)
    with pytest.raises(CandidateError, match="no compute is left"):
        await process.request(Number)
    monkeypatch.setattr(process_module, "RESPONSE_TIMEOUT_S", 30)
    (tmp_path / "python.go").touch()
    while process._responses.empty():
        await asyncio.sleep(0.005)
    assert await process.request(Number) == Number(2)
    await process.stop()


async def test_process_without_compute_gets_one_request_and_no_more(
    script: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    script(LATE)
    process = await CandidateProcess.start("m", Number(0))
    monkeypatch.setattr(process_module, "RESPONSE_TIMEOUT_S", 0.01)
    sent: list[bytes] = []
    monkeypatch.setattr(process, "_send", sent.append)
    for _ in range(3):
        with pytest.raises(CandidateError, match="no compute is left"):
            await process.request(Number)
    assert len(sent) == 1
    process.kill()
    await process.ended


async def test_caller_that_goes_takes_no_answer_from_others(script: Callable[[str], None], tmp_path: Path) -> None:
    script(LATE)
    process = await CandidateProcess.start("m", Number(0))
    gone = asyncio.create_task(process.request(Number))
    await asyncio.sleep(0.01)
    gone.cancel()
    await asyncio.wait({gone})
    (tmp_path / "python.go").touch()
    assert await process.request(Number) == Number(1)
    assert await process.request(Number) == Number(2)
    await process.stop()


async def test_process_that_does_not_stop_is_killed(
    script: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    script("import time\nprint('{\"number\": 1}', flush=True)\nwhile True: time.sleep(1)")
    monkeypatch.setattr(process_module, "_END_TIMEOUT_S", 0.05)
    process = await CandidateProcess.start("m", Number(0))
    ends: list[int] = []
    process.on_end(ends.append)
    await process.receive(Number, 30)
    await process.stop()
    assert process.ended.result() == -9
    # It was asked to end, which is nothing to react to.
    assert not ends
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


async def test_system_without_another_process_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(CandidateError, match="cannot be started: No such file"):
        await CandidateProcess.start("m", Number(0))
