from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from polyhead.v1 import admin_service_pb2
from polyhead_server.process_reports import HeadIdentity, ModelIdentity, ReloadResult, WorkerStats
from polyhead_server.settings import Settings
from polyhead_server.workers import ipc
from polyhead_server.workers.ipc import Method, NoParams, NoResult, ReloadParams, Request, Response, RpcError

IDENTITY = ModelIdentity("space", (HeadIdentity("topic", "softmax", ("a", "b")),), {"query": "query: "})
SETTINGS = Settings(bundle=Path("a bundle"), threads=3, max_padding=0.5)
STATS = WorkerStats(
    process_id=7,
    model_id="m",
    serving=True,
    up_time=1.5,
    requests_running=1,
    queued_items=2,
    queued_tokens=3,
    expected_wait=0.25,
    items_total=4,
    tokens_total=5,
    padding_tokens_total=6,
    batches_total=7,
    compute_total=2.0,
    item_errors_total={"OVERLOADED": 8},
    compute_threads=1,
)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        (ipc.CONFIGURE, ipc.WorkerConfig(SETTINGS)),
        (ipc.CONFIGURE, ipc.WorkerConfig(SETTINGS, (1, 2), IDENTITY, drained=True, metrics_folder="folder")),
        (ipc.SERVING, IDENTITY),
        (ipc.RELOAD, ReloadParams(force=True)),
        (ipc.STATS, NoParams()),
    ],
)
def test_parameters_survive_encoding(method: Method[Any, Any], params: Any) -> None:
    request = ipc.decode(ipc.encode_request(method, params, 3))
    assert isinstance(request, Request)
    assert (request.method, request.id) == (method.name, 3)
    assert method.params_of(request) == params
    notification = ipc.decode(ipc.encode_notification(method, params))
    assert isinstance(notification, Request)
    assert notification.id is None


@pytest.mark.parametrize(
    ("method", "result"),
    [(ipc.RELOAD, ReloadResult(7, "m", {"topic": "t"}, IDENTITY)), (ipc.DRAIN, NoResult()), (ipc.STATS, STATS)],
)
def test_result_survives_encoding(method: Method[Any, Any], result: Any) -> None:
    response = ipc.decode(ipc.encode_result(result, 3))
    assert isinstance(response, Response)
    assert response.id == 3
    assert method.result_of(response) == result


def test_error_survives_encoding() -> None:
    response = ipc.decode(ipc.encode_error(RpcError(ipc.OPERATION_FAILED, "it is damaged", 3)))
    assert isinstance(response, Response)
    with pytest.raises(RpcError, match="it is damaged") as caught:
        ipc.RELOAD.result_of(response)
    assert (caught.value.code, caught.value.request_id) == (ipc.OPERATION_FAILED, 3)


def test_message_is_one_line_of_json_rpc() -> None:
    line = ipc.encode_error(RpcError(ipc.OPERATION_FAILED, "two\nlines", 3))
    assert line.count(b"\n") == 1
    assert json.loads(line) == {"jsonrpc": "2.0", "error": {"code": -32000, "message": "two\nlines"}, "id": 3}
    assert json.loads(ipc.encode_request(ipc.RELOAD, ReloadParams(force=False), 4)) == {
        "jsonrpc": "2.0",
        "method": "reload",
        "params": {"force": False},
        "id": 4,
    }


@pytest.mark.parametrize(
    ("line", "code", "request_id"),
    [
        (b"", -32700, None),
        (b"what?", -32700, None),
        (b"\xff", -32700, None),
        (b"[" * 100_000, -32700, None),
        (b"3", -32600, None),
        (b"[]", -32600, None),
        (b'{"method": "stats", "id": 5}', -32600, 5),
        (b'{"jsonrpc": "2.0", "method": 3, "id": 5}', -32600, 5),
        (b'{"jsonrpc": "2.0", "method": "stats", "id": "5"}', -32600, None),
        (b'{"jsonrpc": "2.0", "result": {}}', -32600, None),
        (b'{"jsonrpc": "2.0", "error": "no", "id": 5}', -32600, 5),
        (b'{"jsonrpc": "2.0", "method": "stats", "params": [1], "id": 5}', -32602, 5),
    ],
)
def test_invalid_line_has_the_error_code_of_json_rpc(line: bytes, code: int, request_id: int | None) -> None:
    with pytest.raises(RpcError) as caught:
        ipc.decode(line)
    assert (caught.value.code, caught.value.request_id) == (code, request_id)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        (ipc.RELOAD, {}),
        (ipc.RELOAD, {"force": "yes"}),
        (ipc.RELOAD, {"force": 1}),
        (ipc.RELOAD, {"force": True, "more": 1}),
        (ipc.STATS, {"more": 1}),
        (ipc.SERVING, {"embedding_space": "space", "heads": "topic"}),
        (ipc.SERVING, {"embedding_space": "space", "heads": [{"name": "topic"}]}),
        (ipc.CONFIGURE, {"settings": {"bundle": "x", "threads": -1}}),
        (ipc.CONFIGURE, {"settings": {"bundle": "x", "max_queue_s": 10**400}}),
    ],
)
def test_parameters_of_another_type_are_invalid(method: Method[Any, Any], params: dict[str, Any]) -> None:
    with pytest.raises(RpcError, match=f"invalid parameters of {method.name}") as caught:
        method.params_of(Request(method.name, params, 5))
    assert (caught.value.code, caught.value.request_id) == (-32602, 5)


def test_result_of_another_method_is_invalid() -> None:
    with pytest.raises(RpcError, match="invalid result of reload"):
        ipc.RELOAD.result_of(Response(5, {"process_id": 7}))


def test_worker_stats_have_the_fields_of_the_admin_service() -> None:
    fields = [field.name for field in admin_service_pb2.WorkerStats.DESCRIPTOR.fields]
    assert list(WorkerStats.__dataclass_fields__) == fields
