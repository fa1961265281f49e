"""``polyhead admin`` against a fake admin service."""

from __future__ import annotations

import json
import socketserver
import threading
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result
from google.protobuf.duration_pb2 import Duration
from polyhead.v1 import admin_service_pb2 as pb2
from polyhead.v1 import admin_service_pb2_grpc, item_pb2
from polyhead_client.cli.main import main


class FakeAdminService(admin_service_pb2_grpc.AdminServiceServicer):
    """Reloads only with ``force``."""

    drained = False
    metadata: dict[str, str]

    def Reload(self, request: pb2.ReloadRequest, context: Any) -> pb2.ReloadResponse:  # noqa: N802
        self.metadata = dict(context.invocation_metadata())
        if not request.force:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not reloaded: it is of another embedding space")
        heads = [item_pb2.HeadFingerprint(head="topic", fingerprint="t")]
        fingerprints = item_pb2.Fingerprints(embedding_space="e", heads=heads)
        return pb2.ReloadResponse(workers=[pb2.WorkerReload(process_id=7, model_id="m", fingerprints=fingerprints)])

    def Drain(self, _: pb2.DrainRequest, __: Any) -> pb2.DrainResponse:  # noqa: N802
        self.drained = True
        return pb2.DrainResponse()

    def GetStats(self, _: pb2.GetStatsRequest, context: Any) -> pb2.GetStatsResponse:  # noqa: N802
        self.metadata = dict(context.invocation_metadata())
        wait = Duration(seconds=1, nanos=500_000_000)
        one = pb2.WorkerStats(process_id=7, items_total=2**40, expected_wait=wait, item_errors_total={"OVERLOADED": 3})
        return pb2.GetStatsResponse(workers=[one, pb2.WorkerStats(process_id=8)])


@pytest.fixture
def service() -> FakeAdminService:
    return FakeAdminService()  # type: ignore[abstract]  # no other method is called


def admin(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["admin", *arguments])


def test_stats_are_one_json_line_per_worker(target: str) -> None:
    first, second = map(json.loads, admin("stats", "--target", target).stdout.splitlines())
    assert (first["process_id"], second["process_id"]) == (7, 8)
    assert (first["items_total"], first["expected_wait"], first["item_errors_total"]) == (2**40, 1.5, {"OVERLOADED": 3})
    assert second["items_total"] == 0


def test_reload_prints_the_new_model(target: str) -> None:
    done = admin("reload", "--force", "--target", target)
    assert json.loads(done.stdout) == {
        "process_id": 7,
        "model_id": "m",
        "fingerprints": {"embedding_space": "e", "heads": [{"head": "topic", "fingerprint": "t"}]},
        "model_name": "",
    }


def test_rejected_reload_prints_the_reason_on_one_line(target: str) -> None:
    done = admin("reload", "--target", target)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "another embedding space" in done.stderr


def test_drain_prints_nothing(target: str, service: FakeAdminService) -> None:
    done = admin("drain", "--target", target)
    assert (done.exit_code, done.output) == (0, "")
    assert service.drained


def test_target_is_read_from_the_environment(target: str) -> None:
    done = CliRunner().invoke(main, ["admin", "stats"], env={"POLYHEAD_ADMIN_TARGET": target})
    assert done.exit_code == 0


def test_unreachable_server_is_reported_with_a_hint(tmp_path: Path) -> None:
    done = admin("stats", "--target", f"unix:{tmp_path}/none")
    assert done.exit_code == 2
    assert "--admin-listen" in done.stderr


def test_key_never_goes_to_a_proxy(service: FakeAdminService, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("no_grpc_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("POLYHEAD_API_KEY", "secret")
    with Proxy() as proxy, futures.ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        admin_service_pb2_grpc.add_AdminServiceServicer_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        monkeypatch.setenv("http_proxy", proxy.address)
        # Control: a channel without our option uses the proxy.
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError):
            admin_service_pb2_grpc.AdminServiceStub(channel).GetStats(pb2.GetStatsRequest(), timeout=20)
        assert proxy.connections
        proxy.connections = 0
        done = admin("stats", "--target", f"127.0.0.1:{port}")
        server.stop(None).wait()
    assert (done.exit_code, proxy.connections) == (0, 0)


class Proxy(socketserver.ThreadingTCPServer):
    """Counts connections and rejects them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), socketserver.BaseRequestHandler)
        self.connections = 0
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def verify_request(self, *_: Any) -> bool:
        self.connections += 1
        return False

    def __exit__(self, *error: Any) -> None:
        self.shutdown()
        super().__exit__(*error)


@pytest.mark.parametrize(
    ("admin_target", "key", "reason"),
    [
        ("http://127.0.0.1:1", "k", "is a URL"),
        ("192.0.2.1:1", "k", "unencrypted"),
        ("127.0.0.1:1", "k\u00e9y", "ASCII"),
    ],
)
def test_invalid_target_or_key_is_not_blamed_on_the_server(
    monkeypatch: pytest.MonkeyPatch, admin_target: str, key: str, reason: str
) -> None:
    monkeypatch.setenv("POLYHEAD_API_KEY", key)
    result = admin("stats", "--target", admin_target)
    assert (result.exit_code, reason in result.stderr, "--admin-listen" in result.stderr) == (2, True, False)


@pytest.mark.parametrize(("flags", "name"), [((), None), (("--model", "tickets"), "tickets")])
def test_model_is_named_in_the_metadata(
    service: FakeAdminService, target: str, flags: tuple[str, ...], name: str | None
) -> None:
    for command in (("stats",), ("reload", "--force")):
        result = admin(*command, "--target", target, *flags)
        assert result.exit_code == 0
        assert service.metadata.get("x-polyhead-model") == name
