"""Runs load generators as separate processes and collects their figures."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.harness.results import Figures
from bench.harness.texts import ROOT

from .loops import WARM_UP_S

# CPU seconds of a server that show that the load generator has started.
_STARTED_CPU_S = 0.05


def command(program: str, target: str, texts: Path, seconds: float, flags: Sequence[str]) -> list[str]:
    """Returns the command of a load generator, ``main`` or ``streams``; it must run in the repository root."""
    module = f"bench.loadgen.{program}"
    return [sys.executable, "-m", module, target, str(texts.resolve()), "--seconds", str(seconds), *flags]


def run_load(target: str, texts: Path, seconds: float, flags: Sequence[str], program: str = "main") -> Figures:
    """Runs one load generator and returns its figures."""
    done = subprocess.run(
        command(program, target, texts, seconds, flags), check=True, capture_output=True, text=True, cwd=ROOT
    )
    figures: Figures = json.loads(done.stdout)
    return figures


def start_load(
    target: str, texts: Path, seconds: float, flags: Sequence[str], server_cpu_s: Callable[[], float]
) -> subprocess.Popen[str]:
    """Starts a load generator; returns it when it has warmed up, or has ended.

    ``server_cpu_s`` returns CPU seconds of the server, which rise as soon as texts arrive.
    """
    load = command("main", target, texts, seconds, flags)
    client = subprocess.Popen(load, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    idle_s = server_cpu_s()
    while client.poll() is None and server_cpu_s() < idle_s + _STARTED_CPU_S:
        time.sleep(0.01)
    time.sleep(WARM_UP_S)
    return client


def figures_of(client: subprocess.Popen[str]) -> Figures:
    """Waits for the end of a load generator and returns its figures.

    Raises:
        SystemExit: It failed; its messages are on standard error.
    """
    output, _ = client.communicate()
    if client.returncode:
        raise SystemExit("the load generator failed")
    figures: Figures = json.loads(output)
    return figures


def run_loads(target: str, texts: Path, seconds: float, clients: int, flags: Sequence[str]) -> Figures:
    """Runs several load generators side by side, each with texts of its own.

    Returns:
        Their total throughput and mean latencies.
    """
    with ThreadPoolExecutor(clients) as threads:
        seeds = (("--seed", str(number)) for number in range(clients))
        reports = list(threads.map(lambda seed: run_load(target, texts, seconds, (*flags, *seed)), seeds))
    sums = {name: sum(one[name] for one in reports) for name in ("items_per_s", "client_cores")}
    return {**sums, **{name: statistics.fmean(one[name] for one in reports) for name in ("p50_ms", "p99_ms")}}
