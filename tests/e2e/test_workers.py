"""Several worker processes on one port: which one answers, and what happens when a process dies."""

from __future__ import annotations

import os
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import inference_service_pb2_grpc, item_pb2

from bench.harness.servers import free_port
from tests.contract.test_metrics_docs import documented
from tests.support.polling import wait_until
from tests.support.worker_load import alive, answered, serving, workers_of

from .conftest import START_S, Server, Start, put
from .test_observability import TLS_ALONE, scrape, value

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two workers require two cores"),
]


def start_two(start: Start, bundle: Path, *flags: str, **options: Any) -> Server:
    """Starts a server with two workers and waits until both serve."""
    server = start(bundle, "--workers", "2", *flags, **options)
    wait_until(lambda: serving(server) == 2, "two workers serve")
    return server


def _has_logged(server: Server, text: str) -> bool:
    return text in server.log.read_text()


def _serve(server: Server, count: int) -> bool:
    return serving(server) == count


def used_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_connections_are_distributed_and_counted_together(start: Start, demo_bundle: Path) -> None:
    port = free_port()
    server = start_two(start, demo_bundle, "--metrics-listen", f"127.0.0.1:{port}")
    message = f"all 2 workers serve on {server.target}"
    wait_until(lambda: _has_logged(server, message), "both workers are logged")
    assert server.log.read_text().count(message) == 1
    before = [used_ticks(pid) for pid in workers_of(server)]
    # The probability that a worker gets none of 40 connections is 2 ** -39.
    assert all(answered(server) for _ in range(40))
    assert all(used_ticks(pid) > ticks for pid, ticks in zip(workers_of(server), before, strict=True))
    cores = [os.sched_getaffinity(pid) for pid in workers_of(server)]
    assert not cores[0] & cores[1]
    assert "libtorch" not in Path(f"/proc/{workers_of(server)[0]}/maps").read_text()
    assert "grpc" not in Path(f"/proc/{server.process.pid}/maps").read_text()

    families = scrape(port)
    # Without the process's own, which would be those of the supervisor.
    names = {name.removesuffix("_total") for name in documented() - TLS_ALONE if name.startswith("polyhead_")}
    assert set(families) == names
    assert value(families, "polyhead_requests_total", method="Analyze", code="OK") == 40
    assert value(families, "polyhead_items_total") == value(families, "polyhead_request_bytes_count") == 40
    assert value(families, "polyhead_compute_threads") == len(os.sched_getaffinity(0))
    assert value(families, "polyhead_runtime_info", engine="onnx") == 1
    assert value(families, "polyhead_build_info") == 1


def test_killed_worker_is_restarted_and_a_signal_stops_all(start: Start, demo_bundle: Path) -> None:
    server = start_two(start, demo_bundle, "--metrics-listen", f"127.0.0.1:{free_port()}")
    for flags, host in (((), "127.0.0.1"), (("--workers", "2"), "localhost")):
        # The port is that of this server alone.
        second = start(demo_bundle, *flags, target=f"{host}:{server.target.partition(':')[2]}")
        assert second.process.wait(START_S) == 2
        assert f"cannot listen on {second.target}" in second.log.read_text()
    killed, other = workers_of(server)
    os.kill(killed, signal.SIGKILL)
    assert answered(server)
    wait_until(lambda: serving(server) == 3, "the killed worker serves again")
    assert killed not in workers_of(server)
    assert other in workers_of(server)
    assert answered(server)
    assert "died with code -9" in server.log.read_text()
    pids = workers_of(server)
    assert server.stop() == 0
    assert not any(map(alive, pids))


def test_workers_end_with_their_supervisor(start: Start, demo_bundle: Path, tmp_path: Path) -> None:
    metrics = ("--metrics-listen", f"127.0.0.1:{free_port()}")
    server = start_two(start, demo_bundle, *metrics, environment={"TMPDIR": str(tmp_path)})
    assert list(tmp_path.glob("polyhead-metrics-*/counter_*.db"))
    pids = workers_of(server)
    server.stop(signal.SIGKILL)
    wait_until(lambda: not any(map(alive, pids)), "the workers end")
    # The files in which they counted are removed.
    assert not list(tmp_path.glob("polyhead-metrics-*"))
    assert server.log.read_text().count("lifecycle.server: stopped") == 2


def test_bundle_refused_by_a_restarted_worker_does_not_end_workers_that_serve(
    start: Start, demo_bundle: Path, twin: Path, tmp_path: Path
) -> None:
    damaged = shutil.copytree(demo_bundle, tmp_path / "bundle")
    (damaged / "tokenizer.json").write_text("{}")
    served = tmp_path / "served"
    put(demo_bundle, served)
    server = start_two(start, served)
    another_space = "0123456789abcdef differs from that of the serving model"
    for number, (refused, reason) in enumerate([(damaged, "tokenizer.json"), (twin, another_space)]):
        put(refused, served)
        os.kill(workers_of(server)[0], signal.SIGKILL)
        wait_until(partial(_has_logged, server, reason), "the new worker refuses the bundle")
        assert answered(server)
        put(demo_bundle, served)
        wait_until(partial(_serve, server, 3 + number), "it serves once the bundle is back")
    assert "died with code 2" in server.log.read_text()
    assert server.stop() == 0


def test_workers_listen_on_a_host_name_and_a_port_with_lingering_connections(start: Start, demo_bundle: Path) -> None:
    single = start(demo_bundle)
    single.wait_until_serving()
    channel = grpc.insecure_channel(single.target)
    stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
    stub.Analyze(pb2.AnalyzeRequest(items=[item_pb2.Item(text="one text")]), timeout=START_S)
    # The server closes first, so that the connection lingers on its side.
    assert single.stop() == 0
    channel.close()
    assert answered(start_two(start, demo_bundle, target=single.target.replace("127.0.0.1", "localhost")))
