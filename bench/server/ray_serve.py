"""What Ray Serve costs: the same bundle behind a plain server, Ray's proxy in Python, and Ray's HAProxy.

    python -m bench.server.ray_serve --bundle build/demo/bundle --output bench/results/ray_serve.json

Requires the environment of `make test-ray`. All three run at the same time, each on all cores, and get each load in
turn, in interleaved rounds. `cpu_ms` is the CPU time per message of the processes that a call passes: the server; or
proxy, HAProxy and replica, without the rest of Ray. It counts the warm-up with its share of messages. It hardly
depends on what else the machine does meanwhile, unlike throughput, for which a busy machine favours the arm with more
processes.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyhead_server.settings import usable_cores
from tqdm import tqdm

from bench.harness import results
from bench.harness.arguments import add_output_flag, make_parser
from bench.harness.processes import cpu_s, find_server
from bench.harness.ray_serve import RayServe, ray_serving
from bench.harness.servers import free_port, serving
from bench.harness.texts import DEMO_TEXTS
from bench.loadgen.launch import run_load
from bench.loadgen.loops import WARM_UP_S

PLAIN, PROXY, HAPROXY = "plain server", "Ray Serve, Python proxy", "Ray Serve, HAProxy"
# Name of a load: the load generator and its flags.
LOADS = {
    "unary, one at a time": ("main", ("--mode", "unary", "--items", "1", "--in-flight", "1")),
    "unary, 64 in flight": ("main", ("--mode", "unary", "--items", "1", "--in-flight", "64")),
    "stream, messages of 32 texts": ("main", ("--mode", "stream", "--items", "32", "--in-flight", "128")),
    "HTTP, 64 in flight": ("http", ("--items", "1", "--in-flight", "64")),
}
# A text of few tokens, so that the way to the model counts and not the model.
SHORT_TEXT = '{"text": "Thank you!"}\n'
# Processes of a cluster that a call passes.
_ON_THE_WAY = ("ray::ProxyActor", "ray::ServeReplica")


@dataclass(frozen=True)
class Arm:
    """What is measured.

    Attributes:
        target: HOST:PORT of gRPC.
        http_target: HOST:PORT of HTTP.
        cpu_s: Returns the CPU seconds so far of the processes that a call passes.
    """

    target: str
    http_target: str
    cpu_s: Callable[[], float]


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="bundle to serve")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default: 5)")
    parser.add_argument("--seconds", type=float, default=3.0, help="measured seconds per load (default: 3)")
    parser.add_argument("--demo-texts", action="store_true", help="send the demo texts instead of a short text")
    add_output_flag(parser)
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        texts = DEMO_TEXTS
        if not arguments.demo_texts:
            texts = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "texts.jsonl"
            texts.write_text(SHORT_TEXT)
        arms = {name: stack.enter_context(start(arguments.bundle.resolve())) for name, start in _STARTS.items()}
        loads = measure(arms, texts, arguments)
    report = {
        **results.provenance((*results.SERVER_PACKAGES, "ray")),
        "rounds": arguments.rounds,
        "texts": "one of the demo texts" if arguments.demo_texts else "a short one",
        "equal_texts": False,
        "loads": loads,
    }
    for load, rows in loads.items():
        for arm, figures in rows.items():
            print(f"{load}: {arm}: {figures}")
    results.write(arguments.output, report)


def measure(arms: dict[str, Arm], texts: Path, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Returns the spread of each figure by load and arm; ``*_ratio`` is that to the plain server in the same round."""
    found: dict[str, dict[str, list[results.Figures]]] = {load: {arm: [] for arm in arms} for load in LOADS}
    with tqdm(total=arguments.rounds * len(LOADS) * len(arms), unit="load") as bar:
        for _ in range(arguments.rounds):
            for load in LOADS:
                for name, arm in arms.items():
                    found[load][name].append(_run(load, arm, texts, arguments.seconds))
                    bar.update()
    for rows in found.values():
        for figures in rows.values():
            for one, plain in zip(figures, rows[PLAIN], strict=True):
                one["cpu_ratio"] = one["cpu_ms"] / plain["cpu_ms"]
                one["items_ratio"] = one["items_per_s"] / plain["items_per_s"]
    return {load: {arm: results.spread_all(figures) for arm, figures in rows.items()} for load, rows in found.items()}


def _run(load: str, arm: Arm, texts: Path, seconds: float) -> results.Figures:
    generator, flags = LOADS[load]
    before = arm.cpu_s()
    target = arm.http_target if generator == "http" else arm.target
    figures = run_load(target, texts, seconds, flags, generator)
    messages = figures["messages"] * (seconds + WARM_UP_S) / seconds
    cpu_ms = 1000 * (arm.cpu_s() - before) / messages
    return {"items_per_s": figures["items_per_s"], "p50_ms": figures["p50_ms"], "cpu_ms": cpu_ms}


@contextlib.contextmanager
def _plain(bundle: Path) -> Iterator[Arm]:
    http_target = f"127.0.0.1:{free_port()}"
    with serving(bundle, "--http-listen", http_target) as target:
        pid = find_server(target)
        yield Arm(target, http_target, lambda: cpu_s(pid))


@contextlib.contextmanager
def _ray(bundle: Path, environment: dict[str, str]) -> Iterator[Arm]:
    arguments = {"bundle": str(bundle), "threads": usable_cores()}
    with tempfile.TemporaryDirectory() as folder, ray_serving(Path(folder), arguments, environment) as cluster:
        yield Arm(cluster.target, cluster.http_target, lambda: _way_cpu_s(cluster))


def _way_cpu_s(cluster: RayServe) -> float:
    on_the_way = [
        pid for pid, command in cluster.processes().items() if command.startswith(_ON_THE_WAY) or "/haproxy " in command
    ]
    return sum(map(cpu_s, on_the_way))


_STARTS: dict[str, Callable[[Path], contextlib.AbstractContextManager[Arm]]] = {
    PLAIN: _plain,
    PROXY: lambda bundle: _ray(bundle, {}),
    HAPROXY: lambda bundle: _ray(bundle, {"RAY_SERVE_ENABLE_HA_PROXY": "1"}),
}


if __name__ == "__main__":
    main()
