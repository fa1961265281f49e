"""Where the time of a call and of an item goes: CPU by thread of the server, and the stages of a call on its own.

CPU: under closed loops, what the event loop, the compute threads and the other threads (gRPC's, the tokenizer's) took
for each text, from /proc; beside it what bare onnxruntime takes for the same texts, and what the client took. Stages:
one text in flight, the server's own timings of it, and what is left of the time that the client saw: gRPC, both ways.

    python bench/server/latency_breakdown.py --bundle build/demo/bundle --output bench/results/anatomy.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import inference_service_pb2_grpc, item_pb2
from polyhead_server.settings import usable_cores
from tqdm import tqdm

from bench.harness.servers import serving
from bench.harness.texts import read

from .throughput import DEMO, HERE, LOADS, Limit

CHOSEN = (
    "unary, 1 item, 64 in flight",
    "client, 64 in flight",
    "stream, 8 items, 64 in flight",
    "stream, 32 items, 256 in flight",
)
STAGES = ("tokenization", "queue", "compute", "total")
# CPU seconds of the event loop from which on the client is surely at work.
_AT_WORK_S = 0.05


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--variant", default="int8", help="variant to serve (default: int8)")
    parser.add_argument("--texts", type=Path, default=DEMO, help="JSON lines with a field `text`, or a text a line")
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds of a load (default: 5)")
    parser.add_argument("--output", type=Path, help="file for the figures as JSON")
    arguments = parser.parse_args()
    texts = [row["text"] for row in read(arguments.texts)]
    limit = Limit(arguments.bundle, arguments.variant, texts)
    loads: dict[str, dict[str, float]] = {}
    with serving(arguments.bundle, "--engine", "onnx", "--device", "cpu", "--variant", arguments.variant) as target:
        pid = process_of(target)
        for name in tqdm(CHOSEN, unit="load"):
            bare_us = 1e6 * usable_cores() / limit.items_per_s(arguments.seconds)
            loads[name] = {"bare_us": bare_us, **cpu_of_load(target, pid, arguments, LOADS[name])}
        stages = stages_of_calls(target, texts[:300], limit)
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
        "cores": usable_cores(),
        "variant": arguments.variant,
        "cpu_us_per_text": {name: {key: round(one) for key, one in load.items()} for name, load in loads.items()},
        "one_call_us": {name: round(one) for name, one in stages.items()},
    }
    print(json.dumps(report, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


def process_of(target: str) -> int:
    """The process that was started with ``--listen TARGET``."""
    for folder in Path("/proc").glob("[0-9]*"):
        # Others may end while they are looked at.
        with contextlib.suppress(OSError):
            if f"--listen\0{target}\0".encode() in (folder / "cmdline").read_bytes():
                return int(folder.name)
    raise SystemExit(f"no process was started with --listen {target}")


def cpu_of_load(target: str, pid: int, arguments: argparse.Namespace, flags: Sequence[str]) -> dict[str, float]:
    """CPU microseconds a text: of the event loop, the compute threads, all others, and the client."""
    command = [sys.executable, str(HERE / "load.py"), target, str(arguments.texts), *flags]
    client = subprocess.Popen([*command, "--seconds", str(arguments.seconds)], stdout=subprocess.PIPE, text=True)
    idle_s = threads(pid)[pid]
    while threads(pid)[pid] < idle_s + _AT_WORK_S:
        time.sleep(0.01)
    time.sleep(1.0)
    before, began = threads(pid), time.perf_counter()
    time.sleep(arguments.seconds - 1.0)
    used = {tid: seconds - before.get(tid, 0.0) for tid, seconds in threads(pid).items()}
    wall = time.perf_counter() - began
    figures = json.loads(client.communicate()[0])
    loop = used.pop(pid)
    ranked = sorted(used.values(), reverse=True)
    a_text_us = 1e6 / (wall * figures["items_per_s"])
    return {
        "event_loop_us": a_text_us * loop,
        "compute_us": a_text_us * sum(ranked[: usable_cores()]),
        "others_us": a_text_us * sum(ranked[usable_cores() :]),
        "client_us": 1e6 * figures["client_cpu"] / figures["items_per_s"],
        "items_per_s": figures["items_per_s"],
    }


def threads(pid: int) -> dict[int, float]:
    """CPU seconds of each thread of a process; the first one, which runs the event loop, has the process's number."""
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    found = {}
    for folder in Path(f"/proc/{pid}/task").iterdir():
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        found[int(folder.name)] = tick_s * (int(fields[11]) + int(fields[12]))
    return found


def stages_of_calls(target: str, texts: Sequence[str], limit: Limit) -> dict[str, float]:
    """Medians over calls of one text each, one after the other."""
    seen: dict[str, list[float]] = {name: [] for name in (*STAGES, "client")}
    with grpc.insecure_channel(target) as channel:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        for text in texts:
            options = item_pb2.ItemOptions(include_timings=True)
            request = pb2.AnalyzeRequest(items=[item_pb2.Item(text=text)], options=options)
            began = time.perf_counter()
            (answer,) = stub.Analyze(request).answers
            seen["client"].append(1e6 * (time.perf_counter() - began))
            timings: Any = answer.result.timings
            for name in STAGES:
                seen[name].append(getattr(timings, name).ToNanoseconds() / 1000)
    medians = {name: statistics.median(values) for name, values in seen.items()}
    return medians | {"bare": 1000 * limit.alone_ms(), "grpc": medians["client"] - medians["total"]}


if __name__ == "__main__":
    main()
