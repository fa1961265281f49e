"""Throughput, CPU time and memory of fronts and their engine process, beside one process that does everything.

    python -m bench.server.fronts --bundle build/demo/bundle --output bench/results/fronts.json
    python -m bench.server.fronts --bundle build/demo/bundle --real-engine          # with the model
    python -m bench.server.fronts --bundle build/demo/bundle --fronts 0 2 --rounds 1 --seconds 2  # quick

The engine answers at once unless --real-engine is given, so that everything else is what the CPU time goes to. The
servers run side by side and take turns; 0 fronts is the server of one process. Microseconds of CPU time are per text:
of all fronts together, of the engine process, and of its event loop alone, which bounds what the fronts can be given.
The CPU time of a machine that does other work is larger, so compare the servers of one run. Throughput shows the gain
only on a machine with a core for each front beside the cores of the load generator; or, as root, with
--front-cores 0.1, which limits each front to a tenth of a core.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from bench.harness import results
from bench.harness.arguments import add_output_flag, make_parser
from bench.harness.cpu_quota import cpu_quota
from bench.harness.processes import thread_cpu_s
from bench.harness.results import Figures
from bench.harness.servers import BIN, free_port, running_command
from bench.harness.texts import DEMO_TEXTS, FORMAT_HELP, ROOT
from bench.loadgen.launch import figures_of, start_load
from bench.loadgen.loops import WARM_UP_S

# The kernel distributes connections at random: of so many, each front has some.
_CONNECTIONS = "32"
LOADS = {
    "unary, 1 item": ("--mode", "unary", "--in-flight", "64", "--connections", _CONNECTIONS),
    "stream, 32 items": ("--mode", "stream", "--items", "32", "--connections", _CONNECTIONS),
}
_START_S = 60.0

# Replaces the engine in the engine process.
_PATCH = """
import sys
if sys.orig_argv[-1] == "engine":
    from bench.server.instant_server import load_instantly
    from polyhead_server.lifecycle import engine_process
    engine_process.load_model = load_instantly
"""


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        target: HOST:PORT.
        fronts: Ids of the processes that have the connections.
        engine: Id of the process that computes; the same where one process does everything.
    """

    target: str
    fronts: Sequence[int]
    engine: int


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="bundle to serve")
    parser.add_argument("--texts", type=Path, default=DEMO_TEXTS, help=f"{FORMAT_HELP} (default: the demo's)")
    parser.add_argument("--fronts", type=int, nargs="+", default=[0, 1, 2, 4], help="(default: 0 1 2 4)")
    parser.add_argument("--real-engine", action="store_true", help="compute with the model")
    parser.add_argument("--front-cores", type=float, help="cores of each front, a part of one (default: no limit)")
    parser.add_argument("--in-flight", default="2048", help="texts in flight of the streams (default: 2048)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of all servers (default: 5)")
    parser.add_argument("--seconds", type=float, default=5.0, help="measured seconds per load (default: 5)")
    add_output_flag(parser)
    arguments = parser.parse_args()
    found: dict[str, dict[str, list[Figures]]] = {
        load: {str(count): [] for count in arguments.fronts} for load in LOADS
    }
    memory: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        servers = {
            str(count): stack.enter_context(running(arguments.bundle, count, real=arguments.real_engine))
            for count in arguments.fronts
        }
        if arguments.front_cores:
            fronts = [process for server in servers.values() for process in server.fronts]
            stack.enter_context(cpu_quota(fronts, arguments.front_cores))
        for _ in tqdm(range(arguments.rounds), unit="round"):
            for load in LOADS:
                for name, server in servers.items():
                    found[load][name].append(measure(server, load, arguments))
        memory = {name: memory_mb(server) for name, server in servers.items()}
    report = {
        **results.provenance(),
        "engine": "model" if arguments.real_engine else "instant",
        "rounds": arguments.rounds,
        "front_cores": arguments.front_cores,
        "memory_mb": memory,
        "loads": {
            load: {name: results.spread_all(rounds) for name, rounds in servers_.items()}
            for load, servers_ in found.items()
        },
    }
    print(json.dumps(report, indent=2))
    results.write(arguments.output, report)


@contextlib.contextmanager
def running(bundle: Path, fronts: int, *, real: bool) -> Iterator[Server]:
    """Runs a server with so many fronts; 0 for one process."""
    target = f"127.0.0.1:{free_port()}"
    flags = ("--listen", target, "--device", "cpu", *(("--fronts", str(fronts)) if fronts else ()))
    instant = [sys.executable, "-m", "bench.server.instant_server"]
    program = [str(BIN / "polyhead-serve")] if real or fronts else instant
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "sitecustomize.py").write_text("" if real else _PATCH)
        path = os.pathsep.join([folder, str(ROOT), os.environ.get("PYTHONPATH", "")])
        log = Path(folder, "log")
        command, environment = [*program, str(bundle), *flags], {**os.environ, "PYTHONPATH": path}
        with (
            log.open("wb") as stderr,
            running_command(command, target, log, stderr=stderr, env=environment, cwd=ROOT) as process,
        ):
            yield _server(process.pid, target, log, fronts)


def _server(pid: int, target: str, log: Path, fronts: int) -> Server:
    if not fronts:
        return Server(target, [pid], pid)
    ends = time.monotonic() + _START_S
    while not re.search(r"the engine and \d+ fronts serve", log.read_text()):
        if time.monotonic() > ends:
            raise SystemExit(log.read_text())
        time.sleep(0.05)
    children = [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    engine = next(one for one in children if b"\0engine\0" in Path(f"/proc/{one}/cmdline").read_bytes())
    return Server(target, [one for one in children if one != engine], engine)


def measure(server: Server, load: str, arguments: argparse.Namespace) -> Figures:
    """Returns the throughput of a server under a load, and CPU microseconds per text of its parts."""
    flags = LOADS[load] if "--in-flight" in LOADS[load] else (*LOADS[load], "--in-flight", arguments.in_flight)
    client = start_load(server.target, arguments.texts, arguments.seconds, flags, lambda: used_s(server)["fronts_us"])
    before, began = used_s(server), time.perf_counter()
    time.sleep(max(arguments.seconds - WARM_UP_S, 0.1))
    after, seconds = used_s(server), time.perf_counter() - began
    items_per_s = figures_of(client)["items_per_s"]
    us_per_text = 1e6 / (seconds * items_per_s)
    return {"items_per_s": items_per_s, **{name: us_per_text * (after[name] - before[name]) for name in after}}


def used_s(server: Server) -> Mapping[str, float]:
    """Returns CPU seconds of the parts of a server; the loop of one process is both a front's and the engine's."""
    engine = thread_cpu_s(server.engine)
    return {
        "fronts_us": sum(sum(thread_cpu_s(pid).values()) for pid in server.fronts),
        "engine_us": sum(engine.values()),
        "engine_loop_us": engine[server.engine],
    }


def memory_mb(server: Server) -> float:
    """Returns the memory of all processes of a server in MB, shared pages divided among those that share them."""
    kilobytes = 0
    for pid in {*server.fronts, server.engine}:
        found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
        kilobytes += int(found[1]) if found else 0
    return kilobytes / 1024


if __name__ == "__main__":
    main()
