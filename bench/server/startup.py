"""What a server costs before it answers, and while nobody asks: seconds from exec to SERVING, memory, CPU while idle.

Each server is started several times with a warm file cache; the health service is asked without pause. Idle CPU is
that of the process over ``--idle`` seconds, read from /proc, whose clock ticks 100 times a second.

    python bench/server/startup.py --bundle build/demo/bundle --output bench/results/start.json
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from polyhead_server.settings import usable_cores
from tqdm import tqdm

from bench.harness.servers import BIN, free_port

from .throughput import Figures, spread

WAYS: dict[str, tuple[str, ...]] = {
    "int8": ("--variant", "int8"),
    "fp32": ("--variant", "fp32"),
    "int8, passes of 256 tokens, not measured": ("--variant", "int8", "--max-batch-tokens", "256"),
    "PyTorch": ("--engine", "torch"),
}


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5, help="starts of each server (default: 5)")
    parser.add_argument("--idle", type=float, default=10.0, help="seconds without a call (default: 10)")
    parser.add_argument("--output", type=Path, help="file for the figures as JSON")
    arguments = parser.parse_args()
    found: dict[str, list[Figures]] = {way: [] for way in WAYS}
    with tqdm(total=(arguments.rounds + 1) * len(WAYS), unit="start") as bar:
        # The first round warms the file cache.
        for warm in [False] + [True] * arguments.rounds:
            for way, flags in WAYS.items():
                figures = start(arguments.bundle, flags, arguments.idle if warm else 0.0)
                if warm:
                    found[way].append(figures)
                bar.update()
    servers = {
        way: {figure: spread([one[figure] for one in rounds]) for figure in rounds[0]} for way, rounds in found.items()
    }
    print(f"{'server':<44}{'serving after s':>22}{'memory MB':>12}{'peak MB':>10}{'idle CPU %':>12}")
    for way, one in servers.items():
        serving = "{:.2f} [{:.2f}, {:.2f}]".format(*one["serving_after_s"])
        print(
            f"{way:<44}{serving:>22}{one['mb'][0]:>12.0f}{one['peak_mb'][0]:>10.0f}{one['idle_cpu_percent'][0]:>12.2f}"
        )
    if arguments.output:
        arguments.output.write_text(json.dumps(report(arguments, servers), indent=2) + "\n")


def start(bundle: Path, flags: Sequence[str], idle_s: float) -> Figures:
    """Starts a server and ends it."""
    target = f"127.0.0.1:{free_port()}"
    command = [str(BIN / "polyhead-serve"), str(bundle), "--listen", target, "--log-level", "warning", *flags]
    began = time.perf_counter()
    process = subprocess.Popen(command)
    try:
        while not serves(target):
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(command)} ended with code {process.returncode}")
        after = time.perf_counter() - began
        busy = cpu_s(process.pid)
        time.sleep(idle_s)
        idle = cpu_s(process.pid) - busy
        status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
        return {
            "serving_after_s": after,
            "start_cpu_s": busy,
            "idle_cpu_percent": 100 * idle / idle_s if idle_s else 0.0,
            "mb": kilobytes(status["VmRSS"]) / 1024,
            "peak_mb": kilobytes(status["VmHWM"]) / 1024,
        }
    finally:
        process.terminate()
        process.wait(60)


def serves(target: str) -> bool:
    """Asks once over a new connection."""
    with grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
        except grpc.RpcError:
            time.sleep(0.01)
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def cpu_s(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def kilobytes(value: str) -> float:
    """A value of /proc/PID/status, such as ``  188016 kB``."""
    return float(value.split(maxsplit=1)[0])


def report(arguments: argparse.Namespace, servers: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """The figures, with when and on what."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
        "rounds": arguments.rounds,
        "cores": usable_cores(),
        "versions": {name: importlib.metadata.version(name) for name in ("polyhead", "onnxruntime", "grpcio", "torch")},
        "servers": servers,
    }


if __name__ == "__main__":
    main()
