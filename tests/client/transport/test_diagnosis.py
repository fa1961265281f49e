"""Failed connections: each cause is named, with its fix, by both clients and the command."""

from __future__ import annotations

import contextlib
import http.server
import os
import re
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from polyhead_client import DeadlineExceededError, InvalidRequestError, PolyheadError, Tls, UnavailableError
from polyhead_client.cli.main import main
from polyhead_client.transport import diagnosis
from polyhead_client.transport.target import parse

from tests.client.test_security import Pair, pair, secured
from tests.support.fake_server import FakeServicer, serve_fake
from tests.support.sources import documentation_page, source_text

SERVICE = "polyhead.v1.InferenceService"
CALLS: list[Callable[[Any], Any]] = [
    lambda client: client.info(),
    lambda client: client.analyze(["text"]),
    lambda client: list(client.stream(["text"])),
]


def failure(connect: Any, target: str, call: Callable[[Any], Any] = CALLS[0], **options: Any) -> PolyheadError:
    client = connect(target, max_attempts=1, **options)
    with pytest.raises(PolyheadError) as caught:
        call(client)
    return caught.value


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take longer to answer a probe than a user would wait."""
    monkeypatch.setattr(diagnosis, "_TIMEOUT_S", 10.0)
    monkeypatch.setattr(diagnosis, "_TOTAL_TIMEOUT_S", 20.0)


@pytest.fixture
def own(tmp_path: Path) -> Pair:
    return pair(tmp_path, "localhost")


@pytest.fixture
def other(tmp_path: Path) -> Pair:
    return pair(tmp_path, "model.example")


@contextlib.contextmanager
def listening(handler: type[socketserver.BaseRequestHandler]) -> Iterator[str]:
    """Serves TCP connections on a free loopback port; yields its address."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


class Quiet(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


class Silent(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while self.request.recv(1024):
            pass


class Closing(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.recv(1)


class Ssh(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")


def test_certificate_for_another_name_is_named_with_the_option(connect: Any, other: Pair) -> None:
    with secured(other) as servicer:
        for host in ("127.0.0.1", "localhost"):
            target = servicer.target.replace("127.0.0.1", host)
            error = failure(connect, target, tls=Tls(other.certificate))
            assert (type(error), error.reason) == (UnavailableError, "CERTIFICATE_NAME_MISMATCH")
            assert f"is for model.example, not for '{host}'" in error.message
            assert "server_name='model.example'" in error.message
            assert "--server-name model.example" in error.message
        expected = Tls(other.certificate, server_name="model.example")
        connect(servicer.target.replace("127.0.0.1", "localhost"), tls=expected).info()  # control


def test_common_name_is_named_if_the_certificate_has_no_other(connect: Any, tmp_path: Path) -> None:
    own = pair(tmp_path, "model.example", alternative_names=False)
    with secured(own) as servicer:
        error = failure(connect, servicer.target, tls=Tls(own.certificate))
        assert "is for model.example, not for '127.0.0.1'" in error.message
        connect(servicer.target, tls=Tls(own.certificate, server_name="model.example")).info()


def test_command_names_the_certificate_mismatch_in_one_line(other: Pair) -> None:
    with secured(other) as servicer:
        target = servicer.target.replace("127.0.0.1", "localhost")
        result = CliRunner().invoke(main, ["info", "--target", target, "--ca", str(other.certificate)])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "--server-name model.example" in result.stderr
    assert "refused" not in result.stderr


def test_certificate_of_an_unknown_authority_is_named(connect: Any, own: Pair, other: Pair) -> None:
    with secured(own) as servicer:
        for tls, roots in ((Tls(other.certificate), str(other.certificate)), (Tls(), "the default roots")):
            error = failure(connect, servicer.target, tls=tls)
            assert error.reason == "CERTIFICATE_NOT_TRUSTED"
            assert f"not signed by ca_file {roots}" in error.message or f"not signed by {roots}" in error.message


@pytest.mark.parametrize(("days", "state"), [(-1, "has expired"), (2, "is not valid yet")])
def test_certificate_outside_of_its_time_is_named(connect: Any, tmp_path: Path, days: int, state: str) -> None:
    own = pair(tmp_path, "localhost", days=days)
    with secured(own) as servicer:
        error = failure(connect, servicer.target, tls=Tls(own.certificate))
    assert error.reason == "CERTIFICATE_EXPIRED"
    assert state in error.message


def test_missing_client_certificate_is_named(connect: Any, own: Pair, other: Pair) -> None:
    with secured(own, client=other) as servicer:
        for tls in (Tls(own.certificate), Tls(own.certificate, own.certificate, own.key)):
            error = failure(connect, servicer.target, tls=tls)
            assert error.reason == "CLIENT_CERTIFICATE_REJECTED", error
            assert "certificate_file=" in error.message
        connect(servicer.target, tls=Tls(own.certificate, other.certificate, other.key)).info()  # control


def test_tls_on_one_side_only_is_named(connect: Any, own: Pair) -> None:
    with serve_fake() as plain, secured(own) as encrypted:
        error = failure(connect, plain.target, tls=Tls(own.certificate))
        assert (error.reason, "does not use TLS" in error.message) == ("TLS_NOT_SUPPORTED", True)
        error = failure(connect, encrypted.target)
        assert (error.reason, "requires TLS: pass tls=" in error.message) == ("TLS_REQUIRED", True)


@pytest.mark.parametrize("call", CALLS)
def test_every_call_to_a_server_that_is_not_serving_names_it(
    connect: Any, servicer: FakeServicer, call: Callable[[Any], Any]
) -> None:
    servicer.health.set(SERVICE, health_pb2.HealthCheckResponse.NOT_SERVING)
    error = failure(connect, servicer.target, call)
    assert (type(error), error.reason) == (UnavailableError, "NOT_SERVING")
    assert "loading its model or draining" in error.message


def test_deadline_of_a_call_that_waits_names_what_it_waited_for(
    connect: Any, servicer: FakeServicer, monkeypatch: pytest.MonkeyPatch
) -> None:
    servicer.health.set(SERVICE, health_pb2.HealthCheckResponse.NOT_SERVING)
    client = connect(servicer.target, wait_for_ready=True)
    with pytest.raises(DeadlineExceededError, match="loading its model or draining"):
        client.analyze(["text"], deadline_s=2)
    monkeypatch.setattr(diagnosis, "_TIMEOUT_S", 1.0)
    with connect_silent() as target, pytest.raises(DeadlineExceededError, match="no answer from"):
        connect(target).analyze(["text"], deadline_s=0.3)


@contextlib.contextmanager
def connect_silent() -> Iterator[str]:
    with listening(Silent) as target:
        yield target


def test_deadline_of_a_slow_call_stays_a_deadline(connect: Any, servicer: FakeServicer) -> None:
    servicer.gate.clear()
    with pytest.raises(DeadlineExceededError) as caught:
        connect(servicer.target).analyze(["text"], deadline_s=0.3)
    assert caught.value.reason == ""


@pytest.mark.parametrize("tls", [None, Tls()])
def test_http_server_such_as_the_metrics_port_is_named(connect: Any, tls: Tls | None) -> None:
    with listening(Quiet) as target:
        error = failure(connect, target, tls=tls)
    assert (error.reason, "speaks HTTP/1, not gRPC" in error.message) == ("NOT_GRPC", True)
    assert "--metrics-listen" in error.message


@pytest.mark.parametrize("handler", [Closing, Ssh])
def test_other_protocol_is_named(connect: Any, handler: type[socketserver.BaseRequestHandler]) -> None:
    with listening(handler) as target:
        assert "does not speak gRPC" in failure(connect, target).message


def test_gRPC_server_without_the_service_is_named(connect: Any) -> None:  # noqa: N802
    with futures.ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        error = failure(connect, f"127.0.0.1:{port}")  # like the admin service, without a health service
        server.stop(None).wait()
    assert (type(error), error.reason) == (InvalidRequestError, "WRONG_SERVICE")
    assert "polyhead-serve --listen" in error.message


def test_gRPC_server_with_the_health_of_another_service_is_named(connect: Any) -> None:  # noqa: N802
    with futures.ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        error = failure(connect, f"127.0.0.1:{port}")
        server.stop(None).wait()
    assert error.reason == "WRONG_SERVICE"


@pytest.mark.parametrize("command", [["admin", "stats"], ["admin", "drain"], ["top", "--once"]])
def test_admin_command_at_the_inference_port_is_told_so(servicer: FakeServicer, command: list[str]) -> None:
    result = CliRunner().invoke(main, [*command, "--target", servicer.target])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "has no polyhead.v1.AdminService: use the address of polyhead-serve --admin-listen" in result.stderr
    assert result.stderr.count("\n") == 1


def test_nobody_at_the_target_is_named_with_every_address(connect: Any, tmp_path: Path) -> None:
    error = failure(connect, "ipv4:127.0.0.1:1,127.0.0.2:1")
    assert error.reason == "CONNECTION_REFUSED"
    assert "127.0.0.1:1: Connection refused; 127.0.0.2:1: Connection refused" in error.message
    error = failure(connect, f"unix:{tmp_path}/missing.sock")
    assert (error.reason, "No such file" in error.message) == ("CONNECTION_REFUSED", True)


def test_unknown_host_is_named(connect: Any) -> None:
    error = failure(connect, "no-such-host.invalid:50051")
    assert (error.reason, "'no-such-host.invalid'" in error.message) == ("NAME_NOT_RESOLVED", True)


@pytest.mark.parametrize("blocked", ["name server", "server"])
def test_diagnosis_ends_although_nobody_answers(monkeypatch: pytest.MonkeyPatch, blocked: str) -> None:
    released = threading.Event()
    calls: list[str] = []

    def block(host: str, *_: Any, **__: Any) -> Any:
        calls.append(host)
        released.wait(10)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    def probe(_: int, address: Any, *__: Any) -> None:
        calls.append(address)
        released.wait(10)

    monkeypatch.setattr(diagnosis, "_TOTAL_TIMEOUT_S", 0.05)
    if blocked == "server":
        monkeypatch.setattr(diagnosis, "_probe", probe)
    else:
        monkeypatch.setattr(socket, "getaddrinfo", block)
    target = parse("ipv4:" + ",".join(f"127.0.0.{number}:1" for number in range(1, 9)))
    assert diagnosis.connection_problem(target, None, check_health=True) is None
    assert not released.is_set()
    threads = [thread for thread in threading.enumerate() if thread.name == "polyhead-diagnosis"]
    released.set()
    for thread in threads:
        thread.join(20)
    assert (len(threads), len(calls)) == (1, 1)


def test_second_address_is_used_if_nobody_listens_at_the_first(connect: Any, own: Pair) -> None:
    """As with localhost, which may be ::1 first."""
    with secured(own) as servicer:
        port = servicer.target.rpartition(":")[2]
        error = failure(connect, f"ipv4:127.0.0.1:1,127.0.0.1:{port}")
    assert error.reason == "TLS_REQUIRED"


def test_server_s_own_reason_is_kept(connect: Any, servicer: FakeServicer) -> None:
    servicer.unary_failures = [grpc.StatusCode.UNAVAILABLE]
    error = failure(connect, servicer.target)
    assert (error.reason, error.message) == ("REQUESTED", "requested failure")


def test_target_behind_a_proxy_is_not_connected_to_directly(connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("looked up"))
    assert failure(connect, "model.invalid:1").reason == ""


@pytest.mark.parametrize(
    ("content", "problem"),
    [("", "contains no certificate"), ("nonsense", "contains no certificate"), (None, "cannot read")],
)
def test_unusable_ca_file_is_named_at_construction(
    connect: Any, tmp_path: Path, content: str | None, problem: str
) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InvalidRequestError, match=f"ca_file: .*{problem}|ca_file: {problem}"):
        connect("127.0.0.1:1", tls=Tls(file))


def test_key_of_another_certificate_is_named_at_construction(connect: Any, own: Pair, other: Pair) -> None:
    with pytest.raises(InvalidRequestError, match=r"model\.example\.key is not the key of .*localhost\.pem"):
        connect("127.0.0.1:1", tls=Tls(None, own.certificate, other.key))
    with pytest.raises(InvalidRequestError, match="are not a certificate and its key"):
        connect("127.0.0.1:1", tls=Tls(None, own.key, own.key))


def test_command_prints_its_error_alone_although_grpc_logs(own: Pair) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("GRPC_VERBOSITY", None)

    def stderr_of(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
        return done.stderr

    with serve_fake() as servicer:
        command = ["-m", "polyhead_client", "info", "--target", servicer.target, "--ca", str(own.certificate)]
        alone = stderr_of(*command)
        assert alone.startswith("polyhead: UNAVAILABLE")
        assert alone.count("\n") == 1
        # Control: the user's own setting is kept. Some versions of grpcio, such as 1.78, log nothing at any setting.
        environment["GRPC_VERBOSITY"] = "INFO"
        log = stderr_of("-c", "import grpc; grpc.insecure_channel('127.0.0.1:1')")
        assert (stderr_of(*command) != alone) == bool(log)


def test_reasons_of_the_client_are_documented() -> None:
    page = documentation_page("| `CERTIFICATE_NAME_MISMATCH` |").read_text()
    text = source_text("client/polyhead_client")
    used = set(re.findall(r"_Problem\(\s*\"([A-Z0-9_]+)\"", text))
    used |= set(re.findall(r"Error\(\s*\"[A-Z_]+\",[^()]*\"([A-Z0-9_]{4,})\"[,)]", text))
    documented = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", page))
    assert {"TLS_REQUIRED", "INVALID_TARGET", "UNKNOWN_HEAD", "OTHER_EVENT_LOOP"} <= used
    assert used <= documented, used - documented
