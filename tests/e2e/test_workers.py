"""Several worker processes on one port: who answers, and what happens when a process dies."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import inference_service_pb2_grpc, item_pb2
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import BIN

from .conftest import START_S, Hang, Server, Start, free_port, put, wait_until

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two workers want two cores"),
]


@pytest.fixture
def server(start: Start, demo_bundle: Path) -> Server:
    server = start(demo_bundle, "--workers", "2", "--metrics-listen", f"127.0.0.1:{free_port()}")
    wait_until(lambda: serving(server) == 2, "two workers serve")
    return server


def serving(server: Server) -> int:
    """How many workers have come up since the start."""
    return server.log.read_text().count(" serves on cores ")


def workers_of(server: Server) -> list[int]:
    pid = server.process.pid
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def answered(server: Server) -> bool:
    """Whether a call over a connection of its own is answered."""
    request = pb2.AnalyzeRequest(items=[item_pb2.Item(text="one text")])
    with grpc.insecure_channel(server.target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        (answer,) = stub.Analyze(request, timeout=START_S, wait_for_ready=True).answers
    return answer.WhichOneof("outcome") == "result"


def used_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def items_counted(server: Server, listen: str) -> float:
    with urllib.request.urlopen(f"http://{listen}/metrics") as page:
        families = {family.name: family for family in text_string_to_metric_families(page.read().decode())}
    return sum(sample.value for sample in families["polyhead_items"].samples)


def test_connections_are_dealt_out_and_counted_together(start: Start, demo_bundle: Path) -> None:
    listen = f"127.0.0.1:{free_port()}"
    server = start(demo_bundle, "--workers", "2", "--metrics-listen", listen)
    wait_until(lambda: serving(server) == 2, "two workers serve")
    before = [used_ticks(pid) for pid in workers_of(server)]
    # A worker that gets none of so many connections has an odds of 2 ** -40.
    assert all(answered(server) for _ in range(40))
    assert items_counted(server, listen) == 40
    assert all(used_ticks(pid) > ticks for pid, ticks in zip(workers_of(server), before, strict=True))
    cores = [os.sched_getaffinity(pid) for pid in workers_of(server)]
    assert not cores[0] & cores[1]
    assert "libtorch" not in Path(f"/proc/{workers_of(server)[0]}/maps").read_text()
    assert "grpc" not in Path(f"/proc/{server.process.pid}/maps").read_text()


def test_worker_that_was_killed_is_started_again(server: Server) -> None:
    killed, other = workers_of(server)
    os.kill(killed, signal.SIGKILL)
    assert answered(server)
    wait_until(lambda: serving(server) == 3, "the killed worker serves again")
    assert killed not in workers_of(server)
    assert other in workers_of(server)
    assert answered(server)
    assert "died with code -9" in server.log.read_text()


def test_signal_ends_all(server: Server) -> None:
    pids = workers_of(server)
    assert server.stop() == 0
    assert not any(map(alive, pids))


def test_workers_end_with_their_supervisor(server: Server) -> None:
    pids = workers_of(server)
    server.stop(signal.SIGKILL)
    wait_until(lambda: not any(map(alive, pids)), "the workers end")
    assert server.log.read_text().count("lifecycle: stopped") == 2


def test_second_server_on_the_port_is_refused(server: Server, start: Start, demo_bundle: Path) -> None:
    port = server.target.partition(":")[2]
    for flags in ((), ("--workers", "2")):
        for host in ("127.0.0.1", "localhost", "0.0.0.0", "[::]"):  # noqa: S104 - it is refused
            second = start(demo_bundle, *flags, target=f"{host}:{port}")
            assert second.process.wait(START_S) == 2
            assert f"cannot listen on {second.target}" in second.log.read_text()


def test_bundle_that_no_worker_can_serve_ends_the_server(start: Start, demo_bundle: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(demo_bundle, tmp_path / "bundle")
    (damaged / "tokenizer.json").write_text("{}")
    server = start(damaged, "--workers", "2")
    assert server.process.wait(START_S) == 2
    assert "tokenizer.json" in server.log.read_text()


def test_bundle_that_was_damaged_meanwhile_ends_none_that_serves(
    start: Start, demo_bundle: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(demo_bundle, tmp_path / "bundle")
    server = start(bundle, "--workers", "2")
    wait_until(lambda: serving(server) == 2, "two workers serve")
    whole = (bundle / "tokenizer.json").read_bytes()
    (bundle / "tokenizer.json").write_text("{}")
    os.kill(workers_of(server)[0], signal.SIGKILL)
    wait_until(lambda: "died with code 2" in server.log.read_text(), "the new worker refuses the bundle")
    assert answered(server)
    (bundle / "tokenizer.json").write_bytes(whole)
    wait_until(lambda: serving(server) == 3, "it serves once the bundle is whole again")
    assert server.stop() == 0


def test_all_that_serve_are_told_once(server: Server) -> None:
    assert server.log.read_text().count(f"all 2 workers serve on {server.target}") == 1


class Load:
    """Streams and unary calls of plain stubs, which send nothing twice, each over a connection of its own.

    Attributes:
        ends: How each call ended: OK, the reason that the server gave, or else the code.
        answers: Outcomes of all items that were answered.
    """

    def __init__(self, target: str) -> None:
        self.ends: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self._target = target
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(call,)) for call in [self._stream, self._unary] * 4]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(START_S)

    def wait_for(self, answers: int) -> None:
        wait_until(lambda: self.answers["result"] >= answers, f"{answers} answers")

    def _run(self, call: Callable[[Any], None]) -> None:
        with grpc.insecure_channel(self._target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
            while not self._stopping.is_set():
                try:
                    call(stub)
                    self.ends["OK"] += 1
                except grpc.RpcError as error:
                    self.ends[reason(error)] += 1
                    self._stopping.wait(0.05)

    def _unary(self, stub: Any) -> None:
        request = pb2.AnalyzeRequest(items=[item_pb2.Item(text=f"text {number}") for number in range(8)])
        self._count(stub.Analyze(request, timeout=START_S))

    def _stream(self, stub: Any) -> None:
        # Endless: it is the server that ends it.
        requests = (
            pb2.StreamAnalyzeRequest(items=[item_pb2.Item(item_id=str(number), text=f"text number {number}")])
            for number in itertools.takewhile(lambda _: not self._stopping.is_set(), itertools.count())
        )
        expected = itertools.count()
        for response in stub.StreamAnalyze(requests, timeout=START_S):
            # None is missing in between.
            assert all(answer.item_id == str(next(expected)) for answer in response.answers)
            self._count(response)

    def _count(self, response: Any) -> None:
        self.answers.update(answer.WhichOneof("outcome") for answer in response.answers)


def reason(error: Any) -> str:
    """The reason that the server gave, or else the code."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            info = error_details_pb2.ErrorInfo()
            (detail, *_) = status_pb2.Status.FromString(value).details
            assert detail.Unpack(info)
            return str(info.reason)
    return str(error.code().name)


# What a call may end with that was not accepted: refused by us, or by a connection that is no more.
NOT_ACCEPTED = {"OK", "DRAINING", "UNAVAILABLE", "CANCELLED"}


def test_draining_under_load_loses_nothing_that_was_accepted(server: Server) -> None:
    with Load(server.target) as load:
        load.wait_for(200)
        assert server.stop() == 0
    log = server.log.read_text()
    assert "cut off" not in log
    assert log.count("lifecycle: stopped") == 2
    assert set(load.answers) == {"result"}
    assert set(load.ends) <= NOT_ACCEPTED
    # Each of the four streams was ended by the server, after its last answer.
    assert load.ends["DRAINING"] >= 4


def test_killing_under_load_loses_what_was_accepted(server: Server) -> None:
    """The control: streams that are cut off do not end as those that are drained do."""
    with Load(server.target) as load:
        load.wait_for(200)
        for pid in workers_of(server):
            os.kill(pid, signal.SIGSTOP)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "stopping 2 workers" in server.log.read_text(), "the first signal is seen")
        assert server.stop() == 1
    assert load.ends["DRAINING"] == 0
    assert server.log.read_text().count("work was cut off") == 2


def test_worker_that_hangs_is_killed_after_its_grace(start: Start, demo_bundle: Path) -> None:
    server = start(demo_bundle, "--workers", "2", "--drain-s", "1")
    wait_until(lambda: serving(server) == 2, "two workers serve")
    stopped = workers_of(server)[0]
    os.kill(stopped, signal.SIGSTOP)
    assert server.stop() == 1
    log = server.log.read_text()
    assert f"process {stopped} does not end; it is killed" in log
    assert log.count("work was cut off") == 1


def test_engine_that_hangs_does_not_hold_up_the_end(start: Start, demo_bundle: Path, hang: Hang) -> None:
    server = start(demo_bundle, "--workers", "2", "--drain-s", "1", environment=hang.environment)
    wait_until(lambda: serving(server) == 2, "two workers serve")
    hang.begin()
    with Load(server.target):
        wait_until(hang.has_begun, "a pass hangs")
        assert server.stop() == 1
    assert "cut off: " in server.log.read_text()


def test_old_workers_hand_over_and_nobody_notices(start: Start, demo_bundle: Path) -> None:
    server = start(demo_bundle, "--workers", "2", "--max-worker-age-s", "4", "--drain-delay-s", "0.5")
    wait_until(lambda: serving(server) == 2, "two workers serve")
    before = set(workers_of(server))
    with Load(server.target) as load:
        load.wait_for(100)
        wait_until(lambda: not before & set(workers_of(server)), "both have handed over")
        load.wait_for(load.answers["result"] + 100)
    assert server.stop() == 0
    assert set(load.answers) == {"result"}
    assert set(load.ends) <= NOT_ACCEPTED
    assert "cut off" not in server.log.read_text()
    assert not any(map(alive, before))


def test_worker_of_another_embedding_space_does_not_start_beside_those_that_serve(
    start: Start, demo_bundle: Path, twin: Path, tmp_path: Path
) -> None:
    served = tmp_path / "served"
    put(demo_bundle, served)
    server = start(served, "--workers", "2")
    wait_until(lambda: serving(server) == 2, "two workers serve")
    put(twin, served)
    os.kill(workers_of(server)[0], signal.SIGKILL)
    wait_until(lambda: "died with code 2" in server.log.read_text(), "the new worker refuses the bundle")
    assert "0123456789abcdef is not that of the model that serves" in server.log.read_text()
    assert answered(server)
    put(demo_bundle, served)
    wait_until(lambda: serving(server) == 3, "it serves once the bundle is back")
    assert server.stop() == 0


def admin(server: Server, *arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    """Runs ``polyhead admin``; returns its exit code, the JSON lines of its standard output, and its standard error."""
    command = [str(BIN / "polyhead"), "admin", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_operator_reaches_all_workers(kind: str, start: Start, demo_bundle: Path, twin: Path, tmp_path: Path) -> None:
    served = tmp_path / "served"
    put(demo_bundle, served)
    target = f"unix:{tmp_path}/admin" if kind == "unix" else f"127.0.0.1:{free_port()}"
    server = start(served, "--workers", "2", "--admin-listen", target)
    wait_until(lambda: serving(server) == 2 and "admin service listens" in server.log.read_text(), "all serve")

    def spaces(*flags: str) -> list[str]:
        code, workers, error = admin(server, "reload", "--target", target, *flags)
        assert code == 0, error
        return [worker["fingerprints"]["embedding_space"] for worker in workers]

    code, stats, _ = admin(server, "stats", "--target", target)
    assert code == 0
    assert [one["process_id"] for one in stats] == workers_of(server)
    assert all(one["serving"] for one in stats)
    old = spaces()
    assert len(old) == 2
    put(twin, served)
    code, _, error = admin(server, "reload", "--target", target)
    assert code == 2
    assert "FAILED_PRECONDITION" in error
    assert spaces("--force") == ["0123456789abcdef"] * 2
    # One that starts again has to follow the new model now, and the admin service is still there.
    os.kill(workers_of(server)[0], signal.SIGKILL)
    wait_until(lambda: serving(server) == 3, "it serves again")
    wait_until(lambda: admin(server, "stats", "--target", target)[0] == 0, "the admin service is there again")
    assert spaces() == ["0123456789abcdef"] * 2
    assert admin(server, "drain", "--target", target)[0] == 0
    assert not any(one["serving"] for one in admin(server, "stats", "--target", target)[1])
    assert answered(server)
    # So is who comes later.
    os.kill(workers_of(server)[0], signal.SIGKILL)
    wait_until(lambda: serving(server) == 4, "it serves again")
    wait_until(lambda: admin(server, "stats", "--target", target)[0] == 0, "the admin service is there again")
    assert [one["serving"] for one in admin(server, "stats", "--target", target)[1]] == [False, False]
    assert server.stop() == 0
    assert not (tmp_path / "admin").exists()


def test_hangup_reloads_one_after_the_other(server: Server) -> None:
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "all 2 workers have reloaded" in server.log.read_text(), "all have reloaded")
    assert answered(server)


def test_reload_that_fails_stops_at_the_first(start: Start, demo_bundle: Path, twin: Path, tmp_path: Path) -> None:
    served = tmp_path / "served"
    put(demo_bundle, served)
    server = start(served, "--workers", "2")
    wait_until(lambda: serving(server) == 2, "two workers serve")
    put(twin, served)
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "reload stopped at worker 0" in server.log.read_text(), "the first worker refuses")
    assert server.log.read_text().count(": reloading") == 1
    assert answered(server)


def test_workers_follow_a_server_of_one_whose_connections_linger(start: Start, demo_bundle: Path) -> None:
    alone = start(demo_bundle)
    alone.wait_until_serving()
    channel = grpc.insecure_channel(alone.target)
    stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
    stub.Analyze(pb2.AnalyzeRequest(items=[item_pb2.Item(text="one text")]), timeout=START_S)
    # The server closes first, so that the connection lingers on its side.
    assert alone.stop() == 0
    channel.close()
    server = start(demo_bundle, "--workers", "2", target=alone.target)
    wait_until(lambda: serving(server) == 2, "two workers serve")
    assert answered(server)


def test_name_of_this_machine_is_listened_on(start: Start, demo_bundle: Path) -> None:
    server = start(demo_bundle, "--workers", "2", target=f"localhost:{free_port()}")
    wait_until(lambda: serving(server) == 2, "two workers serve")
    assert answered(server)
