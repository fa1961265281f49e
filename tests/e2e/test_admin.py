"""Operations on a running server, by ``polyhead admin`` and by signal."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from polyhead_client import Client

from bench.harness.servers import free_port
from tests.support.command import polyhead
from tests.support.polling import wait_until
from tests.support.worker_load import answered, serving, workers_of

from .conftest import START_S, Start, put

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two workers require two cores"),
]


def admin(*arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    """Runs ``polyhead admin``; returns its exit code, the JSON lines on standard output, and its standard error."""
    code, output, error = polyhead("admin", *arguments)
    return code, [json.loads(line) for line in output.splitlines()], error


def test_operator_reaches_all_workers(start: Start, demo_bundle: Path, twin: Path, tmp_path: Path) -> None:
    served = tmp_path / "served"
    put(demo_bundle, served)
    target = f"unix:{tmp_path}/admin"
    server = start(served, "--workers", "2", "--admin-listen", target)
    wait_until(lambda: serving(server) == 2, "two workers serve")

    def spaces(*flags: str) -> list[str]:
        code, workers, error = admin("reload", "--target", target, *flags)
        assert code == 0, error
        return [worker["fingerprints"]["embedding_space"] for worker in workers]

    code, stats, _ = admin("stats", "--target", target)
    assert code == 0
    assert [one["process_id"] for one in stats] == workers_of(server)
    assert all(one["serving"] for one in stats)
    old = spaces()
    assert len(old) == 2
    put(twin, served)
    code, _, error = admin("reload", "--target", target)
    assert code == 2
    assert "FAILED_PRECONDITION" in error
    assert spaces("--force") == ["0123456789abcdef"] * 2
    # A restarted worker must be compatible with the new model.
    os.kill(workers_of(server)[0], signal.SIGKILL)
    wait_until(lambda: serving(server) == 3, "the killed worker serves again")
    assert spaces() == ["0123456789abcdef"] * 2
    assert admin("drain", "--target", target)[0] == 0
    assert not any(one["serving"] for one in admin("stats", "--target", target)[1])
    assert answered(server)
    # A worker that starts later is drained too.
    os.kill(workers_of(server)[0], signal.SIGKILL)
    wait_until(lambda: serving(server) == 4, "the killed worker serves again")
    assert [one["serving"] for one in admin("stats", "--target", target)[1]] == [False, False]
    assert server.stop() == 0
    assert not (tmp_path / "admin").exists()


def test_hangup_reloads_all_workers_or_stops_at_the_first_that_refuses(
    start: Start, demo_bundle: Path, twin: Path, tmp_path: Path
) -> None:
    served = tmp_path / "served"
    put(demo_bundle, served)
    server = start(served, "--workers", "2")
    wait_until(lambda: serving(server) == 2, "two workers serve")
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "all 2 workers have reloaded" in server.log.read_text(), "all have reloaded")
    assert server.log.read_text().count(": reloading") == 2
    put(twin, served)
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "reload stopped at worker 0" in server.log.read_text(), "the first worker refuses")
    assert server.log.read_text().count(": reloading") == 3
    assert answered(server)


def test_single_process_reloads_on_hangup(start: Start, demo_bundle: Path, twin: Path, tmp_path: Path) -> None:
    served = tmp_path / "served"
    put(demo_bundle, served)
    server = start(served, "--admin-listen", f"unix:{tmp_path}/admin")
    server.wait_until_serving()
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "; closing " in server.log.read_text(), "the bundle is loaded again")
    put(twin, served)
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "not reloaded: " in server.log.read_text(), "the other bundle is refused")
    assert answered(server)
    code, (worker,), _ = admin("stats", "--target", f"unix:{tmp_path}/admin")
    assert (code, worker["process_id"], worker["items_total"]) == (0, server.process.pid, 1)
    assert admin("reload", "--force", "--target", f"unix:{tmp_path}/admin")[0] == 0
    with Client(server.target) as client:
        assert client.info().fingerprints.embedding_space == "0123456789abcdef"


# An import of onnxruntime that takes as long as a file exists.
_SLOW_IMPORT = """
import pathlib, sys, time

while pathlib.Path({file!r}).exists():
    time.sleep(0.01)
sys.path.remove({folder!r})
del sys.modules["onnxruntime"]
import onnxruntime
"""


def test_drain_before_the_model_is_ready_is_kept(start: Start, demo_bundle: Path, tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.touch()
    (tmp_path / "onnxruntime.py").write_text(_SLOW_IMPORT.format(file=str(slow), folder=str(tmp_path)))
    target = f"unix:{tmp_path}/admin"
    server = start(demo_bundle, "--admin-listen", target, environment={"PYTHONPATH": str(tmp_path)})
    wait_until(lambda: "admin service listens" in server.log.read_text(), "the admin service listens")
    assert admin("drain", "--target", target)[0] == 0
    slow.unlink()
    server.wait_until_serving()
    assert [one["serving"] for one in admin("stats", "--target", target)[1]] == [False]
    assert answered(server)
    assert server.stop() == 0


def test_admin_address_that_other_machines_can_reach_is_refused(start: Start, demo_bundle: Path) -> None:
    server = start(demo_bundle, "--admin-listen", f"0.0.0.0:{free_port()}")
    assert server.process.wait(START_S) == 2
    assert "--admin-listen" in server.log.read_text()
