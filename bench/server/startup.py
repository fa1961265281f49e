"""Startup time, memory and idle CPU of the server.

    python -m bench.server.startup --bundle build/demo/bundle --output bench/results/startup.json

Each configuration is started several times with a warm file cache; startup_s is the time from exec to SERVING, by
polling the health service without pause. Idle CPU is that of the process over --idle seconds.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tqdm import tqdm

from bench.harness import results
from bench.harness.arguments import add_output_flag, make_parser
from bench.harness.memory import memory
from bench.harness.processes import cpu_s
from bench.harness.results import SERVER_PACKAGES, Figures
from bench.harness.servers import BIN, free_port

CONFIGURATIONS: dict[str, tuple[str, ...]] = {
    "int8": ("--variant", "int8"),
    "fp32": ("--variant", "fp32"),
    "int8, --max-batch-tokens 256": ("--variant", "int8", "--max-batch-tokens", "256"),
    "PyTorch": ("--engine", "torch"),
}


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="bundle to serve")
    parser.add_argument("--rounds", type=int, default=5, help="starts of each configuration (default: 5)")
    parser.add_argument("--idle", type=float, default=10.0, help="seconds without a call (default: 10)")
    add_output_flag(parser)
    arguments = parser.parse_args()
    found: dict[str, list[Figures]] = {name: [] for name in CONFIGURATIONS}
    with tqdm(total=(arguments.rounds + 1) * len(CONFIGURATIONS), unit="start") as bar:
        # The first round warms the file cache and does not count.
        for number in range(arguments.rounds + 1):
            for name, flags in CONFIGURATIONS.items():
                figures = start(arguments.bundle, flags, arguments.idle if number else 0.0)
                found[name] += [figures] if number else []
                bar.update()
    servers = {name: results.spread_all(rounds) for name, rounds in found.items()}
    print(table(servers))
    provenance = results.provenance((*SERVER_PACKAGES, "torch"))
    results.write(arguments.output, {**provenance, "rounds": arguments.rounds, "servers": servers})


def start(bundle: Path, flags: Sequence[str], idle_s: float) -> Figures:
    """Starts a server, measures it and stops it."""
    target = f"127.0.0.1:{free_port()}"
    command = [str(BIN / "polyhead-serve"), str(bundle), "--listen", target, "--log-level", "warning", *flags]
    began = time.perf_counter()
    process = subprocess.Popen(command)
    try:
        while not is_serving(target):
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(command)} ended with code {process.returncode}")
        startup_s = time.perf_counter() - began
        startup_cpu_s = cpu_s(process.pid)
        time.sleep(idle_s)
        idle_cpu_s = cpu_s(process.pid) - startup_cpu_s
        return {
            "startup_s": startup_s,
            "startup_cpu_s": startup_cpu_s,
            "idle_cpu_percent": 100 * idle_cpu_s / idle_s if idle_s else 0.0,
            **memory(target),
        }
    finally:
        process.terminate()
        process.wait(60)


def is_serving(target: str) -> bool:
    """Asks the health service once over a new connection."""
    with grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
        except grpc.RpcError:
            time.sleep(0.01)
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def table(servers: dict[str, dict[str, list[float]]]) -> str:
    """Formats the figures for a terminal."""
    lines = [f"{'server':<32}{'startup, s':>22}{'memory, MB':>12}{'peak, MB':>10}{'idle CPU, %':>12}"]
    for name, one in servers.items():
        startup = "{:.2f} [{:.2f}, {:.2f}]".format(*one["startup_s"])
        memory_mb = f"{one['rss_mb'][0]:>12.0f}{one['peak_rss_mb'][0]:>10.0f}"
        lines.append(f"{name:<32}{startup:>22}{memory_mb}{one['idle_cpu_percent'][0]:>12.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
