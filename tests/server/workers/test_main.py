"""The worker's end of the connection to its supervisor."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from polyhead_server.candidate.parameters import CandidateBundle
from polyhead_server.errors import NotReadyError, ReloadError
from polyhead_server.json_dataclasses import Values
from polyhead_server.lifecycle.operations import Operations
from polyhead_server.process_reports import DriftCounts, HeadIdentity, ModelIdentity, ReloadResult
from polyhead_server.workers import ipc
from polyhead_server.workers.ipc import NoParams, PromoteParams, ReloadParams
from polyhead_server.workers.main import SupervisorConnection

IDENTITY = ModelIdentity("space", (HeadIdentity("topic", "softmax", ("a", "b")),))


class FakeOperations:
    """Operations of which ``stats`` and ``promote`` fail, and ``reload`` waits for ``gate`` unless it is forced."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()

    async def reload(self, *, force: bool) -> ReloadResult:
        if not force:
            await self.gate.wait()
            raise ReloadError("it is damaged")
        return ReloadResult(7, "m", {}, IDENTITY)

    async def promote(self, candidate: CandidateBundle, *, force: bool) -> None:
        raise RuntimeError(f"a defect with {candidate.path}, {force}")

    async def drain(self) -> None:
        pass

    async def stats(self) -> None:
        raise NotReadyError

    async def drift(self) -> DriftCounts:
        return DriftCounts("m has no reference")


class Connection:
    """Both directions of a connection."""

    def __init__(self) -> None:
        self.operations = FakeOperations()
        self._output = io.BytesIO()
        self._worker = SupervisorConnection(self._output)
        self._reader = asyncio.StreamReader(limit=1000)
        self._reading = asyncio.create_task(self._worker.read_requests(self._reader))

    def announce(self) -> None:
        self._worker.announce_serving(IDENTITY, cast(Operations, self.operations))

    def send(self, line: bytes) -> None:
        self._reader.feed_data(line)

    async def end(self) -> list[Values]:
        """Ends the supervisor; returns all messages that the worker sent."""
        self._reader.feed_eof()
        await self._reading
        self.operations.gate.set()
        await asyncio.gather(*self._worker.in_progress)
        return [json.loads(line) for line in self._output.getvalue().splitlines()]


@pytest.fixture
async def connection() -> Connection:
    return Connection()


def result(request_id: int, **values: Any) -> Values:
    return {"jsonrpc": "2.0", "result": values, "id": request_id}


def errors(messages: list[Values]) -> list[tuple[int | None, int]]:
    """Id and code of each error."""
    return [(one["id"], one["error"]["code"]) for one in messages if "error" in one]


async def test_worker_announces_the_identity_of_its_model(connection: Connection) -> None:
    connection.announce()
    (message,) = await connection.end()
    request = ipc.decode(json.dumps(message).encode())
    assert isinstance(request, ipc.Request)
    assert ipc.SERVING.params_of(request) == IDENTITY


async def test_worker_runs_the_requested_operations(connection: Connection) -> None:
    connection.announce()
    connection.send(ipc.encode_request(ipc.RELOAD, ReloadParams(force=True), 3))
    connection.send(ipc.encode_request(ipc.DRAIN, NoParams(), 4))
    connection.send(ipc.encode_request(ipc.DRIFT, NoParams(), 5))
    _, *answers = await connection.end()
    (reloaded, drained, drift) = sorted(answers, key=lambda one: int(one["id"]))
    assert (reloaded["id"], reloaded["result"]["model_id"]) == (3, "m")
    assert drained == result(4)
    assert drift["result"]["problem"] == "m has no reference"


async def test_operation_that_takes_long_does_not_delay_the_next(connection: Connection) -> None:
    connection.announce()
    connection.send(ipc.encode_request(ipc.RELOAD, ReloadParams(force=False), 3))
    connection.send(ipc.encode_request(ipc.DRAIN, NoParams(), 4))
    _, first, second = await connection.end()
    assert (first["id"], second["id"]) == (4, 3)


async def test_operation_that_fails_is_answered_with_its_message(connection: Connection) -> None:
    connection.announce()
    connection.send(ipc.encode_request(ipc.STATS, NoParams(), 3))
    _, answer = await connection.end()
    assert answer == {
        "jsonrpc": "2.0",
        "error": {"code": ipc.OPERATION_FAILED, "message": "the model is being loaded"},
        "id": 3,
    }


async def test_operation_with_a_defect_is_answered_and_its_details_are_logged(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    connection.announce()
    connection.send(ipc.encode_request(ipc.PROMOTE, PromoteParams(CandidateBundle(Path("b")), force=False), 3))
    _, answer = await connection.end()
    assert answer["error"]["message"].startswith("internal error, incident ")
    assert "a defect with b, False" in caplog.text


async def test_request_before_the_worker_serves_is_refused(connection: Connection) -> None:
    connection.send(ipc.encode_request(ipc.DRAIN, NoParams(), 3))
    assert errors(await connection.end()) == [(3, ipc.OPERATION_FAILED)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"what?\n", (None, -32700)),
        (b"x" * 2000 + b"\n", (None, -32700)),
        (b"[]\n", (None, -32600)),
        (b'{"jsonrpc": "2.0", "method": "explode", "params": {}, "id": 3}\n', (3, -32601)),
        (b'{"jsonrpc": "2.0", "method": "reload", "params": {"force": "yes"}, "id": 3}\n', (3, -32602)),
    ],
)
async def test_invalid_message_is_answered_with_an_error_and_the_worker_continues(
    line: bytes, expected: tuple[int | None, int], connection: Connection
) -> None:
    connection.announce()
    connection.send(line)
    await asyncio.sleep(0)
    connection.send(ipc.encode_request(ipc.DRAIN, NoParams(), 4))
    messages = await connection.end()
    assert errors(messages) == [expected]
    assert result(4) in messages


async def test_notifications_and_errors_are_not_answered(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    connection.announce()
    connection.send(b'{"jsonrpc": "2.0", "method": "explode"}\n')
    connection.send(ipc.encode_notification(ipc.DRAIN, NoParams()))
    connection.send(ipc.encode_error(ipc.RpcError(ipc.PARSE_ERROR, "not a line of JSON")))
    assert [one["method"] for one in await connection.end()] == ["serving"]
    assert "the supervisor rejected a message: not a line of JSON" in caplog.text


def test_prometheus_client_is_not_imported_before_the_worker_is_configured() -> None:
    """It reads the folder in which all workers count from the environment when it is imported."""
    program = "import sys, polyhead_server.workers.main; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
