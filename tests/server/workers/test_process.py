"""A worker process, played by small scripts that speak its protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from polyhead_server.process_reports import ModelIdentity
from polyhead_server.settings import Settings
from polyhead_server.workers import ipc
from polyhead_server.workers.ipc import Method, NoResult, ReloadParams, WorkerConfig
from polyhead_server.workers.process import WorkerEndedError, WorkerFailedError, WorkerProcess

pytestmark = pytest.mark.timeout(60)

Script = Callable[[str], None]

# Test methods of the worker below.
ECHO = Method("echo", ReloadParams, ReloadParams)
FAIL = Method("fail", ReloadParams, NoResult)
EXIT = Method("exit", ReloadParams, NoResult)
IGNORE = Method("ignore", ReloadParams, NoResult)
LIE = Method("lie", ReloadParams, ReloadParams)
PARAMS = ReloadParams(force=True)

WORKER = """
    import json, sys

    def send(**message):
        print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)

    sys.stdin.readline()
    send(method="serving", params={"embedding_space": "e", "heads": []})
    for line in sys.stdin:
        request = json.loads(line)
        match request.get("method"):
            case "echo":
                send(result=request["params"], id=request["id"])
            case "fail":
                send(error={"code": -32000, "message": "the bundle is damaged"}, id=request["id"])
            case "lie":
                send(result={"force": "maybe"}, id=request["id"])
            case "exit":
                sys.exit(3)
    """


async def started() -> WorkerProcess:
    return await WorkerProcess.start(0, WorkerConfig(Settings(bundle=Path("x"))))


async def ended(worker: WorkerProcess) -> int:
    worker.kill()
    return await worker.exit_code


async def test_worker_serves_once_it_announces_it(script: Script) -> None:
    script(WORKER)
    worker = await started()
    assert worker.serving_s == 0
    assert await worker.wait_until_serving()
    assert worker.identity == ModelIdentity("e", ())
    assert worker.serving_s > 0
    worker.terminate()
    assert await worker.exit_code == -15


async def test_each_request_gets_its_own_result(script: Script) -> None:
    script(WORKER)
    worker = await started()
    await worker.wait_until_serving()
    sent = [ReloadParams(force=number % 3 == 0) for number in range(20)]
    assert await asyncio.gather(*(worker.request(ECHO, one, 30) for one in sent)) == sent
    assert await ended(worker) == -9


@pytest.mark.parametrize(
    ("method", "timeout_s", "reason"),
    [
        (FAIL, 30, "the bundle is damaged"),
        (EXIT, 30, "it ended"),
        (IGNORE, 0.1, "within 0.1 s"),
        (LIE, 30, "invalid result of lie"),
    ],
)
async def test_request_that_fails_states_why(
    method: Method[ReloadParams, NoResult], timeout_s: float, reason: str, script: Script
) -> None:
    script(WORKER)
    worker = await started()
    await worker.wait_until_serving()
    with pytest.raises(WorkerFailedError, match=reason):
        await worker.request(method, PARAMS, timeout_s)
    await ended(worker)


async def test_request_to_a_process_that_has_ended_fails_at_once(script: Script) -> None:
    script("")
    worker = await started()
    assert await worker.exit_code == 0
    assert not await worker.wait_until_serving()
    with pytest.raises(WorkerEndedError):
        await worker.request(ECHO, PARAMS, 30)


@pytest.mark.parametrize(
    "line",
    [
        "what?",
        "[]",
        '{"jsonrpc": "2.0", "method": "serving", "params": {}}',
        '{"jsonrpc": "2.0", "method": "explode"}',
        '{"jsonrpc": "2.0", "method": "explode", "id": 1}',
        '{"jsonrpc": "2.0", "result": {}, "id": 99}',
        '{"jsonrpc": "2.0", "error": {"code": -32700, "message": "not a line of JSON"}, "id": null}',
    ],
)
async def test_worker_that_sends_an_invalid_message_is_not_killed(line: str, script: Script) -> None:
    script(WORKER.replace("sys.stdin.readline()", f"sys.stdin.readline(); print({line!r}, flush=True)"))
    worker = await started()
    assert await worker.wait_until_serving()
    assert await worker.request(ECHO, PARAMS, 30) == PARAMS
    assert not worker.ended
    await ended(worker)


async def test_line_that_is_too_long_is_skipped(
    script: Script, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ipc, "MAX_LINE_BYTES", 1000)
    script(WORKER.replace("sys.stdin.readline()", "sys.stdin.readline(); print('x' * 3000, flush=True)"))
    worker = await started()
    assert await worker.wait_until_serving()
    assert "sent an invalid message" in caplog.text
    await ended(worker)


async def test_invalid_messages_are_answered_with_an_error(script: Script, tmp_path: Path) -> None:
    answers = tmp_path / "answers"
    script(
        f"""
        import sys
        sys.stdin.readline()
        for line in ["what?", '{{"jsonrpc": "2.0", "method": "explode", "id": 1}}']:
            print(line, flush=True)
            open({str(answers)!r}, "a").write(sys.stdin.readline())
        """
    )
    worker = await started()
    assert await worker.exit_code == 0
    codes = []
    for line in answers.read_bytes().splitlines():
        response = ipc.decode(line)
        assert isinstance(response, ipc.Response)
        assert response.error
        codes.append((response.id, response.error.code))
    assert codes == [(None, ipc.PARSE_ERROR), (1, ipc.METHOD_NOT_FOUND)]
